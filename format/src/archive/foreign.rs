//! Names of the formats that people mistake for a `.cmf`.

/// What the first bytes of a file that is not an archive look like.
pub(super) fn describe(bytes: &[u8]) -> &'static str {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let safetensors = bytes.get(8) == Some(&b'{')
        && bytes.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) < 1 << 30);
    if bytes.is_empty() {
        "an empty file"
    } else if starts(b"CMF\x01") {
        "a Cortiq Model Format file, which shares only the extension"
    } else if bytes.get(1..4) == Some(b"CMF") {
        "a .cmf damaged by a text-mode or 7-bit transfer"
    } else if starts(b"GGUF") {
        "a GGUF file; `cmf convert` reads it"
    } else if safetensors {
        "a safetensors file; `cmf convert` reads it"
    } else if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        "a zip archive (PyTorch checkpoints are zip archives)"
    } else if starts(b"\x80\x02") || starts(b"\x80\x03") || starts(b"\x80\x04") || starts(b"\x80\x05") {
        "a Python pickle"
    } else if starts(b"\x89HDF\r\n\x1a\n") {
        "an HDF5 file"
    } else if starts(b"\x93NUMPY") {
        "a NumPy array"
    } else if starts(b"\x28\xB5\x2F\xFD") {
        "a zstd stream"
    } else if starts(b"\x1f\x8b") {
        "a gzip stream"
    } else if starts(b"version https://git-lfs") {
        "a Git LFS pointer; fetch the file itself"
    } else if starts(b"<!DOCTYPE") || starts(b"<html") {
        "a web page, perhaps an error page of a download"
    } else {
        "unknown"
    }
}

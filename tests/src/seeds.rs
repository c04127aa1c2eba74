//! The seeds of the fuzz targets, made of the samples.

use crate::samples;
use std::error::Error;

/// Named inputs of one target.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// The seeds of every target.
///
/// # Errors
/// When a sample does not make a valid archive.
pub fn all() -> Result<Vec<(&'static str, Seeds)>, Box<dyn Error>> {
    let archives = samples::all()?;
    let repaired = |control: u8| -> Seeds {
        archives.iter().map(|(name, bytes)| ((*name).to_owned(), [&[control], bytes.as_slice()].concat())).collect()
    };
    let mut open = repaired(1);
    // Without repair: what other formats begin with.
    for (name, head) in [
        ("gguf", &b"GGUF\x03\0\0\0"[..]),
        ("zip", b"PK\x03\x04"),
        ("cortiq", b"CMF\x01"),
        ("safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    ] {
        open.push((name.to_owned(), [&[0], head].concat()));
    }
    Ok(vec![
        ("open", open),
        ("decode", repaired(3)),
        ("differential", patterns(12)),
        ("write_then_read", patterns(8)),
    ])
}

/// Inputs for targets that build from them: bytes that differ from place to place.
fn patterns(count: u32) -> Seeds {
    let byte = |seed: u32, i: u32| (seed.wrapping_mul(0x9E37_79B9) ^ i.wrapping_mul(0x85EB_CA6B)).rotate_left(i % 31) as u8;
    (0..count).map(|seed| (format!("pattern-{seed}"), (0..40 + seed * 24).map(|i| byte(seed, i)).collect())).collect()
}

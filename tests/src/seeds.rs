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
        archives
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), [&[control], bytes.as_slice()].concat()))
            .collect()
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
        ("converters", converters(&archives)),
    ])
}

/// Inputs for targets that build from them: bytes that differ from place to place.
fn patterns(count: u32) -> Seeds {
    let byte = |seed: u32, i: u32| {
        (seed.wrapping_mul(0x9E37_79B9) ^ i.wrapping_mul(0x85EB_CA6B)).rotate_left(i % 31) as u8
    };
    (0..count)
        .map(|seed| (format!("pattern-{seed}"), (0..40 + seed * 24).map(|i| byte(seed, i)).collect()))
        .collect()
}

/// A file of each format that converters read, and the built-in recipes.
fn converters(archives: &[(&'static str, Vec<u8>)]) -> Seeds {
    let mut seeds = Seeds::new();
    let mut add =
        |name: &str, kind: u8, bytes: &[u8]| seeds.push((name.to_owned(), [&[kind], bytes].concat()));
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"I64","shape":[],"data_offsets":[12,20]},"c":{"dtype":"BF16","shape":[0,4],"data_offsets":[20,20]}}"#;
    let safetensors = [&(header.len() as u64).to_le_bytes()[..], header, &[0x3C; 20]].concat();
    add("safetensors", 0, &safetensors);
    for (name, ty, columns, row_bytes) in
        [("q4_k", 12u32, 256u64, 144usize), ("q8_0", 8, 64, 68), ("iq2_xs", 17, 256, 74), ("f16", 1, 5, 10)]
    {
        let file = gguf(ty, columns, row_bytes);
        add(&format!("gguf-{name}"), 1, &file);
        add(&format!("gguf-file-{name}"), 2, &file);
    }
    for name in cmf_converters::recipe::BUILTIN_NAMES {
        let text = cmf_converters::recipe::Recipe::load(name).and_then(|r| r.to_toml()).unwrap_or_default();
        add(&format!("recipe-{name}"), 3, text.as_bytes());
    }
    add(
        "index",
        4,
        br#"{"metadata":{"total_size":4},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#,
    );
    for (name, bytes) in
        archives.iter().filter(|(name, _)| matches!(*name, "levels" | "lossless" | "records"))
    {
        add(&format!("cmf-{name}"), 5, &[&[3], bytes.as_slice()].concat());
    }
    seeds
}

/// A GGUF file of one tensor of two rows.
fn gguf(ty: u32, columns: u64, row_bytes: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let text = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend([1u64, 3].into_iter().flat_map(u64::to_le_bytes));
    text(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    text(&mut file, "llama");
    text(&mut file, "general.alignment");
    file.extend([4u32, 32].into_iter().flat_map(u32::to_le_bytes));
    text(&mut file, "tokens");
    file.extend([9u32, 8].into_iter().flat_map(u32::to_le_bytes));
    file.extend(2u64.to_le_bytes());
    text(&mut file, "<s>");
    text(&mut file, "a");
    text(&mut file, "blk.0.attn_q.weight");
    file.extend(2u32.to_le_bytes());
    file.extend([columns, 2].into_iter().flat_map(u64::to_le_bytes));
    file.extend(ty.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..2 * row_bytes).map(|i| (i * 37 % 251) as u8));
    file
}

//! Sizes as people write them: `90MiB`, `1.5GB`, `4096`.

/// Parses a size in bytes.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    cmf_loader::plan::parse_bytes(text).map_err(|e| e.to_string())
}

/// A size for people, in decimal units.
pub(crate) fn show(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, bytes) in [("4096", 4096), ("90MiB", 90 << 20), ("1.5GB", 1_500_000_000), ("2 kB", 2000)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "-1MB", "3 potatoes", "1e30GB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

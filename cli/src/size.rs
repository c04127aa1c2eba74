//! Sizes as people write them: `90MiB`, `1.5GB`, `4096`.

/// Parses a size in bytes.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or("") {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other => return Err(format!("`{other}` is no unit of bytes: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("`{text}` is no size; for example 90MiB"))?;
    let bytes = number * unit as f64;
    if !(0.0..1e18).contains(&bytes) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as u64)
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

//! Budgets as people write them: `90MiB`, `1.5GB`, `123456`, `2bpw`, `min`, `max`, `auto`.

use super::memory;
use core::fmt;
use core::str::FromStr;

/// Units of bytes: those of ten before those of two.
const UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// How much of a model may be resident.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// At most so many bytes.
    Bytes(u64),
    /// At most so many bits for each element of the model; those of tied tensors count once.
    BitsPerWeight(f64),
    /// The least that a model can be run with: all units of level 0.
    Minimum,
    /// Everything.
    Maximum,
}

impl Budget {
    /// Parses `90MiB`, `1.5GB`, `123456`, `2bpw`, `min` or `max`; and `auto`, which is
    /// [`AUTO_SHARE`](memory::AUTO_SHARE) of the memory that is available now.
    ///
    /// # Errors
    /// What is wrong with the text, or why the system does not say what is available.
    pub fn parse(text: &str) -> Result<Self, ParseBudgetError> {
        match text.trim() {
            "min" => Ok(Budget::Minimum),
            "max" => Ok(Budget::Maximum),
            "auto" => memory::available_bytes()
                .map(|bytes| Budget::Bytes((bytes as f64 * memory::AUTO_SHARE) as u64))
                .map_err(|e| ParseBudgetError(format!("auto: {e}"))),
            text => match text.strip_suffix("bpw") {
                Some(bits) => bits_per_weight(text, bits),
                None => parse_bytes(text).map(Budget::Bytes),
            },
        }
    }
}

fn bits_per_weight(text: &str, bits: &str) -> Result<Budget, ParseBudgetError> {
    match bits.trim().parse::<f64>() {
        Ok(bits) if (0.0..=1024.0).contains(&bits) => Ok(Budget::BitsPerWeight(bits)),
        _ => Err(ParseBudgetError(format!("`{text}`: expected bits per weight from 0 to 1024"))),
    }
}

/// Parses a number of bytes: `90MiB`, `1.5GB`, `123456`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<u64, ParseBudgetError> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let name = text.get(digits.len()..).unwrap_or("");
    let unit = match name {
        "" => 1,
        _ => UNITS.iter().find(|(unit, _)| *unit == name).map(|(_, bytes)| *bytes).ok_or_else(|| {
            let all = UNITS.map(|(unit, _)| unit).join(", ");
            ParseBudgetError(format!("`{name}` is no unit: expected one of {all}"))
        })?,
    };
    let digits = digits.trim();
    let range = || ParseBudgetError(format!("`{text}` is out of range"));
    // Whole numbers are kept to the byte, which f64 does only up to 2^53.
    if let Ok(number) = digits.parse::<u64>() {
        return number.checked_mul(unit).ok_or_else(range);
    }
    let number: f64 = digits
        .parse()
        .map_err(|_| ParseBudgetError(format!("`{text}` is no size: expected one like 90MiB")))?;
    let bytes = number * unit as f64;
    // 2^63: whoever means more writes `max`.
    match (0.0..9.2e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(range()),
    }
}

impl FromStr for Budget {
    type Err = ParseBudgetError;

    fn from_str(text: &str) -> Result<Self, ParseBudgetError> {
        Self::parse(text)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Bytes(bytes) => write!(f, "{bytes}"),
            Budget::BitsPerWeight(bits) => write!(f, "{bits}bpw"),
            Budget::Minimum => f.write_str("min"),
            Budget::Maximum => f.write_str("max"),
        }
    }
}

/// A text that is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseBudgetError(pub(super) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        for (text, budget) in [
            ("123456", Budget::Bytes(123_456)),
            ("0", Budget::Bytes(0)),
            ("90MiB", Budget::Bytes(90 << 20)),
            ("1.5GB", Budget::Bytes(1_500_000_000)),
            (" 2 kB ", Budget::Bytes(2000)),
            ("0.5TiB", Budget::Bytes(1 << 39)),
            ("18446744073709551615", Budget::Bytes(u64::MAX)),
            ("2bpw", Budget::BitsPerWeight(2.0)),
            ("3.25 bpw", Budget::BitsPerWeight(3.25)),
            ("min", Budget::Minimum),
            ("max", Budget::Maximum),
        ] {
            assert_eq!(Budget::parse(text), Ok(budget), "{text}");
        }
    }

    #[test]
    fn rejects_what_is_no_budget() {
        for text in [
            "",
            "MB",
            "-1MB",
            "3 potatoes",
            "1e30GB",
            "NaN",
            "infMB",
            "bpw",
            "-1bpw",
            "1e9bpw",
            "18446744073709551616",
            "99999999TiB",
            "Max",
            "２MB",
        ] {
            assert!(Budget::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same() {
        for budget in [Budget::Bytes(u64::MAX), Budget::BitsPerWeight(2.1), Budget::Minimum, Budget::Maximum]
        {
            assert_eq!(Budget::parse(&budget.to_string()), Ok(budget));
        }
    }
}

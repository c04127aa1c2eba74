//! What names may hold (spec: container, 4.1).

/// Why `name` may not name a tensor; `None` when it may.
///
/// Refused are the empty name, control characters and NUL, characters that change the direction
/// of text, and `.` or `..` between slashes, so that a name can be shown and can be part of a path.
pub(crate) fn tensor_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.chars().any(char::is_control) {
        return Some("has a control character");
    }
    if name.chars().any(changes_direction) {
        return Some("has a character that changes the direction of text");
    }
    name.split('/').any(|part| part == "." || part == "..").then_some("has a `.` or `..` component")
}

/// Why `name` may not name an attribute or another archive; `None` when it may.
///
/// Refused is whatever is not a bare file name on every system.
pub(crate) fn file_problem(name: &str) -> Option<&'static str> {
    if let Some(problem) = tensor_problem(name) {
        return Some(problem);
    }
    if name.chars().any(|c| matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')) {
        return Some("is not a bare file name");
    }
    let reserved = name.split('.').next().is_some_and(|stem| {
        matches!(stem.to_ascii_uppercase().as_str(), "CON" | "PRN" | "AUX" | "NUL")
            || (stem.len() == 4
                && ["COM", "LPT"].iter().any(|device| stem.to_ascii_uppercase().starts_with(device)))
    });
    (reserved || name.ends_with(['.', ' ']) || name.starts_with(' '))
        .then_some("is no file name on every system")
}

fn changes_direction(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_that_models_use() {
        for name in ["model.layers.0.mlp.up_proj.weight", "blk/0/w:kernel", "模型.权重", "a..b", "x y"] {
            assert_eq!(tensor_problem(name), None, "{name}");
        }
        assert_eq!(file_problem("tokenizer_config.json"), None);
    }

    #[test]
    fn rejects_names_that_hide_or_escape() {
        for name in ["", "a\0b", "a\nb", "a\u{202E}b", "../x", "a/../b", "./a", "a/.."] {
            assert!(tensor_problem(name).is_some(), "{name:?}");
        }
        for name in ["a/b", "C:x", "..", "nul.json", "a\\b", "x.", "COM1"] {
            assert!(file_problem(name).is_some(), "{name:?}");
        }
    }
}

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
    if name.len() > MAX_FILE_NAME_BYTES {
        return Some("is longer than 255 bytes");
    }
    let device = name.split('.').next().is_some_and(|stem| is_device(stem.trim_end_matches(' ')));
    (device || name.ends_with(['.', ' ']) || name.starts_with(' '))
        .then_some("is no file name on every system")
}

/// Longest file name that every system takes.
const MAX_FILE_NAME_BYTES: usize = 255;

/// Whether Windows takes a file of this stem for a device.
fn is_device(stem: &str) -> bool {
    let stem = stem.to_ascii_uppercase();
    let numbered = ["COM", "LPT"].iter().find_map(|port| stem.strip_prefix(port));
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered.is_some_and(|rest| {
            let mut rest = rest.chars();
            matches!(rest.next(), Some('0'..='9' | '¹' | '²' | '³')) && rest.next().is_none()
        })
}

/// Why `text` may not be a media type; `None` when it may.
pub(crate) fn media_type_problem(text: &str) -> Option<&'static str> {
    let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    (text.is_empty() || !printable).then_some("is no media type")
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
        for name in ["a/b", "C:x", "..", "nul.json", "NUL .x", "a\\b", "x.", "COM1", "lpt³.txt", "conin$"] {
            assert!(file_problem(name).is_some(), "{name:?}");
        }
    }

    #[test]
    fn rejects_file_name_that_is_too_long() {
        assert_eq!(file_problem(&"x".repeat(255)), None);
        assert!(file_problem(&"x".repeat(256)).is_some());
    }

    #[test]
    fn accepts_file_names_that_only_begin_like_devices() {
        for name in ["comb.json", "com.json", "com10", "lptx", "console.txt"] {
            assert_eq!(file_problem(name), None, "{name}");
        }
    }
}

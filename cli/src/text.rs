//! Output for people: tables, numbers, errors; and JSON with its schema number.

use serde::Serialize;

/// Version of the JSON that all commands print.
const SCHEMA: u32 = 1;

/// A report with `"schema": 1` before its fields.
pub(crate) fn json(report: &impl Serialize) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        schema: u32,
        #[serde(flatten)]
        report: &'a T,
    }
    let mut text = serde_json::to_string_pretty(&Versioned { schema: SCHEMA, report })?;
    text.push('\n');
    Ok(text)
}

/// Rows in columns as wide as they need. A head that begins with `>` aligns its column to the
/// right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<_> = head.iter().map(|h| h.trim_start_matches('>')).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(names.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded =
            cells.zip(head.iter().zip(&widths)).map(|(cell, (head, width))| match head.starts_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut names.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A name that came from a file, with control characters made visible.
pub(crate) fn name(name: &str) -> String {
    name.escape_debug().to_string()
}

/// An error with its causes, each said once.
pub(crate) fn error(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// A number of things: `1 file`, `2 files`.
pub(crate) fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Many elements in few digits: `576`, `28.3 M`.
pub(crate) fn elements(n: u64) -> String {
    let value = n as f64;
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.2} G", value / 1e9),
    }
}

/// A positive number in four digits, with an exponent only where it is needed.
pub(crate) fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        _ if !value.is_finite() => "infinite".into(),
        1e-3..1e4 => {
            let decimals = (3.0 - value.log10().floor()).clamp(0.0, 6.0) as usize;
            format!("{value:.decimals$}")
        }
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_and_aligned_as_their_head_says() {
        let rows =
            [vec!["a".into(), "10".into(), "x".into()], vec!["long name".into(), "2".into(), "y".into()]];
        let text = table(&["name", ">bytes", "kind"], &rows);
        assert_eq!(text, "name       bytes  kind\na             10  x\nlong name      2  y\n");
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, shown) in [
            (0.0, "0"),
            (0.08237, "0.08237"),
            (1.5, "1.500"),
            (123.456, "123.5"),
            (1.5e-7, "1.500e-7"),
            (f64::INFINITY, "infinite"),
        ] {
            assert_eq!(number(value), shown);
        }
    }

    #[test]
    fn causes_are_said_once() {
        let inner = std::io::Error::other("disk full");
        let outer = anyhow::Error::new(inner).context("a.cmf: cannot be written");
        assert_eq!(error(&outer), "a.cmf: cannot be written: disk full");
        assert_eq!(
            error(&outer.context("disk full, a.cmf: cannot be written")),
            "disk full, a.cmf: cannot be written"
        );
    }
}

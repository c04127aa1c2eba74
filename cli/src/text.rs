//! Output for people: tables, and JSON with its schema number.

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

/// Rows in columns as wide as they need; the first column is left-aligned, the others right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).enumerate().map(|(i, (cell, width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A name that came from a file, with control characters made visible.
pub(crate) fn name(name: &str) -> String {
    name.escape_debug().to_string()
}

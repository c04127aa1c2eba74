//! docs/running.md against the example of the crate, which compiles.

use std::path::Path;

#[test]
fn page_shows_the_example_that_compiles() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(folder.join("../../docs/running.md"))?;
    let source = std::fs::read_to_string(folder.join("src/lib.rs"))?;
    let shown =
        page.split_once("```rust\n").and_then(|(_, rest)| rest.split_once("```")).map(|(code, _)| code);
    let lines = source.lines().filter_map(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let lines = lines.skip_while(|line| *line != "```no_run").skip(1).take_while(|line| *line != "```");
    let compiled: String =
        lines.filter(|line| !line.starts_with("# ")).map(|line| format!("{line}\n")).collect();
    assert_eq!(shown, Some(compiled.as_str()));
    Ok(())
}

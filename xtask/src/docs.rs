//! Markdown files: links into the repository must lead somewhere, and the Rust version in prose
//! must be the one in Cargo.toml.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::msrv;

/// Checks every tracked Markdown file.
pub(crate) fn check(root: &Path) -> Result<()> {
    let tracked = Cmd::new("git", root).args(["ls-files", "-z", "--", "*.md"]).output()?;
    let stated = msrv::stated(root)?;
    let mut wrong = Vec::new();
    let mut files = 0;
    for name in tracked.split_terminator('\0') {
        let path = root.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let folder = path.parent().context("a file has a folder")?;
        let complaints = broken_links(&text, folder).chain(other_versions(&text, &stated));
        wrong.extend(complaints.map(|complaint| format!("{name}:{complaint}")));
        files += 1;
    }
    if !wrong.is_empty() {
        bail!("{} mistakes in Markdown files:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    println!("{files} Markdown files: links lead somewhere, Rust is {stated}");
    Ok(())
}

/// Inline links `](target)` to files that do not exist, outside code blocks.
fn broken_links<'a>(text: &'a str, folder: &'a Path) -> impl Iterator<Item = String> + 'a {
    prose_lines(text).flat_map(move |(number, line)| {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let files = targets.map(|target| target.split('#').next().unwrap_or_default());
        files
            .filter(|file| !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:"))
            .filter(|file| !folder.join(file).exists())
            .map(move |file| format!("{number}: link to `{file}`, which does not exist"))
    })
}

/// Mentions of a Rust version `1.x` that is not the stated one.
fn other_versions<'a>(text: &'a str, stated: &'a str) -> impl Iterator<Item = String> + 'a {
    text.lines().zip(1..).flat_map(move |(line, number)| {
        let versions = line.split("Rust 1.").skip(1).map(|rest| {
            let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
            format!("1.{minor}")
        });
        versions
            .filter(move |version| version != stated)
            .map(move |version| format!("{number}: says Rust {version}, Cargo.toml says {stated}"))
    })
}

/// Numbered lines outside fenced code blocks.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((number, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(text: &str) -> Vec<String> {
        broken_links(text, Path::new(env!("CARGO_MANIFEST_DIR"))).collect()
    }

    #[test]
    fn accepts_link_to_file() {
        assert!(links("see [the manifest](Cargo.toml#dependencies)").is_empty());
    }

    #[test]
    fn rejects_link_to_nothing() {
        assert_eq!(links("\nsee [it](none.md)"), ["2: link to `none.md`, which does not exist"]);
    }

    #[test]
    fn ignores_links_in_code() {
        assert!(links("```\na[0](none)\n```").is_empty());
    }

    #[test]
    fn rejects_other_rust_version() {
        let found: Vec<String> = other_versions("needs Rust 1.80 or later", "1.95").collect();
        assert_eq!(found, ["1: says Rust 1.80, Cargo.toml says 1.95"]);
    }

    #[test]
    fn accepts_stated_rust_version() {
        assert_eq!(other_versions("Rust 1.95", "1.95").count(), 0);
    }
}

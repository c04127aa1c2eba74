//! Writes the test vectors of the spec, or compares them with those that are committed.
//!
//! ```text
//! cargo run -p cmf-tests --bin vectors -- [--check] [DIR]
//! ```
//!
//! `DIR` is `spec/vectors` by default. Vectors in its folders `accept` and `reject` that are no
//! longer generated are deleted. With `--check` nothing is written, and the exit status is 1 when
//! a file differs, is missing or is too many.

use cmf_tests::vectors::{case::Files, generate};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = arguments.iter().any(|a| a == "--check");
    let mut directories = arguments.iter().filter(|a| *a != "--check");
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/vectors");
    let directory = PathBuf::from(directories.next().map_or(default, String::as_str));
    if directories.next().is_some() {
        return Err("usage: vectors [--check] [DIR]".into());
    }
    let files = generate()?;
    let bytes: usize = files.values().map(Vec::len).sum();
    if !check {
        write(&directory, &files)?;
        println!("{} files of {bytes} bytes in {}", files.len(), directory.display());
        return Ok(ExitCode::SUCCESS);
    }
    let differences = compare(&directory, &files)?;
    for difference in &differences {
        eprintln!("{difference}");
    }
    println!("{} files of {bytes} bytes, {} differences", files.len(), differences.len());
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(directory: &Path, files: &Files) -> io::Result<()> {
    for path in present(directory)? {
        if !files.contains_key(&path) {
            fs::remove_file(directory.join(path))?;
        }
    }
    for (path, bytes) in files {
        let path = directory.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, bytes)?;
    }
    Ok(())
}

fn compare(directory: &Path, files: &Files) -> io::Result<Vec<String>> {
    let present = present(directory)?;
    let mut differences: Vec<String> = present
        .iter()
        .filter(|path| !files.contains_key(*path))
        .map(|path| format!("{} is not generated", path.display()))
        .collect();
    for (path, bytes) in files {
        if !present.contains(path) {
            differences.push(format!("{} is missing", path.display()));
        } else if fs::read(directory.join(path))? != *bytes {
            differences.push(format!("{} differs", path.display()));
        }
    }
    Ok(differences)
}

/// All vectors below `directory`, relative to it; none when it does not exist.
fn present(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::from("accept"), PathBuf::from("reject")];
    while let Some(folder) = pending.pop() {
        let entries = match fs::read_dir(directory.join(&folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "cmf" || e == "json") {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

//! Decodes the worked example of every encoding page of the spec and compares it with the values
//! that the page prints.

use cmf_format::ErrorKind;
use cmf_format::encoding::{RawNode, TABLE, View};
use std::borrow::Cow;
use std::path::Path;

type Failure = Box<dyn std::error::Error>;

#[derive(Default)]
struct Example {
    encoding: String,
    version: u16,
    rows: u64,
    cols: u64,
    descriptor: Vec<u8>,
    segments: Vec<Vec<u8>>,
    children: Vec<Example>,
    values: Vec<f32>,
}

fn hex(digits: &str) -> Result<Vec<u8>, Failure> {
    digits.split_whitespace().map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect()
}

/// Takes the lines that are indented by two spaces more, without that indent.
fn indented<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Vec<&'a str> {
    let mut inner = Vec::new();
    while let Some(line) = lines.next_if(|line| line.starts_with("  ")) {
        inner.push(&line[2..]);
    }
    inner
}

fn parse(lines: &[&str]) -> Result<Example, Failure> {
    let mut example = Example::default();
    let mut lines = lines.iter().copied().peekable();
    while let Some(line) = lines.next() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "node" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let [name, "version", version, "rows", rows, "cols", cols] = words[..] else {
                    return Err(format!("not a node line: {line}").into());
                };
                example.encoding = name.to_owned();
                (example.version, example.rows, example.cols) =
                    (version.parse()?, rows.parse()?, cols.parse()?);
            }
            "descriptor" => example.descriptor = hex(rest)?,
            "segment" => example.segments.push(hex(rest.split_once(' ').map_or("", |(_, bytes)| bytes))?),
            "child" => example.children.push(parse(&indented(&mut lines))?),
            "values" => {
                for row in indented(&mut lines) {
                    for value in row.split_whitespace() {
                        example.values.push(value.parse()?);
                    }
                }
            }
            _ => return Err(format!("not an example line: {line}").into()),
        }
    }
    Ok(example)
}

fn open(example: &Example) -> Result<View<'_>, Failure> {
    let encoding = TABLE.iter().find(|(_, _, name)| *name == example.encoding);
    Ok(View::open(RawNode {
        encoding: encoding.ok_or_else(|| format!("no encoding {}", example.encoding))?.0,
        version: example.version,
        rows: example.rows,
        cols: example.cols,
        descriptor: &example.descriptor,
        segments: example.segments.iter().map(|s| Cow::Borrowed(s.as_slice())).collect(),
        children: example.children.iter().map(open).collect::<Result<_, _>>()?,
    })?)
}

fn page(name: &str) -> Result<String, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/encodings").join(name);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// The fenced blocks of the page's worked example.
fn examples(page: &str) -> Result<Vec<Example>, Failure> {
    let (_, section) = page.split_once("\n## Worked example\n").ok_or("no worked example")?;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut found = Vec::new();
    for block in section.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").ok_or("an open block")?;
        found.push(parse(&block.lines().collect::<Vec<_>>())?);
    }
    Ok(found)
}

#[test]
fn worked_examples_decode_to_their_values() -> Result<(), Failure> {
    for (_, _, name) in TABLE {
        let examples = examples(&page(&format!("{name}.md"))?)?;
        assert!(!examples.is_empty(), "{name}.md shows no bytes");
        for example in examples {
            let view = open(&example)?;
            let mut decoded = vec![f32::NAN; view.rows() * view.cols()];
            view.decode_rows(0..view.rows(), &mut decoded)?;
            view.verify()?;
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&decoded), bits(&example.values), "{name}: {decoded:?}");
        }
    }
    Ok(())
}

#[test]
fn pages_have_the_fixed_headings() -> Result<(), Failure> {
    let headings = [
        "Purpose",
        "Descriptor",
        "Segments",
        "Children",
        "Decode",
        "Row reads",
        "Checks at open",
        "Checks on payload",
        "Worked example",
        "Carries",
    ];
    for (id, version, name) in TABLE {
        let page = page(&format!("{name}.md"))?;
        let found: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(found, headings, "{name}.md");
        assert!(page.contains(&format!("Encoding id {id}, version {version},")), "{name}.md");
    }
    Ok(())
}

#[test]
fn example_with_a_cut_segment_is_refused() -> Result<(), Failure> {
    let mut examples = examples(&page("dense.md")?)?;
    let example = examples.first_mut().ok_or("no example")?;
    example.segments[0].pop();
    let error = open(example).err().ok_or("opened")?;
    let kind = error.downcast_ref::<cmf_format::Error>().map(cmf_format::Error::kind);
    assert_eq!(kind, Some(ErrorKind::Structure));
    Ok(())
}

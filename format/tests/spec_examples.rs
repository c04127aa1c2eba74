//! Decodes the worked example of every encoding page of the spec and compares it with the values
//! that the page prints.

use cmf_format::ErrorKind;
use cmf_format::encoding::{KeepBudget, RawNode, TABLE, View};
use cmf_format::transform::{Side, Signs, Transform, apply_all, left_multiply, right_multiply};
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

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
        keep: KeepBudget::new(0),
    })?)
}

fn page(name: &str) -> Result<String, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec").join(name);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// The fenced blocks of the page's worked example.
fn blocks(page: &str) -> Result<Vec<Vec<&str>>, Failure> {
    let (_, section) = page.split_once("\n## Worked example\n").ok_or("no worked example")?;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut found = Vec::new();
    for block in section.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").ok_or("an open block")?;
        found.push(block.lines().collect());
    }
    Ok(found)
}

fn examples(page: &str) -> Result<Vec<Example>, Failure> {
    blocks(page)?.iter().map(|lines| parse(lines)).collect()
}

fn numbers<T: FromStr<Err: std::error::Error + 'static>>(words: &str) -> Result<Vec<T>, Failure> {
    words.split_whitespace().map(|word| Ok(word.parse()?)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn worked_examples_decode_to_their_values() -> Result<(), Failure> {
    for (_, _, name) in TABLE {
        let examples = examples(&page(&format!("encodings/{name}.md"))?)?;
        assert!(!examples.is_empty(), "{name}.md shows no bytes");
        for example in examples {
            let view = open(&example)?;
            let mut decoded = vec![f32::NAN; view.rows() * view.cols()];
            view.decode_rows(0..view.rows(), &mut decoded)?;
            view.verify()?;
            assert_eq!(bits(&decoded), bits(&example.values), "{name}: {decoded:?}");
        }
    }
    Ok(())
}

/// The transform of a line such as `sign_hadamard block 4 seed 7`, for vectors of `size`.
fn transform(line: &str, size: usize) -> Result<Transform, Failure> {
    let words: Vec<&str> = line.splitn(5, ' ').collect();
    Ok(match words[..] {
        ["scale", "factors", ..] => Transform::scale(numbers(&line["scale factors".len()..])?),
        ["permute", "indices", ..] => Transform::permute(numbers(&line["permute indices".len()..])?)?,
        ["sign_hadamard", "block", block, "seed", seed] => {
            Transform::sign_hadamard(size, block.parse()?, seed.parse()?)?
        }
        ["sign_hadamard", "block", block, "signs", signs] => {
            Transform::stored_sign_hadamard(size, block.parse()?, &hex(signs)?)?
        }
        _ => return Err(format!("not a transform: {line}").into()),
    })
}

#[test]
fn worked_example_of_transforms_has_its_values() -> Result<(), Failure> {
    let page = page("transforms.md")?;
    let blocks = blocks(&page)?;
    let [lines] = &blocks[..] else { return Err("expected one example".into()) };
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let (mut sum, mut values, mut x, mut y) = (vec![], vec![], vec![], vec![]);
    let mut lines = lines.iter().copied().peekable();
    while let Some(line) = lines.next() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "matrix" => assert_eq!(rest, "rows 4 cols 4"),
            "input" => inputs.push(transform(rest, 4)?),
            "output" => outputs.push(transform(rest, 4)?),
            "sum" => sum = numbers::<f32>(&indented(&mut lines).join(" "))?,
            "values" => values = numbers::<f32>(&indented(&mut lines).join(" "))?,
            "x" => x = numbers::<f32>(rest)?,
            "y" => y = numbers::<f32>(rest)?,
            _ => return Err(format!("not an example line: {line}").into()),
        }
    }
    let product = |m: &[f32], x: &[f32]| -> Vec<f32> {
        m.chunks(4).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    };

    let mut inner = sum.clone();
    right_multiply(&inputs, 4, &mut inner)?;
    let mut source = |rows: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&inner[rows.start * 4..rows.end * 4]);
        Ok(())
    };
    let mut decoded = vec![0.0; 16];
    left_multiply(&outputs, 0..4, 4, &mut decoded, &mut source)?;
    assert_eq!(bits(&decoded), bits(&values), "{decoded:?}");

    assert_eq!(product(&values, &x), y);
    apply_all(&inputs, Side::Input, &mut x)?;
    let mut stepped = product(&sum, &x);
    apply_all(&outputs, Side::Output, &mut stepped)?;
    assert_eq!(stepped, y);
    assert!(page.contains(&format!("0x{:016X}", Signs::Seeded(7).word(0))));
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
    let has_headings = |name: &str| -> Result<String, Failure> {
        let page = page(name)?;
        let found: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(found, headings, "{name}");
        Ok(page)
    };
    for (id, version, name) in TABLE {
        let page = has_headings(&format!("encodings/{name}.md"))?;
        assert!(page.contains(&format!("Encoding id {id}, version {version},")), "{name}.md");
    }
    has_headings("transforms.md")?;
    Ok(())
}

#[test]
fn example_with_a_cut_segment_is_refused() -> Result<(), Failure> {
    let mut examples = examples(&page("encodings/dense.md")?)?;
    let example = examples.first_mut().ok_or("no example")?;
    example.segments[0].pop();
    let error = open(example).err().ok_or("opened")?;
    let kind = error.downcast_ref::<cmf_format::Error>().map(cmf_format::Error::kind);
    assert_eq!(kind, Some(ErrorKind::Structure));
    Ok(())
}

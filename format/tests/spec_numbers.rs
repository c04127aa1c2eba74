//! Compares every number that the pages of the spec print with the code.

use cmf_format::encoding::TABLE;
use cmf_format::wire::*;
use cmf_format::{Compression, DType, ErrorKind, Limits, WriteOptions};
use core::mem::offset_of;
use std::path::Path;

type Failure = Box<dyn std::error::Error>;
type Outcome = Result<(), Failure>;

fn page(name: &str) -> Result<String, Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec").join(name);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// The text from the heading that begins with `heading` up to the next heading of any level.
fn section<'p>(page: &'p str, heading: &str) -> Result<&'p str, Failure> {
    let start = page.find(&format!("\n{heading}")).ok_or_else(|| format!("no section {heading}"))? + 1;
    let text = &page[start..];
    let body = text.find('\n').map_or("", |end| &text[end..]);
    Ok(body.find("\n#").map_or(body, |end| &body[..end]))
}

/// Rows of the tables of a section whose header begins with `first`: cells without backquotes.
fn rows(section: &str, first: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
        inside = line.starts_with('|') && (inside || cells.first().is_some_and(|c| c == first));
        if inside && cells.first().is_some_and(|c| c != first && !c.starts_with("---")) {
            found.push(cells);
        }
    }
    found
}

/// Name, offset and size of each field of a record.
type Field = (&'static str, usize, usize);

macro_rules! fields {
    ($record:ident: $($field:ident)*) => {{
        let record = <$record as bytemuck::Zeroable>::zeroed();
        (
            vec![$((stringify!($field), offset_of!($record, $field), size_of_val(&record.$field)),)*],
            size_of::<$record>(),
        )
    }};
}

fn check_fields(page: &str, heading: &str, (fields, size): (Vec<Field>, usize)) -> Outcome {
    let printed = rows(section(page, heading)?, "offset");
    let printed: Vec<(&str, usize, usize)> = printed
        .iter()
        .map(|cells| Ok((cells[2].as_str(), cells[0].parse()?, cells[1].parse()?)))
        .collect::<Result<_, Failure>>()?;
    assert_eq!(printed, fields, "{heading}");
    let end = fields.last().map(|(_, offset, bytes)| offset + bytes);
    assert_eq!(end, Some(size), "{heading}: fields fill the record");
    Ok(())
}

#[test]
fn record_fields() -> Outcome {
    let page = page("container.md")?;
    let check = |heading: &str, fields| check_fields(&page, heading, fields);
    check(
        "### 3.2 ",
        fields!(Header: magic major minor edition alignment_bytes file_bytes directory_offset directory_bytes
            must_understand may_ignore directory_hash chunk_group_bytes chunk_hash_segment table_count reserved),
    )?;
    check("### 3.4 ", fields!(TableRecord: kind flags record_bytes reserved offset count))?;
    check("### 4.3 ", fields!(AttributeRecord: name media_type segment flags reserved))?;
    check("### 4.4 ", fields!(ArchiveRecord: name identity kind flags file_bytes reserved))?;
    check(
        "### 4.5 ",
        fields!(TensorRecord: name dtype rank flags first_extent archive first_matrix matrix_count elements
            reserved),
    )?;
    check(
        "### 4.6 ",
        fields!(MatrixRecord: rows cols first_term term_count first_transform input_transforms
            output_transforms first_unit unit_count reserved),
    )?;
    check("### 4.7 ", fields!(TransformRecord: kind flags size block seed node segment reserved))?;
    check("### 4.8 ", fields!(TermRecord: node level flags row_start col_start reserved))?;
    check(
        "### 4.9 ",
        fields!(NodeRecord: encoding version flags rows cols descriptor_offset descriptor_bytes first_ref
            segment_count child_count reserved),
    )?;
    check(
        "### 4.12 ",
        fields!(SegmentRecord: offset stored_bytes decoded_bytes first_chunk_hash compression reserved flags
            hash),
    )?;
    check(
        "### 4.13 ",
        fields!(UnitRecord: matrix level flags first_term term_count row_start rows resident_bytes reserved),
    )?;
    check("### 4.14 ", fields!(ScheduleRecord: unit flags cumulative_bytes expected_loss reserved))
}

fn record_bytes(table: Table) -> usize {
    match table {
        Table::Strings | Table::Descriptors => 1,
        Table::Refs => size_of::<U32>(),
        Table::Extents => size_of::<U64>(),
        Table::Attributes => size_of::<AttributeRecord>(),
        Table::Archives => size_of::<ArchiveRecord>(),
        Table::Tensors => size_of::<TensorRecord>(),
        Table::Matrices => size_of::<MatrixRecord>(),
        Table::Transforms => size_of::<TransformRecord>(),
        Table::Terms => size_of::<TermRecord>(),
        Table::Nodes => size_of::<NodeRecord>(),
        Table::Segments => size_of::<SegmentRecord>(),
        Table::Units => size_of::<UnitRecord>(),
        Table::Schedule => size_of::<ScheduleRecord>(),
    }
}

#[test]
fn tables() -> Outcome {
    let container = page("container.md")?;
    let ids = page("ids.md")?;
    let printed = [rows(section(&container, "## 4 ")?, "kind"), rows(section(&ids, "## Tables")?, "kind")];
    for list in printed {
        let list: Vec<_> = list.iter().map(|c| (c[0].clone(), c[1].clone(), c[2].clone())).collect();
        let expected: Vec<_> = Table::ALL
            .iter()
            .map(|t| (t.number().to_string(), t.name().to_owned(), record_bytes(*t).to_string()))
            .collect();
        assert_eq!(list, expected);
    }
    for table in Table::ALL {
        let heading = format!("### 4.{} {}\n", table.number(), table.name());
        assert!(container.contains(&heading), "{heading}");
    }
    Ok(())
}

#[test]
fn numbers_of_the_header() -> Outcome {
    let page = page("container.md")?;
    let magic: Vec<String> = MAGIC.iter().map(|b| format!("{b:02X}")).collect();
    assert!(section(&page, "### 3.1 ")?.contains(&format!("    {}\n", magic.join(" "))));
    let fields = rows(section(&page, "### 3.2 ")?, "offset");
    let value = |name: &str| {
        let row = fields.iter().find(|row| row[2] == name).ok_or_else(|| format!("no field {name}"))?;
        Ok::<_, Failure>(row[3].clone())
    };
    assert_eq!(value("major")?, format!("u16: {MAJOR}"));
    assert!(value("minor")?.starts_with(&format!("u16: {MINOR};")));
    assert_eq!(value("directory_offset")?, format!("u64: {HEADER_BYTES}"));
    assert!(page.starts_with(&format!("# The container\n\nContainer version {MAJOR}.{MINOR}.")));
    assert!(page.contains(&format!("- `NONE` is {NONE} ")));
    let options = WriteOptions::default();
    let stated = format!(
        "`alignment_bytes` is {} and `chunk_group_bytes` is {} unless",
        options.alignment_bytes, options.chunk_group_bytes
    );
    assert!(section(&page, "## 7 ")?.contains(&stated), "{stated}");
    Ok(())
}

#[test]
fn encodings() -> Outcome {
    let ids = page("ids.md")?;
    let printed: Vec<_> = rows(section(&ids, "## Encodings")?, "id")
        .into_iter()
        .filter(|row| row[3] != "reserved")
        .map(|row| (row[0].clone(), row[2].clone(), row[1].clone()))
        .collect();
    let coded: Vec<_> = TABLE
        .iter()
        .map(|(id, version, name)| (id.to_string(), version.to_string(), (*name).to_owned()))
        .collect();
    assert_eq!(printed, coded);
    let editions = page("editions.md")?;
    assert!(editions.contains(&format!("\n## {EDITION}\n")));
    let listed: Vec<_> = TABLE.iter().map(|(id, version, name)| format!("{id} `{name}` {version}")).collect();
    assert!(editions.contains(&format!("| encodings | {} |", listed.join(", "))), "{listed:?}");
    Ok(())
}

#[test]
fn element_types() -> Outcome {
    let expected: Vec<_> = DType::ALL
        .iter()
        .map(|d| [(*d as u16).to_string(), d.name().to_owned(), d.bytes().to_string()])
        .collect();
    for (name, heading) in [("ids.md", "## Element types"), ("encodings/dense.md", "### Element types")] {
        let page = page(name)?;
        let printed: Vec<_> = rows(section(&page, heading)?, "number")
            .into_iter()
            .map(|row| [row[0].clone(), row[1].clone(), row[2].clone()])
            .collect();
        assert_eq!(printed, expected, "{name}");
    }
    let ids = page("ids.md")?;
    for row in rows(section(&ids, "## Element types")?, "number") {
        assert_eq!(DType::from_safetensors_name(&row[3]).map(DType::name), Some(row[1].as_str()));
    }
    Ok(())
}

#[test]
fn other_numbers() -> Outcome {
    let ids = page("ids.md")?;
    let numbered = |heading: &str, first: &str| -> Result<Vec<(String, String)>, Failure> {
        let rows = rows(section(&ids, heading)?, first);
        Ok(rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect())
    };
    let pair = |number: u32, name: &str| (number.to_string(), name.to_owned());
    assert_eq!(
        numbered("## Transforms", "kind")?,
        [
            pair(TRANSFORM_SCALE, "scale"),
            pair(TRANSFORM_SIGN_HADAMARD, "sign_hadamard"),
            pair(TRANSFORM_PERMUTE, "permute")
        ]
    );
    assert_eq!(
        numbered("## Compressions", "number")?,
        [pair(Compression::Raw as u32, "raw"), pair(Compression::Zstd as u32, "zstd")]
    );
    assert_eq!(numbered("## Archives", "kind")?, [pair(ARCHIVE_SHARD, "shard"), pair(ARCHIVE_BASE, "base")]);
    let bits: Vec<String> =
        rows(section(&ids, "## Bits")?, "where").into_iter().map(|row| row[1].clone()).collect();
    let coded = [TABLE_REQUIRED, TENSOR_DELTA, TERM_OPTIONAL.into(), SCHEDULE_LOSS];
    assert_eq!(bits, coded.map(|bit| bit.trailing_zeros().to_string()));
    Ok(())
}

#[test]
fn limits() -> Outcome {
    let page = page("container.md")?;
    let section = section(&page, "## 8 ")?;
    // Without `..`, so that a new limit cannot be forgotten here.
    let Limits {
        directory_bytes,
        records,
        decoded_segment_bytes,
        decoded_tensor_bytes,
        kept_tensor_bytes,
        name_bytes,
        rank,
        transforms,
        node_depth,
        node_tree,
    } = Limits::default();
    let expected = [
        ("directory_bytes", directory_bytes),
        ("records", records),
        ("decoded_segment_bytes", decoded_segment_bytes),
        ("decoded_tensor_bytes", decoded_tensor_bytes),
        ("kept_tensor_bytes", kept_tensor_bytes),
        ("name_bytes", name_bytes.into()),
        ("rank", rank.into()),
        ("transforms", transforms.into()),
        ("node_depth", node_depth.into()),
        ("node_tree", node_tree.into()),
    ];
    let printed: Vec<_> =
        rows(section, "limit").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(printed, expected.map(|(name, value)| (name.to_owned(), value.to_string())));
    let least = format!(
        "names of {name_bytes} bytes, rank {rank}, {transforms} transforms on a side, nodes that nest {node_depth} deep and trees of {node_tree} nodes"
    );
    assert!(section.contains(&least), "{least}");
    Ok(())
}

#[test]
fn error_kinds() -> Outcome {
    let kinds = [
        ErrorKind::NotCmf,
        ErrorKind::Truncated,
        ErrorKind::UnsupportedVersion,
        ErrorKind::Unsupported,
        ErrorKind::Limit,
        ErrorKind::Structure,
        ErrorKind::Hash,
        ErrorKind::Value,
        ErrorKind::Io,
        ErrorKind::Argument,
    ];
    let page = page("container.md")?;
    let printed: Vec<_> =
        rows(section(&page, "## 10 ")?, "kind").into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(printed, kinds.map(|kind| kind.name().to_owned()));
    Ok(())
}

/// The fragment that GitHub gives a heading.
fn fragment(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_to_headings() -> Outcome {
    let names = ["README", "container", "ids", "editions", "security", "ERRATA", "CHANGES"];
    for name in names {
        let text = page(&format!("{name}.md"))?;
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let Some((file, anchor)) = target.split_once('#') else { continue };
            let linked = if file.is_empty() { text.clone() } else { page(file)? };
            let found = linked.lines().any(|line| line.starts_with('#') && fragment(line) == anchor);
            assert!(found, "{name}.md links to {target}");
        }
    }
    Ok(())
}

/// All sources of the crate.
fn sources() -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push((path.display().to_string(), std::fs::read_to_string(&path)?));
            }
        }
    }
    Ok(found)
}

#[test]
fn comments_cite_sections_that_exist() -> Outcome {
    let container = page("container.md")?;
    let mut cited = 0;
    for (path, text) in sources()? {
        for rest in text.split("(spec: container, ").skip(1) {
            let citation: String = rest.chars().take_while(|c| *c != ')').collect();
            let numbers = citation.split(|c: char| !c.is_ascii_digit() && c != '.');
            for number in numbers.map(|n| n.trim_matches('.')).filter(|n| !n.is_empty()) {
                let found = ["## ", "### "].iter().any(|h| container.contains(&format!("\n{h}{number} ")));
                assert!(found, "{path} cites container, {number}");
                cited += 1;
            }
        }
    }
    assert!(cited > 10, "{cited} citations");
    Ok(())
}

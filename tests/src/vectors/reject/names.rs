//! Strings and the names that they hold (spec: container, 4.1, 4.3, 4.4).

use super::{Rejects, bases};
use crate::vectors::image::{Image, Parts, table};
use crate::vectors::naive::cycle;
use cmf_format::{DType, Result};

/// The archive of one tensor and one attribute with other strings: tensor name, attribute name,
/// media type.
fn named(parts: &Parts, tensor: &[u8], attribute: &[u8], media_type: &[u8]) -> Image {
    let mut all = vec![tensor, attribute, media_type];
    all.sort_unstable();
    all.dedup();
    let place = |text: &[u8]| {
        let offset: usize = all.iter().take_while(|s| **s != text).map(|s| s.len()).sum();
        [(offset as u32).to_le_bytes(), (text.len() as u32).to_le_bytes()].concat()
    };
    parts
        .clone()
        .table(table::STRINGS, |t| t.bytes = all.concat())
        .table(table::TENSORS, |t| t.bytes[..8].copy_from_slice(&place(tensor)))
        .table(table::ATTRIBUTES, |t| {
            t.bytes[..8].copy_from_slice(&place(attribute));
            t.bytes[8..16].copy_from_slice(&place(media_type));
        })
        .build()
}

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    let base = {
        let mut builder = cmf_format::ArchiveBuilder::new(cmf_format::WriteOptions {
            alignment_bytes: 64,
            chunk_group_bytes: 1024,
        });
        let piece = cycle(DType::U8, 1, 1, 0);
        builder.tensor(bases::tensor("w", DType::U8, &[1, 1], vec![bases::matrix(&piece)]));
        builder.attribute("a.txt", "text/plain", b"a".to_vec());
        Parts::of(&builder.to_vec()?)
    };
    let tensor = |name: &[u8]| named(&base, name, b"a.txt", b"text/plain");
    let attribute = |name: &[u8]| named(&base, b"w", name, b"text/plain");

    let long = vec![b'n'; 4097];
    out.parse("limit", "name", "a name of 4097 bytes", tensor(&long).bytes);
    for (name, text) in [
        ("empty", ""),
        ("nul", "a\0b"),
        ("line_feed", "a\nb"),
        ("delete", "a\u{7F}"),
        ("c1_control", "a\u{85}"),
        ("right_to_left_override", "a\u{202E}b"),
        ("right_to_left_mark", "a\u{200F}"),
        ("isolate", "\u{2068}a"),
        ("arabic_letter_mark", "\u{61C}a"),
        ("parent", "../a"),
        ("parent_within", "a/../b"),
        ("current", "./a"),
        ("dots_at_end", "a/.."),
    ] {
        out.structure(
            &format!("tensor_name_{name}"),
            "a tensor name that is not allowed",
            tensor(text.as_bytes()),
        );
    }
    let too_long = "f".repeat(256);
    for (name, text) in [
        ("slash", "a/b"),
        ("backslash", "a\\b"),
        ("drive", "C:x"),
        ("wildcard", "a*"),
        ("parent", ".."),
        ("device", "nul.json"),
        ("device_with_space", "CON .txt"),
        ("numbered_device", "com1"),
        ("superscript_device", "LPT³.x"),
        ("full_stop_at_end", "a."),
        ("space_at_end", "a "),
        ("space_at_start", " a"),
        ("too_long", too_long.as_str()),
    ] {
        out.structure(
            &format!("file_name_{name}"),
            "an attribute name that is no file name",
            attribute(text.as_bytes()),
        );
    }
    for (name, text) in
        [("empty", &b""[..]), ("control", b"text\tplain"), ("not_ascii", "text/\u{e9}".as_bytes())]
    {
        let image = named(&base, b"w", b"a.txt", text);
        out.structure(&format!("media_type_{name}"), "no media type", image);
    }
    heap(out, &base);
    ascending(out)
}

fn heap(out: &mut Rejects<'_>, base: &Parts) {
    // "a.txt", "text/plain", "w".
    let strings = |text: &[u8]| base.clone().table(table::STRINGS, |t| t.bytes = text.to_vec());
    out.structure("strings_not_utf8", "the strings are not UTF-8", strings(b"a.txttext/plain\xFF").build());
    out.structure(
        "strings_unused_end",
        "bytes at the end that no record names",
        base.clone().push(table::STRINGS, b"x").build(),
    );
    out.structure(
        "strings_not_used_whole",
        "a record names a part of a string, and nothing names the rest",
        base.clone().build().u32(table::ATTRIBUTES, 0, 12, 9),
    );
    out.structure("strings_overlap", "two strings overlap", {
        base.clone().build().u32(table::ATTRIBUTES, 0, 8, 4).u32(table::ATTRIBUTES, 0, 12, 11)
    });
    out.structure("strings_order", "strings that do not ascend", {
        // "w" before "a.txt".
        strings(b"wa.txttext/plain").build().u32(table::TENSORS, 0, 0, 0).u32(table::ATTRIBUTES, 0, 0, 1).u32(
            table::ATTRIBUTES,
            0,
            8,
            6,
        )
    });
    out.structure("strings_twice", "one string twice", {
        let twice = strings(b"a.txtww").build();
        twice.u32(table::TENSORS, 0, 0, 6).u32(table::ATTRIBUTES, 0, 8, 5).u32(table::ATTRIBUTES, 0, 12, 1)
    });
    out.structure("string_beyond_table", "a string that passes the end of the table", {
        base.clone().build().u32(table::TENSORS, 0, 4, 2)
    });
    out.structure("string_offset_overflow", "offset and length of a string overflow 32 bits", {
        base.clone().build().u32(table::TENSORS, 0, 0, u32::MAX)
    });
    out.structure("string_within_character", "a string that begins within a character", {
        strings("a.txttext/plain\u{e9}".as_bytes()).build().u32(table::TENSORS, 0, 0, 16)
    });
}

fn ascending(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::plain()?;
    // Strings: 1.txt 2.txt a b c e text/plain.
    out.structure("tensors_twice", "two tensors of one name", base.image().u32(table::TENSORS, 1, 0, 10));
    out.structure("tensors_order", "tensors that do not ascend in name", {
        base.image().u32(table::TENSORS, 0, 0, 11).u32(table::TENSORS, 1, 0, 10)
    });
    out.structure(
        "attributes_twice",
        "two attributes of one name",
        base.image().u32(table::ATTRIBUTES, 1, 0, 0),
    );
    out.structure("attributes_order", "attributes that do not ascend in name", {
        base.image().u32(table::ATTRIBUTES, 0, 0, 5).u32(table::ATTRIBUTES, 1, 0, 0)
    });
    let base = bases::references()?;
    // Strings: b.cmf delta here s.cmf shard.
    out.structure("archives_twice", "two archives of one name", base.image().u32(table::ARCHIVES, 1, 0, 0));
    out.structure("archives_order", "archives that do not ascend in name", {
        base.image().u32(table::ARCHIVES, 0, 0, 14).u32(table::ARCHIVES, 1, 0, 0)
    });
    out.structure("archive_name_path", "an archive that is named by a path", {
        base.parts().table(table::STRINGS, |t| t.bytes[1] = b'/').build()
    });
    out.structure(
        "archive_reserved",
        "the reserved field of an archives record is not 0",
        base.image().u64(table::ARCHIVES, 0, 56, 1),
    );
    out.parse(
        "unsupported",
        "archive_kind",
        "an archives record of an unknown kind",
        base.image().u32(table::ARCHIVES, 2, 40, 3).seal(),
    );
    out.parse(
        "unsupported",
        "archive_flag",
        "an unknown flag of an archives record",
        base.image().u32(table::ARCHIVES, 1, 44, 1).seal(),
    );
    Ok(())
}

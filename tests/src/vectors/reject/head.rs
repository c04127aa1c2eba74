//! Header and table records (spec: container, 3).

use super::{Rejects, bases};
use crate::vectors::image::{Image, TableParts, table};
use cmf_format::Result;

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    foreign(out)?;
    header(out)?;
    tables(out)
}

fn foreign(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    let mut not = |name: &str, why: &str, bytes: &[u8]| out.parse("not_cmf", name, why, bytes.to_vec());
    not("empty", "a file of no bytes", b"");
    not("gguf", "a GGUF file", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    not("safetensors", "a safetensors file", b"\x02\0\0\0\0\0\0\0{}");
    not("zip", "a zip archive", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    not("pickle", "a Python pickle", b"\x80\x04N.");
    not("cortiq", "the other format with this file name extension", b"CMF\x01\0\0\0\0\0\0\0\0\0\0\0\0");
    let bytes = base.bytes();
    not(
        "seven_bits",
        "the high bit of every byte was lost",
        &bytes.iter().map(|b| b & 0x7F).collect::<Vec<_>>(),
    );
    let text: Vec<u8> = bytes.iter().filter(|b| **b != 0x0D).copied().collect();
    not("text_mode", "every CR was lost", &text);
    let mut last = bytes;
    last[11] = 0x0A;
    not("last_byte", "the last byte of the magic differs", &last);
    Ok(())
}

fn header(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    let bytes = base.bytes();
    out.parse("truncated", "magic_only", "the file ends within the magic", bytes[..5].to_vec());
    out.parse("truncated", "header_cut", "the file ends within the header", bytes[..255].to_vec());
    out.parse("truncated", "directory_cut", "the file ends within the directory", bytes[..300].to_vec());
    out.parse(
        "truncated",
        "last_byte_missing",
        "the file is one byte short of `file_bytes`",
        bytes[..bytes.len() - 1].to_vec(),
    );
    let beyond = base.image().put(40, &(bytes.len() as u64 - 255).to_le_bytes());
    out.parse(
        "truncated",
        "directory_beyond_file",
        "the directory would end one byte after the file",
        beyond.bytes,
    );

    for major in [0u16, 2] {
        let image = base.image().put(12, &major.to_le_bytes());
        out.parse("unsupported_version", &format!("major_{major}"), "another major version", image.seal());
    }
    for (name, byte) in [("lowest", [1, 0, 0, 0, 0, 0, 0, 0]), ("highest", [0, 0, 0, 0, 0, 0, 0, 0x80])] {
        let image = base.image().put(48, &byte);
        out.parse(
            "unsupported",
            &format!("must_understand_{name}"),
            "a feature bit that must be understood",
            image.seal(),
        );
    }

    for alignment in [0u32, 32, 96, 131_072] {
        let image = base.image().put(20, &alignment.to_le_bytes());
        out.structure(
            &format!("alignment_{alignment}"),
            "`alignment_bytes` is no power of two from 64 to 65536",
            image,
        );
    }
    for group in [0u32, 512, 1025, 1 << 31] {
        let image = base.image().put(96, &group.to_le_bytes());
        out.structure(
            &format!("chunk_group_{group}"),
            "`chunk_group_bytes` is no power of two from 1024 to 2^30",
            image,
        );
    }
    out.structure(
        "directory_offset",
        "`directory_offset` is not 256",
        base.image().put(32, &264u64.to_le_bytes()),
    );
    out.structure("header_reserved_first", "the first reserved byte is not 0", base.image().put(108, &[1]));
    out.structure("header_reserved_last", "the last reserved byte is not 0", base.image().put(255, &[1]));
    let mut longer = bytes.clone();
    longer.push(0);
    out.parse("structure", "bytes_after_end", "the file is longer than `file_bytes`", longer.clone());
    let stated = Image { bytes: longer }.put(24, &(bytes.len() as u64 + 1).to_le_bytes());
    out.structure("bytes_after_last_segment", "the last segment ends before `file_bytes`", stated);

    let image = base.image().put(40, &((1u64 << 30) + 1).to_le_bytes());
    out.parse(
        "limit",
        "directory_bytes",
        "a directory of 2^30 + 1 bytes; the limit is checked before the length of the file",
        image.bytes,
    );
    out.parse(
        "hash",
        "directory_hash",
        "the header states another hash of the directory",
        base.image().put(64, &[0; 32]).bytes,
    );
    let at = base.image().at(table::TENSORS, 0, 8);
    out.parse(
        "hash",
        "directory_changed",
        "a byte of the directory was changed",
        base.image().put(at, &[3]).bytes,
    );
    Ok(())
}

fn tables(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::nested()?;
    let record = |kind: u32| base.image().table_record(kind);
    let set = |at: usize, value: &[u8]| base.image().put(at, value);

    out.structure("table_missing", "the schedule is missing", {
        let mut parts = base.parts();
        parts.tables.pop();
        parts.build()
    });
    out.structure("table_count_zero", "no tables at all", base.image().put(104, &[0; 4]));
    out.structure("table_count_huge", "2^32 - 1 table records do not fit", base.image().put(104, &[0xFF; 4]));
    out.structure("table_twice", "two tables of one kind", set(record(table::EXTENTS), &1u32.to_le_bytes()));
    let swapped =
        set(record(table::MATRICES), &7u32.to_le_bytes()).put(record(table::TRANSFORMS), &6u32.to_le_bytes());
    out.structure("table_order", "tables that do not ascend", swapped);
    out.structure("table_kind_zero", "a table of kind 0", set(record(table::STRINGS), &[0; 4]));
    out.structure(
        "table_not_required",
        "a table of version 1 without bit 0",
        set(record(table::UNITS) + 4, &[0; 4]),
    );
    out.structure(
        "table_reserved",
        "the reserved field of a table record is not 0",
        set(record(table::UNITS) + 12, &[1]),
    );
    let offset = base.image();
    let at = record(table::TERMS) + 16;
    let stated = offset.bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
    out.structure("table_gap", "a table begins 8 bytes late", set(at, &(stated + 8).to_le_bytes()));
    out.structure("table_overlap", "a table begins 8 bytes early", set(at, &(stated - 8).to_le_bytes()));
    out.structure(
        "table_unaligned",
        "a table does not begin at a multiple of 8",
        set(at, &(stated + 1).to_le_bytes()),
    );
    out.structure("table_padding", "the bytes before a table are not 0", {
        // The string "w" is one byte; seven bytes of padding follow.
        let at = base.image().at(table::STRINGS, 1, 0);
        set(at, &[1])
    });
    out.structure(
        "table_count",
        "a table passes the end of the directory",
        set(record(table::SCHEDULE) + 24, &2u64.to_le_bytes()),
    );
    out.structure("table_size_overflow", "the size of a table overflows 64 bits", {
        set(record(table::STRINGS) + 24, &u64::MAX.to_le_bytes())
            .put(record(table::STRINGS) + 8, &[2, 0, 0, 0])
    });
    out.structure("record_too_small", "records are shorter than version 1.0 says", {
        base.parts()
            .table(table::SCHEDULE, |t| {
                t.bytes.truncate(24);
                t.record_bytes = 24;
            })
            .build()
    });
    out.structure("record_bytes_zero", "records of no bytes", set(record(table::ARCHIVES) + 8, &[0; 4]));
    for (name, kind) in [
        ("strings", table::STRINGS),
        ("extents", table::EXTENTS),
        ("refs", table::REFS),
        ("descriptors", table::DESCRIPTORS),
    ] {
        let grown = base.parts().grow(kind, 8).build();
        out.structure(&format!("grown_{name}"), "elements of this table cannot grow", grown);
    }
    out.structure("directory_longer", "the directory is longer than its tables", {
        let mut image = base.image();
        let end = 256 + u64::from_le_bytes(image.bytes[40..48].try_into().unwrap_or_default());
        // The bytes up to the first segment are zero.
        image = image.put(40, &(end - 256 + 1).to_le_bytes());
        image
    });
    out.parse(
        "limit",
        "records",
        "2^27 + 1 records in one table, which is checked before whether they fit",
        set(record(table::REFS) + 24, &((1u64 << 27) + 1).to_le_bytes()).seal(),
    );

    let with = |kind: u32, flags: u32| {
        let mut parts = base.parts();
        parts.tables.push(TableParts { kind, flags, record_bytes: 8, bytes: vec![0; 8] });
        parts.build().bytes
    };
    out.parse("unsupported", "table_required", "an unknown table that must be understood", with(15, 1));
    out.parse(
        "unsupported",
        "table_required_experimental",
        "an experimental table that must be understood",
        with(1 << 31, 1),
    );
    out.parse(
        "unsupported",
        "table_flag",
        "an unknown flag of a known table that must be understood",
        set(record(table::NODES) + 4, &[3]).seal(),
    );
    Ok(())
}

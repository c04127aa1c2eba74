//! GGUF files that must be refused, each beside the good file that it was made from.
//!
//! The classes are those of `handcrafted_file_type` in llama.cpp's `tests/test-gguf.cpp`, and what
//! has broken other readers. Names of llama.cpp's classes stand beside the tests.

mod gguf_files;

use std::error::Error;

use cmf_converters::error::ErrorKind::{self, BadArgument, BadFile, Limit, Unsupported};
use cmf_converters::gguf::{Gguf, GgufSource, Limits};
use gguf_files::{Entry, Handmade, Tensor, array, string};
use proptest::prelude::*;

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

fn read(file: &Handmade) -> Result<Gguf, cmf_converters::error::Error> {
    Gguf::read(&file.bytes(), &Limits::default())
}

fn verdict(file: &Handmade) -> Result<(), ErrorKind> {
    read(file).map(drop).map_err(|error| error.kind())
}

macro_rules! rejects {
    ($($(#[$doc:meta])* $name:ident: $kind:expr, $files:expr;)+) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            for file in $files {
                assert_eq!(verdict(&file), Err($kind));
            }
        }
    )+};
}

macro_rules! accepts {
    ($($(#[$doc:meta])* $name:ident: $files:expr;)+) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            for file in $files {
                assert_eq!(verdict(&file), Ok(()));
            }
        }
    )+};
}

fn good() -> Handmade {
    Handmade::default()
}

fn with_version(version: u32) -> Handmade {
    Handmade { version, ..good() }
}

fn with_entry(entry: Entry) -> Handmade {
    let mut file = good();
    file.entries.push(entry);
    file
}

/// A good file whose second tensor is changed.
fn with_tensor(change: impl FnOnce(&mut Tensor)) -> Handmade {
    let mut file = good();
    change(&mut file.tensors[1]);
    file
}

fn aligned(stated: Entry, alignment: usize) -> Handmade {
    Handmade { alignment, ..with_entry(stated) }
}

accepts! {
    /// HEADER_EMPTY
    accepts_a_file_of_nothing: [Handmade::empty()];
    /// KV_SUCCESS, TENSORS_SUCCESS, DATA_SUCCESS
    accepts_every_kind_of_value_and_shape: [good()];
    accepts_versions_2_and_3: [with_version(2), with_version(3)];
    /// TENSORS_CUSTOM_ALIGN, DATA_CUSTOM_ALIGN
    accepts_alignments_that_are_powers_of_two: [1, 2, 8, 64, 4096, 65_536]
        .map(|alignment| aligned(Entry::u32("general.alignment", alignment), alignment as usize));
    /// TENSORS_ZERO_DIM
    accepts_tensors_without_elements: [
        Handmade::tensor(Tensor::new("w", 0, &[3, 0], 0)),
        Handmade::tensor(Tensor::new("w", 2, &[0, 3], 0)),
    ];
    accepts_a_last_tensor_without_padding: [Handmade { missing_bytes: 28, ..good() }];
    accepts_names_that_are_not_ascii: [Handmade::tensor(Tensor::new("größe/\u{202e}..", 0, &[1], 4))];
    accepts_arrays_of_arrays_of_arrays: [
        Handmade::entry(Entry::array("a", 9, 1, &array(9, 1, &array(0, 1, &[7])))),
    ];
}

rejects! {
    /// HEADER_BAD_MAGIC
    rejects_a_foreign_magic: BadFile, [Handmade { magic: *b"FUGG", ..good() }];
    /// HEADER_BAD_VERSION_0
    rejects_version_0: BadFile, [with_version(0)];
    /// HEADER_BAD_VERSION_1
    rejects_version_1: Unsupported, [with_version(1)];
    /// HEADER_BAD_VERSION_FUTURE
    rejects_versions_of_the_future: Unsupported, [with_version(4), with_version(u32::MAX)];
    rejects_big_endian_files: Unsupported, [with_version(3u32.swap_bytes()), with_version(2u32.swap_bytes())];
    rejects_formats_before_gguf: Unsupported, [*b"lmgg", *b"fmgg", *b"tjgg", *b"algg"]
        .map(|magic| Handmade { magic, ..good() });
    /// HEADER_BAD_N_TENSORS
    rejects_more_tensors_than_fit: BadFile, [u64::MAX, 1 << 40, 100]
        .map(|count| Handmade { tensor_count: Some(count), ..good() });
    /// HEADER_BAD_N_KV
    rejects_more_entries_than_fit: BadFile, [u64::MAX, 1 << 40, 100]
        .map(|count| Handmade { entry_count: Some(count), ..good() });
    /// KV_BAD_KEY_SIZE
    rejects_keys_beyond_the_file: BadFile, [u64::MAX, 1 << 40, 1 << 20]
        .map(|len| with_entry(Entry { key_len: Some(len), ..Entry::u32("k", 0) }));
    rejects_keys_beyond_the_limit: Limit, [with_entry(Entry::u32(&"k".repeat(1025), 0))];
    /// KV_EMPTY_KEY
    rejects_empty_keys: BadFile, [with_entry(Entry::u32("", 0))];
    rejects_keys_with_nul: BadFile, [with_entry(Entry::u32("a\0b", 0))];
    rejects_keys_that_are_not_utf8: BadFile, [with_entry(Entry { key: vec![0xff], ..Entry::u32("", 0) })];
    /// KV_BAD_TYPE
    rejects_unknown_value_types: BadFile, [13, u32::MAX].map(|ty| with_entry(Entry::new("k", ty, [0; 16])));
    rejects_unknown_element_types: BadFile, [with_entry(Entry::array("k", 13, 1, &[0; 16]))];
    /// KV_BAD_VALUE_SIZE
    rejects_values_beyond_the_file: BadFile, [u64::MAX, 1 << 40, 1 << 20].into_iter().flat_map(|len| [
        with_entry(Entry::new("k", 8, len.to_le_bytes())),
        with_entry(Entry::array("k", 12, len, &[0; 8])),
        with_entry(Entry::array("k", 8, len, &string("a"))),
        with_entry(Entry::array("k", 9, len, &array(0, 1, &[1]))),
    ]);
    rejects_arrays_nested_too_deeply: Limit, [5, 1000].map(|depth| {
        with_entry(Entry::new("k", 9, (0..depth).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner))))
    });
    /// KV_DUPLICATE_KEY
    rejects_duplicate_keys: BadFile, [with_entry(Entry::u32("u32", 7))];
    /// KV_BAD_ALIGN, TENSORS_BAD_ALIGN, DATA_BAD_ALIGN
    rejects_alignments_off_the_list: BadFile, [0, 3, 13, 48, 1 << 31, u32::MAX]
        .map(|alignment| with_entry(Entry::u32("general.alignment", alignment)));
    /// KV_WRONG_TYPE_ALIGN
    rejects_alignments_of_another_type: BadFile, [
        with_entry(Entry::new("general.alignment", 5, 32i32.to_le_bytes())),
        with_entry(Entry::new("general.alignment", 8, string("32"))),
    ];
    /// TENSORS_INCONSISTENT_ALIGN, DATA_INCONSISTENT_ALIGN
    rejects_offsets_of_another_alignment: BadFile, [
        aligned(Entry::u32("general.alignment", 32), 1),
        aligned(Entry::u32("general.alignment", 32), 64),
        Handmade { alignment: 8, ..good() },
    ];
    /// TENSORS_BAD_NAME_SIZE
    rejects_names_beyond_the_file: BadFile, [u64::MAX, 1 << 40, 1 << 20]
        .map(|len| with_tensor(|tensor| tensor.name_len = Some(len)));
    rejects_names_beyond_the_limit: Limit, [with_tensor(|tensor| tensor.name = vec![b'n'; 1025])];
    rejects_names_that_are_empty_or_hold_nul: BadFile, [&b""[..], b"a\0b", b"\xc3"]
        .map(|name| with_tensor(|tensor| tensor.name = name.into()));
    /// TENSORS_BAD_N_DIMS
    rejects_more_than_4_dimensions: BadFile, [
        with_tensor(|tensor| tensor.dims = vec![32, 1, 1, 1, 1]),
        with_tensor(|tensor| tensor.dim_count = Some(u32::MAX)),
    ];
    /// TENSORS_BAD_SHAPE, TENSORS_NE_TOO_BIG
    rejects_shapes_whose_product_overflows: BadFile, [
        &[u64::MAX][..],
        &[u64::MAX, u64::MAX, u64::MAX, u64::MAX],
        &[1 << 33, 1 << 33],
        &[i64::MAX as u64, 2, 1, 1],
        &[1 << 32, 1 << 32],
        &[1 << 63],
        &[0, 1 << 63],
        &[1 << 62, 1 << 62, 0],
        &[0, 1 << 62],
        &[1 << 20, 0],
    ].map(|dims| Handmade::tensor(Tensor::new("w", 24, dims, 0)));
    /// TENSORS_NBYTES_TOO_BIG
    rejects_sizes_that_overflow: BadFile, [&[1 << 61][..], &[(1 << 60) + 1, 3], &[i64::MAX as u64]]
        .map(|dims| Handmade::tensor(Tensor::new("w", 27, dims, 0)));
    /// DATA_MEM_SIZE_OVERFLOW
    rejects_sizes_whose_sum_overflows: BadFile, [Handmade {
        tensors: ["a", "b"].map(|name| Tensor {
            offset: (name == "b").then_some(0x7fff_ffff_ffff_ffc0),
            ..Tensor::new(name, 24, &[0x7fff_ffff_ffff_ffc0], 0)
        }).into(),
        ..Handmade::empty()
    }];
    /// TENSORS_BAD_TYPE
    rejects_types_removed_or_unknown: Unsupported, [4, 5, 9, 15, 31, 36, 43, u32::MAX]
        .map(|ty| with_tensor(|tensor| tensor.ty = ty));
    rejects_rows_that_end_inside_a_block: BadFile, [
        with_tensor(|tensor| tensor.dims = vec![48, 4]),
        Handmade::tensor(Tensor::new("w", 12, &[128, 2], 144)),
    ];
    /// TENSORS_BAD_OFFSET
    rejects_offsets_beyond_the_file: BadFile, [u64::MAX, u64::MAX - 31, 1 << 40]
        .map(|offset| with_tensor(|tensor| tensor.offset = Some(offset)));
    rejects_overlapping_tensors: BadFile, [with_tensor(|tensor| tensor.offset = Some(0))];
    rejects_bytes_hidden_between_tensors: BadFile, [with_tensor(|tensor| tensor.offset = Some(64))];
    /// TENSORS_DUPLICATE_NAME
    rejects_duplicate_names: BadFile, [with_tensor(|tensor| tensor.name = b"f32".into())];
    /// DATA_NOT_ENOUGH_DATA
    rejects_data_cut_off: BadFile, [29, 64, 256].map(|missing_bytes| Handmade { missing_bytes, ..good() });
}

#[test]
fn says_where_a_tensor_ends_too_early() -> Result {
    let error = read(&Handmade { missing_bytes: 29, ..good() }).err().ok_or("was accepted")?;
    assert_eq!(error.tensor_name(), Some("scalar"));
    let start = good().bytes().len() - 32;
    assert_eq!(
        error.to_string(),
        format!(
            "tensor `scalar`: data at {start:#x}: expected 4 bytes, found 3 bytes up to the end of the file"
        )
    );
    Ok(())
}

#[test]
fn shapes_are_in_the_order_of_torch() -> Result {
    let gguf = read(&good())?;
    let shapes: Vec<_> = gguf.tensors().iter().map(|t| (t.shape(), t.rows(), t.cols())).collect();
    assert_eq!(
        shapes,
        [(&[3][..], 1, 3), (&[3, 64], 3, 64), (&[2, 2, 3, 2], 12, 2), (&[256], 1, 256), (&[], 1, 1)]
    );
    Ok(())
}

/// Writes the parts of a split model; `change` may spoil them.
fn split(change: impl FnOnce(&mut Vec<Handmade>)) -> Result<Result<GgufSource, ErrorKind>> {
    let folder = tempfile::tempdir()?;
    let mut parts: Vec<_> = (0..3)
        .map(|number| {
            let tensors = (0..2).map(|i| Tensor::new(&format!("t{number}.{i}"), 24, &[40, 2], 80));
            let mut file = Handmade { tensors: tensors.collect(), ..Handmade::empty() };
            file.entries.push(Entry::u16("split.no", number));
            file.entries.push(Entry::u16("split.count", 3));
            file.entries.push(Entry::new("split.tensors.count", 5, 6i32.to_le_bytes()));
            file
        })
        .collect();
    change(&mut parts);
    let path = |number| folder.path().join(format!("model-{:05}-of-00003.gguf", number + 1));
    for (number, part) in parts.iter().enumerate() {
        std::fs::write(path(number), part.bytes())?;
    }
    Ok(GgufSource::open(path(0)).map_err(|error| error.kind()))
}

#[test]
fn opens_all_parts_of_a_split_model() -> Result {
    let source = split(|_| ())?.map_err(|kind| format!("{kind:?}"))?;
    let names: Vec<_> = source.tensors().map(|tensor| tensor.name()).collect();
    assert_eq!(names, ["t0.0", "t0.1", "t1.0", "t1.1", "t2.0", "t2.1"]);
    Ok(())
}

#[test]
fn reads_rows_of_the_part_that_has_them() -> Result {
    let source = split(|_| ())?.map_err(|kind| format!("{kind:?}"))?;
    let mut bytes = vec![1, 2, 3];
    // Data of each part count up from 0; the second tensor begins at 96.
    source.read_rows("t2.1", 1..2, &mut bytes)?;
    assert_eq!(bytes, (136..176).collect::<Vec<u8>>());
    source.read_rows("t0.0", 2..2, &mut bytes)?;
    assert!(bytes.is_empty());
    Ok(())
}

#[test]
fn refuses_rows_and_tensors_that_are_not_there() -> Result {
    let source = split(|_| ())?.map_err(|kind| format!("{kind:?}"))?;
    let read = |name, rows| source.read_rows(name, rows, &mut Vec::new()).map_err(|error| error.kind());
    assert_eq!(read("t0.0", 1..3), Err(BadArgument));
    #[allow(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    let reversed = 2..1;
    assert_eq!(read("t0.0", reversed), Err(BadArgument));
    assert_eq!(read("t9.0", 0..1), Err(BadArgument));
    Ok(())
}

#[test]
fn rejects_split_models_that_do_not_fit_together() -> Result {
    let kinds = [
        split(|parts| parts[1].entries[0] = Entry::u16("split.no", 2))?,
        split(|parts| parts[1].entries[1] = Entry::u16("split.count", 4))?,
        split(|parts| parts[0].entries[2] = Entry::new("split.tensors.count", 5, 7i32.to_le_bytes()))?,
        split(|parts| parts[2].tensors[0].name = b"t0.0".into())?,
        split(|parts| parts[0].entries[1] = Entry::u16("split.count", u16::MAX))?,
    ];
    assert_eq!(kinds.map(|result| result.err()), [Some(BadFile); 5]);
    Ok(())
}

#[test]
fn asks_for_the_first_part() -> Result {
    let result = split(|parts| parts[0].entries[0] = Entry::u16("split.no", 1))?;
    assert_eq!(result.err(), Some(BadArgument));
    Ok(())
}

#[test]
fn reports_a_missing_part_by_its_name() -> Result {
    let result = split(|parts| parts.truncate(2))?;
    assert_eq!(result.err(), Some(ErrorKind::Io));
    Ok(())
}

/// Whatever is accepted must be readable to its last byte.
fn check_consistent(bytes: &[u8]) -> Result<(), String> {
    let Ok(gguf) = Gguf::read(bytes, &Limits::default()) else { return Ok(()) };
    for tensor in gguf.tensors() {
        let end = tensor.offset().checked_add(tensor.bytes()).ok_or("end overflows")?;
        if end > bytes.len() as u64 {
            return Err(format!("`{}` ends at {end} of {}", tensor.name().escape_debug(), bytes.len()));
        }
    }
    if gguf.metadata().iter().count() != gguf.metadata().len() {
        return Err("a value that was accepted cannot be read".into());
    }
    gguf.metadata().to_json(usize::MAX);
    Ok(())
}

#[test]
fn survives_every_byte_changed() -> Result {
    let file = good().bytes();
    for at in 0..file.len() {
        for change in [0x01, 0x80, 0xff, file[at], !file[at]] {
            let mut bytes = file.clone();
            bytes[at] ^= change;
            check_consistent(&bytes)?;
        }
    }
    Ok(())
}

#[test]
fn survives_every_length() -> Result {
    let file = good().bytes();
    for len in 0..file.len() {
        check_consistent(&file[..len])?;
    }
    check_consistent(&[file.clone(), file].concat())?;
    Ok(())
}

#[test]
fn survives_every_word_made_extreme() -> Result {
    let file = good().bytes();
    for at in 0..file.len() - 8 {
        for word in [0, 1, 1 << 31, 1 << 32, 1 << 40, i64::MAX as u64, 1 << 63, u64::MAX] {
            let mut bytes = file.clone();
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            check_consistent(&bytes)?;
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn survives_any_bytes_after_the_magic(tail in proptest::collection::vec(any::<u8>(), 0..512)) {
        let bytes = [b"GGUF\x03\0\0\0", tail.as_slice()].concat();
        prop_assert_eq!(check_consistent(&bytes), Ok(()));
    }

    #[test]
    fn survives_parts_swapped_removed_and_repeated(
        from in 0usize..1200,
        len in 0usize..64,
        to in 0usize..1200,
        keep in any::<bool>(),
    ) {
        let mut bytes = good().bytes();
        let from = from.min(bytes.len());
        let part = bytes[from..(from + len).min(bytes.len())].to_vec();
        if !keep {
            bytes.drain(from..from + part.len());
        }
        let to = to.min(bytes.len());
        bytes.splice(to..to, part);
        prop_assert_eq!(check_consistent(&bytes), Ok(()));
    }
}

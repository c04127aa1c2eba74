//! Files that state what they should not: bombs, overflows, hidden names, graphs that are small on
//! disk and large when walked. Each is refused, or read in time and memory that its own length
//! explains. All hashes are right.

use bytemuck::Zeroable;
use cmf_format::archive::TensorView;
use cmf_format::wire::{ArchiveRecord, AttributeRecord, NONE, TensorRecord, TransformRecord};
use cmf_format::{Archive, ErrorKind, Limits, Result};
use cmf_tests::raw::Raw;
use cmf_tests::repair;
use peak_alloc::PeakAlloc;
use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Tests run one after another, so that each measures its own memory and time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` and demands that it allocates at most `bytes` at a time and ends within ten seconds
/// even in a debug build on a busy machine.
fn bounded<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_usage();
    let (before, start) = (MEMORY.current_usage(), Instant::now());
    let result = work();
    let (peak, elapsed) = (MEMORY.peak_usage().saturating_sub(before), start.elapsed());
    assert!(peak <= bytes, "allocated {peak} bytes, expected at most {bytes}");
    assert!(elapsed < Duration::from_secs(10), "took {elapsed:?}");
    result
}

fn parse_kind(file: &[u8]) -> Option<ErrorKind> {
    bounded(1 << 20, || Archive::parse(file, &Limits::default()).err().map(|e| e.kind()))
}

/// Opens and decodes everything that can be, verifies; gives the first kind of error of verifying.
fn walk(file: &[u8], limits: &Limits) -> Result<()> {
    let archive = Archive::parse(file, limits)?;
    for node in archive.nodes() {
        node.all_segments();
        let _ = node.view();
    }
    for tensor in archive.tensors() {
        if let Ok(view) = TensorView::open(&tensor, u16::MAX)
            && view.rows().saturating_mul(view.cols()) <= 1 << 16
        {
            let mut out = vec![0.0; view.rows() * view.cols()];
            let _ = view.decode_rows(0..view.rows(), &mut out);
        }
    }
    for unit in archive.units() {
        unit.segments();
    }
    archive.verify()
}

fn kind(outcome: Result<()>) -> Option<ErrorKind> {
    outcome.err().map(|e| e.kind())
}

fn zstd_of(byte: u8, length: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![byte; length], 3).unwrap_or_default()
}

/// An archive with one attribute whose segment is zstd.
fn attribute(stored: Vec<u8>, decoded: u64) -> Vec<u8> {
    let mut raw = Raw::default();
    let segment = raw.zstd(stored, decoded);
    let (name, media_type) = (raw.string(b"a"), raw.string(b"b/c"));
    raw.attributes.push(AttributeRecord {
        name,
        media_type,
        segment: segment.into(),
        ..AttributeRecord::zeroed()
    });
    raw.assemble()
}

mod compressed {
    use super::*;

    #[test]
    fn refuses_bomb_beyond_the_limit_before_allocating() {
        let _alone = alone();
        let file = attribute(zstd_of(0, 64 << 20), 64 << 20);
        assert!(file.len() < 16 << 10, "ratio of less than 4096");
        let limits = Limits { decoded_segment_bytes: 1 << 20, ..Limits::default() };
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &limits))), Some(ErrorKind::Limit));
    }

    #[test]
    fn refuses_size_that_the_frame_does_not_state() {
        let _alone = alone();
        for decoded in [0, 1, (1 << 20) - 1, (1 << 20) + 1] {
            let file = attribute(zstd_of(0, 1 << 20), decoded);
            assert_eq!(kind(bounded(2 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
        }
    }

    #[test]
    fn refuses_frame_without_content_size() -> std::io::Result<()> {
        let _alone = alone();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3)?;
        encoder.include_contentsize(false)?;
        std::io::Write::write_all(&mut encoder, &[7; 4096])?;
        let file = attribute(encoder.finish()?, 4096);
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
        Ok(())
    }

    #[test]
    fn refuses_content_size_that_lies() {
        let _alone = alone();
        // Magic, single segment with a size of four bytes, and a last block of 20 times 0x7F.
        let frame = |size: u32| {
            [&[0x28, 0xB5, 0x2F, 0xFD, 0xA0], size.to_le_bytes().as_slice(), &[0xA3, 0, 0, 0x7F]].concat()
        };
        let (honest, small) = (attribute(frame(20), 20), attribute(frame(19), 19));
        let large = attribute(frame(500 << 20), 500 << 20);
        assert_eq!(kind(bounded(1 << 20, || walk(&honest, &Limits::default()))), None);
        assert_eq!(kind(bounded(1 << 20, || walk(&small, &Limits::default()))), Some(ErrorKind::Value));
        let limits = Limits { decoded_segment_bytes: 1 << 20, ..Limits::default() };
        assert_eq!(kind(bounded(1 << 20, || walk(&large, &limits))), Some(ErrorKind::Limit));
    }

    #[test]
    fn refuses_window_of_two_gigabytes() {
        let _alone = alone();
        // As above with a window descriptor of 2^31 instead of the single-segment flag.
        let frame = [0x28, 0xB5, 0x2F, 0xFD, 0x80, 0xA8, 20, 0, 0, 0, 0xA3, 0, 0, 0x7F];
        let file = attribute(frame.to_vec(), 20);
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
    }

    #[test]
    fn counts_segments_that_terms_share_each_time() {
        let _alone = alone();
        let mut raw = Raw::default();
        let segment = raw.zstd(zstd_of(1, 1 << 20), 1 << 20);
        let node = raw.node(1, (1024, 1024), &[15, 0, 0, 0, 0, 0, 0, 0], &[segment], &[]);
        raw.sum(b"a", 1024, 1024, &vec![node; 10_000]);
        let file = raw.assemble();
        let limits = Limits { decoded_tensor_bytes: 8 << 20, ..Limits::default() };
        let outcome = bounded(16 << 20, || {
            let archive = Archive::parse(file.as_slice(), &limits)?;
            archive.tensors().try_for_each(|t| TensorView::open(&t, 0).map(drop))
        });
        assert_eq!(kind(outcome), Some(ErrorKind::Limit));
    }

    /// A file that is read on demand, and not borrowed from.
    struct Copies(Vec<u8>);

    impl cmf_format::Source for Copies {
        fn head(&self) -> &[u8] {
            &self.0
        }

        fn file_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, offset: u64, bytes: u64) -> Result<Cow<'_, [u8]>> {
            self.0.read(offset, bytes).map(|bytes| Cow::Owned(bytes.into_owned()))
        }
    }

    #[test]
    fn counts_raw_segments_that_terms_share_and_nobody_lends() {
        let _alone = alone();
        let mut raw = Raw::default();
        let node = raw.bytes_node(1024, 1024);
        raw.sum(b"a", 1024, 1024, &vec![node; 10_000]);
        let file = raw.assemble();
        let limits = Limits { decoded_tensor_bytes: 8 << 20, ..Limits::default() };
        let open =
            |archive: &Archive<Copies>| archive.tensors().try_for_each(|t| TensorView::open(&t, 0).map(drop));
        let outcome = bounded(16 << 20, || open(&Archive::parse(Copies(file.clone()), &limits)?));
        assert_eq!(kind(outcome), Some(ErrorKind::Limit));
        let outcome = bounded(16 << 20, || {
            let archive = Archive::parse(file.as_slice(), &limits)?;
            archive.tensors().try_for_each(|t| TensorView::open(&t, 0).map(drop))
        });
        assert_eq!(kind(outcome), None, "borrowed");
    }

    #[test]
    fn refuses_plane_that_decodes_to_more_than_a_frame_may() {
        let _alone = alone();
        // One row of 2^50 elements of which the file has four bytes.
        let mut raw = Raw::default();
        let ends = raw.segment(4u64.to_le_bytes().to_vec());
        let chunks = raw.segment(vec![0x28, 0xB5, 0x2F, 0xFD]);
        let descriptor = [&[15, 0, 0, 0, 1, 0, 0, 0], 4u64.to_le_bytes().as_slice()].concat();
        let node = raw.node(6, (1, 1 << 50), &descriptor, &[ends, chunks], &[]);
        raw.sum(b"a", 1, 1 << 50, &[node]);
        raw.state_sizes();
        let file = raw.assemble();
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
    }

    #[test]
    fn refuses_long_plane_behind_an_honest_frame() {
        let _alone = alone();
        // 2^32 elements behind 128 KiB of blocks that repeat one byte.
        let size = 1u64 << 32;
        let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xC0, 0x38];
        frame.extend(size.to_le_bytes());
        let blocks = size / (128 << 10);
        for block in 1..=blocks {
            let header = (128u32 << 10) << 3 | 1 << 1 | u32::from(block == blocks);
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(0x3F);
        }
        let mut raw = Raw::default();
        let length = (frame.len() as u64).to_le_bytes();
        let descriptor = [&[15, 0, 0, 0, 1, 0, 0, 0], length.as_slice()].concat();
        let (ends, chunks) = (raw.segment(length.to_vec()), raw.segment(frame));
        let node = raw.node(6, (1, size), &descriptor, &[ends, chunks], &[]);
        raw.sum(b"a", 1, size, &[node]);
        raw.state_sizes();
        let file = raw.assemble();
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
    }
}

mod counts {
    use super::*;

    #[test]
    fn refuses_giant_tables_before_allocating() {
        let _alone = alone();
        let file = Raw::default().assemble();
        for table in 0..14 {
            for count in [1, 1 << 20, 1 << 27, (1 << 27) + 1, 1 << 61, u64::MAX / 32, u64::MAX] {
                let mut damaged = file.clone();
                damaged[256 + table * 32 + 24..][..8].copy_from_slice(&u64::to_le_bytes(count));
                repair::header(&mut damaged);
                let found = parse_kind(&damaged);
                assert!(
                    matches!(found, Some(ErrorKind::Structure | ErrorKind::Limit)),
                    "table {table}, count {count}: {found:?}"
                );
            }
            let mut damaged = file.clone();
            damaged[256 + table * 32 + 8..][..4].copy_from_slice(&[0xFF; 4]);
            damaged[256 + table * 32 + 24..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
            repair::header(&mut damaged);
            assert!(parse_kind(&damaged).is_some(), "table {table}");
        }
    }

    #[test]
    fn refuses_record_size_of_zero() {
        let _alone = alone();
        let file = Raw::default().assemble();
        for table in 0..14 {
            let mut damaged = file.clone();
            damaged[256 + table * 32 + 8..][..4].fill(0);
            damaged[256 + table * 32 + 24..][..8].copy_from_slice(&u64::to_le_bytes(1 << 26));
            repair::header(&mut damaged);
            assert_eq!(parse_kind(&damaged), Some(ErrorKind::Structure), "table {table}");
        }
    }

    #[test]
    fn refuses_shapes_that_overflow() {
        let _alone = alone();
        for shape in [
            &[u64::MAX, 2][..],
            &[1 << 32, 1 << 32],
            &[u64::MAX, u64::MAX, 0],
            &[1, u64::MAX, u64::MAX],
            &[1 << 63, 2, 1, 1],
        ] {
            let mut raw = Raw::default();
            raw.tensor(b"a", shape, 0, 0);
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{shape:?}");
        }
    }

    #[test]
    fn refuses_rank_beyond_the_limit() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.tensor(b"a", &[1; 17], 0, 0);
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Limit));
    }

    #[test]
    fn refuses_nodes_whose_sizes_overflow() {
        let _alone = alone();
        let dense = [15, 0, 0, 0, 0, 0, 0, 0];
        let grouped = [&[8, 0, 0, 0][..], &[0; 28]].concat();
        let codebook = [&[255, 16, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 4]].concat();
        let lossless = [&[1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 8]].concat();
        let bitmap = [&[0, 2, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 12]].concat();
        let trellis = [&[6, 4, 1, 0][..], &[0; 28]].concat();
        for (encoding, descriptor, segments) in [
            (1, &dense[..], 1),
            (2, &grouped, 1),
            (3, &bitmap, 2),
            (5, &codebook, 1),
            (6, &lossless, 2),
            (7, &trellis, 1),
        ] {
            for shape in [(u64::MAX, u64::MAX), (1 << 62, 4), (4, 1 << 62), (1 << 32, 1 << 32), (2, 1 << 63)]
            {
                let mut raw = Raw::default();
                let segments: Vec<u32> = (0..segments).map(|_| raw.segment(vec![])).collect();
                let child = [raw.bytes_node(1, 1)];
                let children = if matches!(encoding, 3 | 7) { child.as_slice() } else { &[] };
                raw.node(encoding, shape, descriptor, &segments, children);
                let file = raw.assemble();
                assert_eq!(parse_kind(&file), Some(ErrorKind::Structure), "{encoding} {shape:?}");
            }
        }
    }

    #[test]
    fn refuses_segments_that_pass_the_end() {
        let _alone = alone();
        for stored in [2, 1 << 40, u64::MAX - 600, u64::MAX] {
            let mut file = attribute(vec![1], 1);
            let at = file.windows(12).position(|w| w == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
            assert!(at.is_some(), "no segment record");
            let at = at.unwrap_or(0);
            file[at..at + 8].copy_from_slice(&u64::to_le_bytes(stored));
            repair::header(&mut file);
            assert_eq!(parse_kind(&file), Some(ErrorKind::Structure), "{stored}");
        }
    }

    #[test]
    fn stated_sizes_that_wrap_are_seen() {
        let _alone = alone();
        let mut raw = Raw::default();
        let unknown: Vec<u32> = (0..3).map(|_| raw.zstd(vec![0], u64::MAX)).collect();
        let node = raw.node(0xFFFF, (1, 1), &[], &unknown, &[]);
        raw.sum(b"a", 1, 1, &[node]);
        let file = raw.assemble();
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Structure));
    }
}

mod names {
    use super::*;

    const BAD: &[&[u8]] = &[
        b"",
        b"a\0b",
        b"\0",
        b"a\nb",
        b"a\x1b[31mb",
        b"a\x7f",
        "a\u{85}".as_bytes(),
        "a\u{202E}cod.exe".as_bytes(),
        "\u{2066}a".as_bytes(),
        "\u{200F}".as_bytes(),
        b"..",
        b"../etc/passwd",
        b"a/../b",
        b"./a",
        b"a/.",
    ];

    #[test]
    fn refuses_tensor_names_that_hide_or_escape() {
        let _alone = alone();
        for name in BAD {
            let mut raw = Raw::default();
            raw.tensor(name, &[0], 0, 0);
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{name:?}");
        }
    }

    #[test]
    fn refuses_names_that_are_not_utf8() {
        let _alone = alone();
        for name in [&b"\xff"[..], b"a\xc0\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"] {
            let mut raw = Raw::default();
            raw.tensor(name, &[0], 0, 0);
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{name:?}");
        }
    }

    #[test]
    fn refuses_names_cut_within_a_character() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.tensor("é".as_bytes(), &[0], 0, 0);
        raw.tensors[0].name.bytes = 1.into();
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }

    #[test]
    fn refuses_file_names_that_leave_the_folder() {
        let _alone = alone();
        let more = [&b"a/b"[..], b"a\\b", b"C:x", b"/etc/passwd", b"nul", b"COM1.txt", b"x ", b"x."];
        for name in BAD.iter().copied().chain(more) {
            let mut raw = Raw::default();
            let reference = raw.string(name);
            raw.archives.push(ArchiveRecord { name: reference, kind: 1.into(), ..ArchiveRecord::zeroed() });
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{name:?}");
            let mut raw = Raw::default();
            let segment = raw.segment(vec![]).into();
            let (name, media_type) = (raw.string(name), raw.string(b"~/~"));
            raw.attributes.push(AttributeRecord { name, media_type, segment, ..AttributeRecord::zeroed() });
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{name:?}");
        }
    }

    #[test]
    fn refuses_names_that_are_not_sorted_or_not_unique() {
        let _alone = alone();
        for (a, b) in [(&b"b"[..], &b"a"[..]), (b"a", b"a"), ("é".as_bytes(), b"z")] {
            let mut raw = Raw::default();
            raw.tensor(a, &[0], 0, 0);
            raw.tensor(b, &[0], 0, 0);
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{a:?} {b:?}");
        }
    }

    #[test]
    fn refuses_name_beyond_the_limit() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.tensor(&[b'a'; 4097], &[0], 0, 0);
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Limit));
    }
}

mod many {
    use super::*;

    #[test]
    fn opens_a_million_tensors() -> Result<()> {
        let _alone = alone();
        let mut raw = Raw::default();
        for i in 0..1_000_000 {
            raw.tensor(format!("layers.{i:07}.weight").as_bytes(), &[0, 4], 0, 0);
        }
        let file = raw.assemble();
        drop(raw);
        assert!(file.len() > 80_000_000);
        let archive = bounded(1 << 20, || Archive::parse(file.as_slice(), &Limits::default()))?;
        let found = bounded(1 << 20, || {
            (0..1_000_000)
                .step_by(7)
                .filter(|i| archive.tensor(&format!("layers.{i:07}.weight")).is_some())
                .count()
        });
        assert_eq!(found, 142_858);
        let limits = Limits { records: 999_999, ..Limits::default() };
        assert_eq!(Archive::parse(file.as_slice(), &limits).err().map(|e| e.kind()), Some(ErrorKind::Limit));
        let limits = Limits { directory_bytes: 80_000_000, ..Limits::default() };
        assert_eq!(Archive::parse(file.as_slice(), &limits).err().map(|e| e.kind()), Some(ErrorKind::Limit));
        Ok(())
    }

    #[test]
    fn opens_tied_tensors_in_linear_time() {
        let _alone = alone();
        // 20 000 tensors that each are all of 40 000 matrices.
        let mut raw = Raw::default();
        let node = raw.bytes_node(1, 1);
        for _ in 0..40_000 {
            raw.matrix(1, 1, &[node]);
        }
        for i in 0..20_000 {
            raw.tensor(format!("{i:06}").as_bytes(), &[40_000], 0, 40_000);
        }
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || Archive::parse(file.as_slice(), &Limits::default()).map(drop));
        assert_eq!(kind(outcome), None);
    }

    #[test]
    fn refuses_tied_tensors_of_different_shapes() {
        let _alone = alone();
        let mut raw = Raw::default();
        let (small, large) = (raw.bytes_node(1, 1), raw.bytes_node(2, 1));
        raw.sum(b"a", 1, 1, &[small]);
        raw.sum(b"b", 2, 1, &[large]);
        raw.tensor(b"c", &[3], 0, 2);
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }

    #[test]
    fn opens_many_levels_and_units_in_linear_time() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.matrix(300, 1, &[]);
        raw.units.clear();
        raw.schedule.clear();
        for level in 0..300u16 {
            for row in 0..300u64 {
                let mut unit = cmf_format::wire::UnitRecord::zeroed();
                (unit.level, unit.row_start, unit.rows) = (level.into(), row.into(), 1.into());
                raw.schedule.push(Zeroable::zeroed());
                if let Some(step) = raw.schedule.last_mut() {
                    step.unit = (raw.units.len() as u32).into();
                }
                raw.units.push(unit);
            }
        }
        raw.matrices[0].unit_count = 90_000.into();
        raw.tensor(b"a", &[300], 0, 1);
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || Archive::parse(file.as_slice(), &Limits::default()).map(drop));
        assert_eq!(kind(outcome), None);
    }

    #[test]
    fn kept_factors_do_not_add_up() {
        let _alone = alone();
        // Each term is the product of two factors of half a million elements that take no bytes.
        let mut raw = Raw::default();
        let rank = 1u32 << 19;
        let down = rank.div_ceil(65_536);
        let empty = raw.bytes_node(0, 1);
        let offsets = raw.segment(vec![0; (down as usize + 1) * 4]);
        let columns = raw.segment(vec![]);
        let csr = [&[0, 1, 16, 0, 0, 0, 1, 0, 1, 0, 0, 0][..], &[0; 12]].concat();
        let factor = raw.node(3, (rank.into(), 1), &csr, &[offsets, columns], &[empty]);
        let descriptor = [rank.to_le_bytes(), [0; 4]].concat();
        let product = raw.node(4, (1, 1), &descriptor, &[], &[factor, factor]);
        raw.sum(b"a", 1, 1, &[product; 8]);
        raw.state_sizes();
        let file = raw.assemble();
        assert!(file.len() < 16 << 10);
        let limits = Limits { kept_tensor_bytes: 4 << 20, ..Limits::default() };
        assert_eq!(kind(bounded(6 << 20, || walk(&file, &limits))), None);
    }
}

mod graphs {
    use super::*;

    #[test]
    fn refuses_nodes_that_nest_too_deep() {
        let _alone = alone();
        let chain = |depth: u32| {
            let mut raw = Raw::default();
            let mut node = raw.bytes_node(1, 1);
            for _ in 1..depth {
                node = raw.node(0xFFFF, (1, 1), &[], &[], &[node]);
            }
            raw.sum(b"a", 1, 1, &[node]);
            raw.assemble()
        };
        assert_eq!(parse_kind(&chain(8)), None);
        assert_eq!(parse_kind(&chain(9)), Some(ErrorKind::Limit));
        assert_eq!(parse_kind(&chain(1000)), Some(ErrorKind::Limit));
    }

    #[test]
    fn refuses_nodes_that_are_their_own_children() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.node(0xFFFF, (1, 1), &[], &[], &[0]);
        raw.sum(b"a", 1, 1, &[0]);
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }

    /// Seven layers of nodes that each have the node below as a child `width` times.
    fn fan(encoding: u32, width: usize) -> Vec<u8> {
        let mut raw = Raw::default();
        let mut node = raw.bytes_node(1, 1);
        for _ in 1..8 {
            node = raw.node(encoding, (1, 1), &[], &[], &vec![node; width]);
        }
        raw.sum(b"a", 1, 1, &[node]);
        raw.state_sizes();
        raw.assemble()
    }

    #[test]
    fn refuses_paths_that_multiply() {
        let _alone = alone();
        // Two children each make 255 nodes, three 3280.
        assert_eq!(kind(bounded(4 << 20, || walk(&fan(0xFFFF, 2), &Limits::default()))), None);
        for width in [3, 60_000] {
            let file = fan(0xFFFF, width);
            let outcome = bounded(4 << 20, || walk(&file, &Limits::default()));
            assert_eq!(kind(outcome), Some(ErrorKind::Limit), "{width} children");
        }
    }

    #[test]
    fn refuses_grouped_nodes_that_share_everything() {
        let _alone = alone();
        // Scale, zero point and table of each node are the node below: 3^7 paths.
        let mut raw = Raw::default();
        let mut node = raw.bytes_node(64, 256);
        let descriptor = [&[8, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 20]].concat();
        for _ in 1..8 {
            let codes = raw.segment(vec![3; 64 * 256]);
            node = raw.node(2, (64, 256), &descriptor, &[codes], &[node; 3]);
        }
        raw.sum(b"a", 64, 256, &[node]);
        let file = raw.assemble();
        assert_eq!(kind(bounded(4 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Limit));
    }

    #[test]
    fn refs_cannot_be_shared() {
        let _alone = alone();
        let mut raw = Raw::default();
        let leaf = raw.bytes_node(1, 1);
        let node = raw.node(0xFFFF, (1, 1), &[], &[], &[leaf; 100]);
        let first = raw.nodes[node as usize].first_ref;
        raw.node(0xFFFF, (1, 1), &[], &[], &[]);
        raw.nodes[2].first_ref = first;
        raw.nodes[2].child_count = 100.into();
        raw.sum(b"a", 1, 1, &[node]);
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }
}

mod empty {
    use super::*;

    #[test]
    fn nothing_is_a_valid_archive() {
        let _alone = alone();
        let file = Raw::default().assemble();
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), None);
    }

    #[test]
    fn zero_elements_need_no_bytes() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.tensor(b"a", &[0], 0, 0);
        raw.tensor(b"b", &[1 << 40, 0, 7], 0, 0);
        raw.tensor(b"c", &[0, 0], 0, 0);
        let file = raw.assemble();
        assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), None);
    }

    #[test]
    fn refuses_terms_without_elements() {
        let _alone = alone();
        for shape in [(0, 1), (1, 0), (0, 0)] {
            let mut raw = Raw::default();
            let node = raw.bytes_node(shape.0, shape.1);
            raw.sum(b"a", 1, 1, &[node]);
            assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure), "{shape:?}");
        }
    }

    #[test]
    fn long_rows_of_no_rows_allocate_nothing() {
        let _alone = alone();
        // A grouped scale [0, 2^40] below a grouped node [0, 2^40] below an unknown one.
        let mut raw = Raw::default();
        let elements = raw.segment(vec![]);
        let scale = raw.node(1, (0, 1 << 40), &[2, 0, 0, 0, 0, 0, 0, 0], &[elements], &[]);
        let descriptor = [&[4, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 20]].concat();
        let node = raw.node(2, (0, 1 << 40), &descriptor, &[elements], &[scale]);
        let root = raw.node(0xFFFF, (1, 1), &[], &[], &[node]);
        raw.sum(b"a", 1, 1, &[root]);
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || {
            let archive = Archive::parse(file.as_slice(), &Limits::default())?;
            archive.nodes().take(2).try_for_each(|node| {
                let view = node.view()?;
                view.verify()?;
                view.decode_rows(0..0, &mut [])
            })
        });
        assert_eq!(kind(outcome), None);
    }

    #[test]
    fn rows_without_columns_take_no_time() {
        let _alone = alone();
        // A factor of 2^32 - 1 rows and no columns, as a sparse node of two of every four.
        let mut raw = Raw::default();
        let rank = u32::MAX;
        let nothing = raw.segment(vec![]);
        let values = raw.node(1, (rank.into(), 0), &[15, 0, 0, 0, 0, 0, 0, 0], &[nothing], &[]);
        let n_m = [&[0, 3, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 4, 0][..], &[0; 8]].concat();
        let factor = raw.node(3, (rank.into(), 0), &n_m, &[nothing], &[values]);
        let product = raw.node(4, (0, 0), &[rank.to_le_bytes(), [0; 4]].concat(), &[], &[factor, factor]);
        let root = raw.node(0xFFFF, (1, 1), &[], &[], &[product]);
        raw.sum(b"a", 1, 1, &[root]);
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || {
            let archive = Archive::parse(file.as_slice(), &Limits::default())?;
            archive.nodes().take(3).try_for_each(|node| node.view()?.verify())
        });
        assert_eq!(kind(outcome), None);
    }
}

mod records {
    use super::*;

    #[test]
    fn refuses_transforms_of_another_size() {
        let _alone = alone();
        let mut raw = Raw::default();
        let node = raw.bytes_node(4, 4);
        raw.sum(b"a", 4, 4, &[node]);
        raw.matrices[0].input_transforms = 1.into();
        raw.transforms.push(TransformRecord {
            kind: 2.into(),
            size: (1 << 60).into(),
            block: (1 << 60).into(),
            node: NONE.into(),
            segment: NONE.into(),
            ..TransformRecord::zeroed()
        });
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }

    #[test]
    fn wide_transforms_of_a_short_file_are_cheap_to_open() {
        let _alone = alone();
        // A matrix of 2^40 columns without terms, rotated.
        let mut raw = Raw::default();
        raw.sum(b"a", 1, 1 << 40, &[]);
        raw.matrices[0].input_transforms = 1.into();
        raw.transforms.push(TransformRecord {
            kind: 2.into(),
            size: (1 << 40).into(),
            block: (1 << 40).into(),
            seed: 7.into(),
            node: NONE.into(),
            segment: NONE.into(),
            ..TransformRecord::zeroed()
        });
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || walk(&file, &Limits::default()));
        assert_eq!(kind(outcome), None);
    }

    fn rotation(size: u64, block: u64) -> TransformRecord {
        TransformRecord {
            kind: 2.into(),
            size: size.into(),
            block: block.into(),
            seed: 7.into(),
            node: NONE.into(),
            segment: NONE.into(),
            ..TransformRecord::zeroed()
        }
    }

    #[test]
    fn refuses_transforms_that_need_more_rows_than_fit() {
        let _alone = alone();
        // One row of 2^50 needs all the others.
        let mut raw = Raw::default();
        raw.sum(b"a", 1 << 50, 1, &[]);
        raw.matrices[0].output_transforms = 1.into();
        raw.transforms.push(rotation(1 << 50, 1 << 50));
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || {
            let archive = Archive::parse(file.as_slice(), &Limits::default())?;
            let view = archive.tensors().map(|t| TensorView::open(&t, 0)).next();
            view.map_or(Ok(()), |view| view?.decode_rows(5..6, &mut [0.0]))
        });
        assert_eq!(kind(outcome), Some(ErrorKind::Limit));
    }

    #[test]
    fn refuses_more_transforms_than_the_limit() {
        let _alone = alone();
        for (inputs, outputs, expected) in
            [(16, 16, None), (17, 0, Some(ErrorKind::Limit)), (0, u16::MAX, Some(ErrorKind::Limit))]
        {
            let mut raw = Raw::default();
            raw.sum(b"a", 4, 4, &[]);
            raw.matrices[0].input_transforms = inputs.into();
            raw.matrices[0].output_transforms = outputs.into();
            raw.transforms = vec![rotation(4, 4); usize::from(inputs) + usize::from(outputs)];
            let file = raw.assemble();
            assert_eq!(kind(bounded(8 << 20, || walk(&file, &Limits::default()))), expected);
        }
    }

    #[test]
    fn refuses_scales_that_take_more_than_fits() {
        let _alone = alone();
        // A factor for each of 2^40 columns, of a node that takes no bytes for them.
        let mut raw = Raw::default();
        let (values, offsets) = (raw.bytes_node(0, 1), raw.segment(vec![0; 8]));
        let columns = raw.segment(vec![]);
        let csr = [&[0, 1, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 12]].concat();
        let factors = raw.node(3, (1, 1 << 40), &csr, &[offsets, columns], &[values]);
        raw.sum(b"a", 1, 1 << 40, &[]);
        raw.matrices[0].input_transforms = 1.into();
        raw.transforms.push(TransformRecord {
            kind: 1.into(),
            node: factors.into(),
            block: 0.into(),
            seed: 0.into(),
            ..rotation(1 << 40, 1)
        });
        let file = raw.assemble();
        let outcome = bounded(1 << 20, || {
            let archive = Archive::parse(file.as_slice(), &Limits::default())?;
            archive.verify()?;
            archive.tensors().try_for_each(|t| TensorView::open(&t, 0).map(drop))
        });
        assert_eq!(kind(outcome), Some(ErrorKind::Limit));
    }

    #[test]
    fn verification_refuses_indices_that_are_no_permutation() {
        let _alone = alone();
        for indices in [[0u32, 0, 2, 3], [0, 1, 2, 4], [u32::MAX; 4]] {
            let mut raw = Raw::default();
            raw.sum(b"a", 4, 4, &[]);
            raw.matrices[0].output_transforms = 1.into();
            let segment = raw.segment(indices.iter().flat_map(|i| i.to_le_bytes()).collect()).into();
            let permute = TransformRecord { kind: 3.into(), seed: 0.into(), segment, ..rotation(4, 0) };
            raw.transforms.push(permute);
            let file = raw.assemble();
            assert_eq!(kind(bounded(1 << 20, || walk(&file, &Limits::default()))), Some(ErrorKind::Value));
        }
    }

    #[test]
    fn refuses_tensor_in_an_archive_that_is_not_there() {
        let _alone = alone();
        let mut raw = Raw::default();
        raw.tensor(b"a", &[0], 0, 0);
        raw.tensors[0] = TensorRecord { archive: 0.into(), ..raw.tensors[0] };
        assert_eq!(parse_kind(&raw.assemble()), Some(ErrorKind::Structure));
    }
}

mod tools {
    use super::*;
    use cmf_converters::error::ErrorKind;
    use cmf_converters::source;

    #[test]
    fn refuses_to_read_far_more_elements_than_bytes() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let _alone = alone();
        let folder = tempfile::tempdir()?;
        for (rows, cols) in [(1, 1 << 60), (1 << 60, 1), (1 << 40, 1 << 20), (1 << 15, 1 << 15)] {
            let mut raw = Raw::default();
            raw.sum(b"a", rows, cols, &[]);
            let path = folder.path().join("a.cmf");
            std::fs::write(&path, raw.assemble())?;
            let found = bounded(4 << 20, || source::open(&path).err().map(|e| e.kind()));
            assert_eq!(found, Some(ErrorKind::Limit), "[{rows}, {cols}]");
        }
        Ok(())
    }

    #[test]
    fn reads_zeros_of_a_usual_size() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let _alone = alone();
        let folder = tempfile::tempdir()?;
        let mut raw = Raw::default();
        raw.sum(b"a", 1 << 14, 1 << 14, &[]);
        let path = folder.path().join("a.cmf");
        std::fs::write(&path, raw.assemble())?;
        assert_eq!(source::open(&path)?.tensors().len(), 1);
        Ok(())
    }
}

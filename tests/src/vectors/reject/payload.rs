//! Padding and compressed segments (spec: container, 4.12, 5.3, 8).

use super::{Rejects, bases};
use crate::vectors::case::FailsAt;
use crate::vectors::frames::{Block, bomb, dictionary_frame, frame, short_frame, skippable, windowed_frame};
use crate::vectors::naive::dense;
use cmf_format::{DType, Result};

pub(super) fn add(out: &mut Rejects<'_>) -> Result<()> {
    let base = bases::plain()?;
    let at = base.image().segment(1).start - 1;
    let padded = base.image().put(at, &[1]).bytes;
    out.at(FailsAt::Verify, "value", "padding", "a byte between two segments is not 0", padded);
    let at = base.image().segment(0).start - 1;
    let padded = base.image().put(at, &[1]).bytes;
    out.at(
        FailsAt::Verify,
        "value",
        "padding_first",
        "a byte between directory and first segment is not 0",
        padded,
    );

    let zstd =
        |stored: Vec<u8>, decoded_bytes: u64| base.parts().segment(0, stored, decoded_bytes, 1).build().bytes;
    let good = short_frame(5, &[Block::Raw(b"first")]);
    let mut value = |name: &str, why: &str, stored: Vec<u8>, decoded_bytes: u64| {
        out.at(FailsAt::Attribute("1.txt"), "value", name, why, zstd(stored, decoded_bytes));
    };
    value("zstd_empty", "a compressed segment of no bytes", vec![], 5);
    value(
        "zstd_two_frames",
        "two frames, which together have the stated length",
        [good.clone(), good.clone()].concat(),
        10,
    );
    value("zstd_bytes_after", "a byte after the frame", [&good[..], &[0]].concat(), 5);
    value(
        "zstd_skippable_before",
        "a skippable frame before the frame",
        [skippable(b"x"), good.clone()].concat(),
        5,
    );
    value(
        "zstd_skippable_after",
        "a skippable frame after the frame",
        [good.clone(), skippable(b"x")].concat(),
        5,
    );
    value("zstd_cut", "the last byte of the frame is missing", good[..good.len() - 1].to_vec(), 5);
    value("zstd_magic", "another magic number", [&[0x27], &good[1..]].concat(), 5);
    value("zstd_longer", "the frame states more bytes than the segment", good.clone(), 4);
    value("zstd_shorter", "the frame states fewer bytes than the segment", good.clone(), 6);
    value(
        "zstd_content_short",
        "the blocks hold fewer bytes than the frame states",
        short_frame(6, &[Block::Raw(b"first")]),
        6,
    );
    value(
        "zstd_content_long",
        "the blocks hold more bytes than the frame states",
        short_frame(4, &[Block::Raw(b"first")]),
        4,
    );
    value(
        "zstd_no_content_size",
        "a frame that does not state its content size",
        windowed_frame(0, None, &[Block::Raw(b"first")]),
        5,
    );
    value(
        "zstd_window",
        "a window above 2^27",
        windowed_frame(17 << 3 | 1, Some(300), &[Block::Repeat(7, 300)]),
        300,
    );
    value(
        "zstd_dictionary",
        "a frame that needs a dictionary",
        dictionary_frame(5, &[Block::Raw(b"first")]),
        5,
    );
    value(
        "zstd_block_type",
        "a block of the reserved type",
        {
            let mut bad = good.clone();
            bad[6] |= 3 << 1;
            bad
        },
        5,
    );
    let bad = zstd([&good[..], &[0]].concat(), 5);
    out.at(FailsAt::Verify, "value", "zstd_attribute", "verification decodes attributes", bad);

    // Limits come before the frame is looked at.
    let attribute = FailsAt::Attribute("1.txt");
    for (name, stated) in [("zstd_bomb", (1 << 30) + 1), ("zstd_largest", u64::MAX)] {
        let why = format!("a frame that states {stated} bytes; what it holds is not looked at");
        out.at(attribute, "limit", name, &why, zstd(frame(stated, &[Block::Repeat(0, 1)]), stated));
    }

    // Five terms share a segment of 2^30 bytes, one is within the limit of a segment.
    let piece = dense(DType::U8, 1, 8, &[0; 8]);
    let shared = bases::sum(&[piece.clone(), piece.clone(), piece.clone(), piece.clone(), piece])?;
    let large = (1u64 << 30).to_le_bytes();
    use crate::vectors::image::table::{EXTENTS, MATRICES, NODES, SCHEDULE, TENSORS, UNITS};
    let image = shared.parts().segment(0, bomb(1 << 30), 1 << 30, 1).build();
    let image = image
        .set(EXTENTS, 1, 0, &large)
        .set(TENSORS, 0, 32, &large)
        .set(MATRICES, 0, 8, &large)
        .set(NODES, 0, 16, &large)
        .set(UNITS, 0, 32, &large)
        .set(SCHEDULE, 0, 8, &large);
    out.at(FailsAt::Tensor("w"), "limit", "zstd_shared_bomb", "five terms that share one frame, which decode to 5 * 2^30 bytes together; nothing is decoded before that is seen", image.seal());
    Ok(())
}

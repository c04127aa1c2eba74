//! Portable kernels: the definition of the others, lane for lane.
//!
//! They are inlined into callers that are compiled for an instruction set, and so become vector code.

use crate::operands::{
    BLOCK, Codes, Element, Elements, Entries, GRANULE, GRANULES, Input, Listed, Map, Quantised, Words, Zero,
    sum_lanes,
};

pub(crate) use super::signed::{fill_tables, signed, sum_signs};

/// Rows and tokens that are worked on at a time.
const TILE: usize = 4;

/// The codes of a block; those beyond the end of `row` are 0.
#[inline(always)]
fn unpack(row: &[u8], bits: usize, block: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    let bytes = row.get(block * 8 * bits..).unwrap_or(&[]);
    match (bits, bytes.first_chunk::<BLOCK>(), bytes.first_chunk::<32>()) {
        (8, Some(bytes), _) => codes = *bytes,
        (4, _, Some(bytes)) => {
            for (codes, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *codes = [byte & 15, byte >> 4];
            }
        }
        _ => {
            let mask = (1u16 << bits) - 1;
            for (i, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let mut word = [0; 8];
                let from = bytes.get(i * bits..).unwrap_or(&[]);
                word[..bits].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                let word = u64::from_le_bytes(word);
                *codes = core::array::from_fn(|i| (word >> (i * bits)) as u8 & mask as u8);
            }
        }
    }
    codes
}

/// The weights of a block, as the reference decodes them.
#[inline(always)]
fn weights(codes: &Codes<'_>, row: usize, block: usize) -> [f32; BLOCK] {
    let unpacked = unpack(codes.row(row), codes.bits, block);
    let mut values = [0.0; BLOCK];
    match codes.map {
        Map::Signed(offset) => {
            for (v, code) in values.iter_mut().zip(&unpacked) {
                *v = f32::from(i16::from(*code) + offset);
            }
        }
        Map::Values(of) => {
            for (v, code) in values.iter_mut().zip(&unpacked) {
                *v = of[usize::from(*code)];
            }
        }
    }
    let scales = codes.scales(row).get(block).copied().unwrap_or_default();
    let zeros = match codes.zero {
        Zero::None => [0.0; GRANULES],
        _ => codes.zeros(row).get(block).copied().unwrap_or_default(),
    };
    let granules = values.as_chunks_mut::<GRANULE>().0.iter_mut();
    for ((values, scale), zero) in granules.zip(scales).zip(zeros) {
        for v in values {
            *v = match codes.zero {
                Zero::None => *v * scale,
                Zero::Subtract => (*v - zero) * scale,
                Zero::Add => *v * scale + zero,
            };
        }
    }
    values
}

/// `out[row * tokens + token] += row · token`.
#[inline(always)]
pub(crate) fn exact(codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) {
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(input.tokens)) {
        for (first, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            let mut lanes = [[0.0; GRANULE]; TILE];
            for block in 0..codes.blocks {
                let weights = weights(codes, row, block);
                for (lanes, token) in lanes[..out.len()].iter_mut().zip(first..) {
                    let Some(x) = input.values(token).get(block) else { continue };
                    add_products(&weights, x, lanes);
                }
            }
            out.iter_mut().zip(lanes).for_each(|(out, lanes)| *out += sum_lanes(lanes));
        }
    }
}

#[inline(always)]
fn add_products(weights: &[f32; BLOCK], x: &[f32; BLOCK], lanes: &mut [f32; GRANULE]) {
    for (weights, x) in weights.as_chunks::<GRANULE>().0.iter().zip(x.as_chunks::<GRANULE>().0) {
        for ((lane, w), x) in lanes.iter_mut().zip(weights).zip(x) {
            *lane = w.mul_add(*x, *lane);
        }
    }
}

/// As [`exact`], for decoded rows of `input.blocks` blocks.
#[inline(always)]
pub(crate) fn dot(weights: &[[f32; BLOCK]], input: &Input<'_>, out: &mut [f32]) {
    let rows = weights.chunks_exact(input.blocks.max(1));
    for (weights, out) in rows.zip(out.chunks_exact_mut(input.tokens)) {
        for (token, out) in out.iter_mut().enumerate() {
            let mut lanes = [0.0; GRANULE];
            for (weights, x) in weights.iter().zip(input.values(token)) {
                add_products(weights, x, &mut lanes);
            }
            *out += sum_lanes(lanes);
        }
    }
}

/// As [`exact`], with quantised activations and codes of [`Map::Signed`].
#[inline(always)]
pub(crate) fn fast(codes: &Codes<'_>, input: &Input<'_>, _lanes: &mut [[f32; 16]], out: &mut [f32]) {
    let Map::Signed(offset) = codes.map else { return };
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(input.tokens)) {
        for (first, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            let mut lanes = [[0.0f32; 16]; TILE];
            for (block, scales) in codes.scales(row).iter().enumerate().take(codes.blocks) {
                let unpacked = unpack(codes.row(row), codes.bits, block);
                for (lanes, token) in lanes[..out.len()].iter_mut().zip(first..) {
                    let q = input.quantised(token).get(block);
                    let (Some(q), Some(scale)) = (q, input.scales(token).get(block)) else { continue };
                    let mut sums = [0i32; 16];
                    let fours = unpacked.as_chunks::<4>().0.iter().zip(q.as_chunks::<4>().0);
                    for (sum, (codes, q)) in sums.iter_mut().zip(fours) {
                        for (code, q) in codes.iter().zip(q) {
                            *sum += (i32::from(*code) + i32::from(offset)) * i32::from(*q);
                        }
                    }
                    for (i, (lane, sum)) in lanes.iter_mut().zip(sums).enumerate() {
                        *lane = (sum as f32).mul_add(scales[i / 4] * scale, *lane);
                    }
                }
            }
            out.iter_mut().zip(lanes).for_each(|(out, lanes)| *out += sum_lanes(lanes));
        }
    }
}

/// `out[row * tokens + token] += Σ terms[row][granule] * sums[token][granule]`: what zero points add.
#[inline(always)]
pub(crate) fn zero_sums(terms: &[[f32; GRANULES]], stride: usize, input: &Input<'_>, out: &mut [f32]) {
    let rows = terms.chunks_exact(stride.max(1));
    for (terms, out) in rows.zip(out.chunks_exact_mut(input.tokens)) {
        for (token, out) in out.iter_mut().enumerate() {
            let sums = input.granule_sums(token);
            let terms = terms.get(..sums.len()).unwrap_or(&[]);
            let (terms, terms_left) = terms.as_flattened().as_chunks::<16>();
            let (sums, sums_left) = sums.as_flattened().as_chunks::<16>();
            let mut lanes = [0.0; 16];
            for (terms, sums) in terms.iter().zip(sums) {
                for i in 0..16 {
                    lanes[i] = terms[i].mul_add(sums[i], lanes[i]);
                }
            }
            for (lane, (term, sum)) in lanes.iter_mut().zip(terms_left.iter().zip(sums_left)) {
                *lane = term.mul_add(*sum, *lane);
            }
            *out += sum_lanes(lanes);
        }
    }
}

/// `out[row * tokens + token] += row · token`, for elements as they lie.
#[inline(always)]
pub(crate) fn elements(rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    for (row, out) in (0..rows.rows).zip(out.chunks_exact_mut(input.tokens)) {
        let bytes = rows.row(row);
        for (first, out) in (0..).step_by(TILE).zip(out.chunks_mut(TILE)) {
            let mut lanes = [[0.0; GRANULE]; TILE];
            for (block, bytes) in bytes.chunks(BLOCK * rows.element.bytes()).enumerate() {
                let mut weights = [0.0; BLOCK];
                match rows.element {
                    Element::F16 => halves(bytes.as_chunks().0, &mut weights),
                    Element::Bf16 => {
                        for (w, bytes) in weights.iter_mut().zip(bytes.as_chunks().0) {
                            *w = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                        }
                    }
                    Element::F32 => {
                        for (w, bytes) in weights.iter_mut().zip(bytes.as_chunks().0) {
                            *w = f32::from_le_bytes(*bytes);
                        }
                    }
                }
                for (lanes, token) in lanes[..out.len()].iter_mut().zip(first..) {
                    let Some(x) = input.values(token).get(block) else { continue };
                    add_products(&weights, x, lanes);
                }
            }
            out.iter_mut().zip(lanes).for_each(|(out, lanes)| *out += sum_lanes(lanes));
        }
    }
}

/// `out[row * tokens + token] += row · token`: entry i of a row goes to lane i mod 16. Gives the number of
/// rows before the first whose columns do not ascend or are not all there.
#[inline(always)]
pub(crate) fn listed(rows: &Listed<'_>, input: &Input<'_>, out: &mut [f32]) -> usize {
    match rows.entries {
        Entries::Decoded { columns, values } => listed_of(rows, columns, values, |c| c, |v| v, input, out),
        Entries::Stored { columns, values } => {
            let column = |bytes| u32::from(u16::from_le_bytes(bytes));
            let value = |bytes| f16_value(u16::from_le_bytes(bytes));
            listed_of(rows, columns, values, column, value, input, out)
        }
    }
}

#[inline(always)]
fn listed_of<C: Copy, V: Copy>(
    rows: &Listed<'_>,
    columns: &[C],
    values: &[V],
    column: impl Fn(C) -> u32,
    value: impl Fn(V) -> f32,
    input: &Input<'_>,
    out: &mut [f32],
) -> usize {
    for (row, out) in out.chunks_exact_mut(input.tokens.max(1)).enumerate() {
        let own = rows.row(row);
        let (columns, values) = (columns.get(own.clone()), values.get(own));
        let (Some(columns), Some(values)) = (columns, values) else { return row };
        let pairs = columns.iter().zip(columns.get(1..).unwrap_or(&[]));
        let ascend = pairs.fold(true, |all, (a, b)| all & (column(*a) < column(*b)));
        if !ascend || columns.last().is_some_and(|last| column(*last) as usize >= rows.cols) {
            return row;
        }
        for (token, out) in out.iter_mut().enumerate() {
            let x = input.values(token).as_flattened();
            let mut lanes = [0.0; 16];
            for (columns, values) in columns.chunks(16).zip(values.chunks(16)) {
                for ((lane, c), v) in lanes.iter_mut().zip(columns).zip(values) {
                    let x = x.get(column(*c) as usize).copied().unwrap_or(0.0);
                    *lane = value(*v).mul_add(x, *lane);
                }
            }
            *out += sum_lanes(lanes);
        }
    }
    out.len().checked_div(input.tokens).unwrap_or(0)
}

/// A row whose values lie where bits are set, in their order, and zeros elsewhere.
#[inline(always)]
pub(crate) fn expand(bits: &[u32], values: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    let mut values = values.iter();
    for (word, out) in bits.iter().zip(out.chunks_mut(32)) {
        let mut word = *word;
        while word != 0 {
            if let (Some(out), Some(value)) = (out.get_mut(word.trailing_zeros() as usize), values.next()) {
                *out = *value;
            }
            word &= word - 1;
        }
    }
}

/// Values of f16 elements; of NaN only that it is one.
#[inline(always)]
pub(crate) fn halves(elements: &[[u8; 2]], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(elements) {
        *out = f16_value(u16::from_le_bytes(*bytes));
    }
}

/// Exponent and mantissa are shifted into place and the difference of the biases is multiplied in,
/// which is right for subnormal numbers too.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF);
    let sign = u32::from(bits & 0x8000) << 16;
    // 2^112, from the bias of f16 to that of f32.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = 0x7F80_0000 | (magnitude & 0x3FF) << 13;
    f32::from_bits(sign | if magnitude >= 0x7C00 { special } else { finite })
}

/// Decodes rows of `cols` columns.
#[inline(always)]
pub(crate) fn decode(codes: &Codes<'_>, cols: usize, out: &mut [f32]) {
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(cols)) {
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let weights = weights(codes, row, block);
            out.copy_from_slice(weights.get(..out.len()).unwrap_or(&[]));
        }
    }
}

/// Of each byte its bits, the lowest first, in a byte each.
const BITS: [[u8; 8]; 256] = {
    let mut of = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            of[byte][bit] = (byte >> bit & 1) as u8;
            bit += 1;
        }
        byte += 1;
    }
    of
};

/// Codes of a row of bit planes, the most significant first, a byte each.
#[inline(always)]
pub(crate) fn planes(planes: &[&[u8]], out: &mut [[u8; BLOCK]]) {
    for (i, out) in out.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let codes = planes.iter().fold(0, |codes, plane| {
            let byte = plane.get(i).copied().unwrap_or(0);
            codes << 1 | u64::from_le_bytes(BITS[usize::from(byte)])
        });
        *out = codes.to_le_bytes();
    }
}

/// The sum of a token's activations, as they are rounded.
#[inline(always)]
pub(crate) fn sum_of_token(input: &Input<'_>, token: usize) -> f32 {
    let mut lanes = [0.0; GRANULES];
    for sums in input.granule_sums(token) {
        lanes.iter_mut().zip(sums).for_each(|(lane, sum)| *lane += sum);
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

/// 1.5 * 2^23: adding it leaves the integer that is nearest, ties to even, in the low bits.
pub(crate) const NEAREST: f32 = 12_582_912.0;

/// How values become integers of 16 bits.
pub(crate) struct Range {
    pub(crate) middle: f32,
    pub(crate) step: f32,
    pub(crate) inverse: f32,
}

impl Range {
    #[inline(always)]
    pub(crate) fn new(least: f32, most: f32) -> Self {
        let (middle, half) = (0.5 * least + 0.5 * most, 0.5 * most - 0.5 * least);
        // Less than this is nothing beside f32's smallest normal numbers.
        let (step, inverse) = if half > 1e-32 { (half / 32767.0, 32767.0 / half) } else { (0.0, 0.0) };
        Self { middle, step, inverse }
    }
}

/// Values as integers of 16 bits, times a step, beside the middle of them.
pub(crate) struct TableBytes {
    /// Upper bytes, plus 128.
    pub(crate) upper: [u8; 256],
    pub(crate) lower: [u8; 256],
    pub(crate) step: f32,
    pub(crate) middle: f32,
}

impl TableBytes {
    /// The integer of a code.
    #[inline(always)]
    fn value(&self, code: u8) -> i32 {
        let code = usize::from(code);
        (i32::from(self.upper[code]) - 128) * 256 + i32::from(self.lower[code])
    }
}

/// Finite values, at most 256, rounded to a 65534th of their range.
#[inline(always)]
pub(crate) fn quantise_table(values: &[f32]) -> TableBytes {
    let (mut least, mut most) = ([f32::MAX; 16], [f32::MIN; 16]);
    for values in values.chunks(16) {
        for ((least, most), v) in least.iter_mut().zip(&mut most).zip(values) {
            *least = if *v < *least { *v } else { *least };
            *most = if *v > *most { *v } else { *most };
        }
    }
    let least = least.into_iter().fold(f32::MAX, |a, b| if b < a { b } else { a });
    let most = most.into_iter().fold(f32::MIN, |a, b| if b > a { b } else { a });
    let Range { middle, step, inverse } = Range::new(least, most);
    let mut bytes = TableBytes { upper: [128; 256], lower: [0; 256], step, middle };
    for ((upper, lower), v) in bytes.upper.iter_mut().zip(&mut bytes.lower).zip(values) {
        let bits = ((v - middle) * inverse + NEAREST).to_bits();
        (*upper, *lower) = ((bits >> 8) as u8 ^ 128, bits as u8);
    }
    bytes
}

/// `out[token] += row · token`, for codes that name values of a table.
#[inline(always)]
pub(crate) fn table_fast(codes: &[[u8; BLOCK]], values: &[f32], input: &Input<'_>, out: &mut [f32]) {
    let table = quantise_table(values);
    for (token, out) in out.iter_mut().enumerate() {
        let mut lanes = [0.0f32; 16];
        for ((codes, q), scale) in codes.iter().zip(input.quantised(token)).zip(input.scales(token)) {
            for ((lane, codes), q) in lanes.iter_mut().zip(codes.as_chunks::<4>().0).zip(q.as_chunks::<4>().0)
            {
                let sum: i32 = codes.iter().zip(q).map(|(code, q)| table.value(*code) * i32::from(*q)).sum();
                *lane = (sum as f32).mul_add(*scale, *lane);
            }
        }
        *out += sum_lanes(lanes).mul_add(table.step, table.middle * sum_of_token(input, token));
    }
}

/// The values plus 128 of the weights of rows of words, into rows of `blocks` blocks.
#[inline(always)]
pub(crate) fn trellis(words: &Words<'_>, blocks: usize, out: &mut [[u8; BLOCK]]) {
    let panels = out.chunks_exact_mut((blocks * words.rows()).max(1));
    for ((before, now), panel) in words.pairs().zip(panels) {
        trellis_row(words, before, now, blocks, panel);
    }
}

#[inline(always)]
fn trellis_row(
    words: &Words<'_>,
    before: &[[u8; 4]],
    now: &[[u8; 4]],
    blocks: usize,
    panel: &mut [[u8; BLOCK]],
) {
    let (step, window) = (words.step_bits, words.table.window);
    for (row, out) in panel.chunks_exact_mut(blocks.max(1)).enumerate() {
        let shift = 32 + step * (row + 1) - window;
        for (out, (before, word)) in out.as_flattened_mut().iter_mut().zip(before.iter().zip(now)) {
            let bits = u64::from(u32::from_le_bytes(*before)) | u64::from(u32::from_le_bytes(*word)) << 32;
            *out = words.table.value((bits >> shift) as usize);
        }
    }
}

/// Sums over the columns of weights times quantised activations: `sums[(row of words * tokens +
/// token) * rows of a word + row]`. `panel` holds the weights of a row of words.
#[inline(always)]
pub(crate) fn trellis_fast(
    words: &Words<'_>,
    input: &Input<'_>,
    panel: &mut [[u8; BLOCK]],
    _lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    let height = words.rows();
    let of_words = sums.chunks_exact_mut((height * input.tokens).max(1));
    for ((before, now), sums) in words.pairs().zip(of_words) {
        let panel = panel.get_mut(..height * input.blocks).unwrap_or(&mut []);
        trellis_row(words, before, now, input.blocks, panel);
        for (row, weights) in panel.chunks_exact(input.blocks.max(1)).enumerate() {
            for (token, sums) in sums.chunks_exact_mut(height).enumerate() {
                let blocks = weights.iter().zip(input.quantised(token)).zip(input.scales(token));
                let mut total = 0.0f32;
                for ((weights, q), scale) in blocks {
                    // Values are stored plus 128.
                    let products = weights.iter().zip(q).map(|(w, q)| (i32::from(*w) - 128) * i32::from(*q));
                    total = (products.sum::<i32>() as f32).mul_add(*scale, total);
                }
                sums[row] = total;
            }
        }
    }
}

/// Blocks, each over a scale of its own.
#[inline(always)]
pub(crate) fn quantise(blocks: &[[f32; BLOCK]], out: Quantised<'_>) {
    let of_granules = out.sums.iter_mut().zip(out.granule_sums);
    let of_blocks = out.values.iter_mut().zip(out.scales).zip(of_granules);
    for (values, ((quantised, scale), (sums, scaled))) in blocks.iter().zip(of_blocks) {
        (*quantised, *scale) = quantise_block(values);
        for (sum, granule) in sums.iter_mut().zip(quantised.as_chunks::<GRANULE>().0) {
            *sum = granule.iter().map(|q| i32::from(*q)).sum();
        }
        *scaled = sums.map(|sum| sum as f32 * *scale);
    }
    for (halves, pair) in out.halves.as_chunks_mut::<2>().0.iter_mut().zip(out.values.as_chunks::<2>().0) {
        let [even, odd] = halves;
        for (columns, (even, odd)) in
            pair.as_flattened().as_chunks::<2>().0.iter().zip(even.iter_mut().zip(odd))
        {
            [*even, *odd] = *columns;
        }
    }
}

/// Values of a block over their scale, rounded to even, and the scale.
#[inline(always)]
fn quantise_block(values: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    let mut largest = [0.0f32; 16];
    for values in values.as_chunks::<16>().0 {
        for (largest, v) in largest.iter_mut().zip(values) {
            *largest = if v.abs() > *largest { v.abs() } else { *largest };
        }
    }
    for half in [8, 4, 2, 1] {
        let (lower, upper) = largest.split_at_mut(half);
        lower.iter_mut().zip(upper).for_each(|(a, b)| *a = if *b > *a { *b } else { *a });
    }
    let [largest, ..] = largest;
    let scale = largest / 127.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let mut out = [0; BLOCK];
    for (out, v) in out.iter_mut().zip(values) {
        let shifted = v * inverse + NEAREST;
        *out = shifted.to_bits() as u8 as i8;
    }
    (out, scale)
}

//! Kernels for AVX-512 with VBMI and VNNI.
//!
//! Codes of any width are spread to bytes by one permutation, which gives each quadword the bytes of
//! eight codes, and one `vpmultishiftqb`, which takes eight bits from any bit on. Windows of trellis
//! paths come out of the same instruction, and their values from tables in registers.

/// An array of four, of an expression with 0 to 3 in it. Written out: vectors in an array that a loop indexes
/// would lie in memory.
macro_rules! four {
    ($i:ident => $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}

/// Splits rows and tokens into tiles of one and of `TILE`.
macro_rules! tiles {
    ($rows:expr, $input:ident, $out:ident, |$row:ident, $token:ident, $place:ident| $kernel:ident($($argument:expr),*)) => {{
        let tokens = $input.tokens;
        let mut $row = 0;
        while $row < $rows {
            let height = if $rows - $row >= TILE { TILE } else { 1 };
            let mut $token = 0;
            while $token < tokens {
                let width = if tokens - $token >= TILE { TILE } else { 1 };
                let start = $row * tokens + $token;
                let $place = $out.get_mut(start..).unwrap_or(&mut []);
                match (height, width) {
                    (1, 1) => $kernel::<1, 1>($($argument),*),
                    (1, _) => $kernel::<1, TILE>($($argument),*),
                    (_, 1) => $kernel::<TILE, 1>($($argument),*),
                    _ => $kernel::<TILE, TILE>($($argument),*),
                }
                $token += width;
            }
            $row += height;
        }
    }};
}

mod exact;
mod few;
mod listed;
mod memory;
mod planes;
mod scales;
mod signed;
mod trellis;

use core::arch::x86_64::*;

pub(super) use self::exact::{exact_stored, exact_twice};
pub(super) use self::few::{fast_stored, fast_twice};
pub(super) use self::listed::{expand, listed};
use self::memory::*;
pub(super) use self::planes::{planes, planes_decode, planes_fast, planes_halves, planes_tables};
pub(super) use self::signed::{fill_tables, signed, sum_signs};
pub(super) use self::trellis::{trellis, trellis_fast};
use crate::operands::{
    BLOCK, Codes, Element, Elements, GRANULE, GRANULES, Input, Map, StoredScales, Words, Zero,
};

/// Rows and tokens of a tile.
const TILE: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(super) fn run<R>(code: impl FnOnce() -> R) -> R {
    code()
}

/// Spreads codes of a width to bytes.
#[derive(Clone, Copy)]
struct Unpacker {
    bits: usize,
    bytes: __m512i,
    shifts: __m512i,
    mask: __m512i,
}

impl Unpacker {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(bits: usize) -> Self {
        let bytes: [u8; 64] = core::array::from_fn(|i| (i / 8 * bits + i % 8) as u8 & 63);
        let shifts: [u8; 64] = core::array::from_fn(|i| (i % 8 * bits) as u8);
        Self {
            bits,
            bytes: load_bytes(&bytes),
            shifts: load_bytes(&shifts),
            mask: _mm512_set1_epi8(((1u16 << bits) - 1) as u8 as i8),
        }
    }

    /// The codes of block `block` of `row`; those beyond its end are those of what lies there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn unpack(&self, row: &[u8], block: usize) -> __m512i {
        let bytes = row.get(block * 8 * self.bits..).unwrap_or(&[]);
        let bytes = load_some(bytes, 8 * self.bits);
        if self.bits == 8 {
            return bytes;
        }
        self.spread(bytes)
    }

    /// The codes of a block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn spread(&self, bytes: __m512i) -> __m512i {
        let words = _mm512_permutexvar_epi8(self.bytes, bytes);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(self.shifts, words), self.mask)
    }
}

/// Adds sums of lanes to a tile of `out`, whose rows are `stride` apart.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_sums<const R: usize, const T: usize>(lanes: &[[__m512; T]; R], stride: usize, out: &mut [f32]) {
    for (lanes, out) in lanes.iter().zip(out.chunks_mut(stride.max(1))) {
        for (lanes, out) in lanes.iter().zip(out) {
            *out += sum(*lanes);
        }
    }
}

/// How far ahead rows of so many bytes are asked for: the next rows of a tile, and some lines more.
#[inline(always)]
fn distance(row_bytes: usize) -> usize {
    (TILE * row_bytes).min(1 << 16) + (1 << 12)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn fast(codes: &Codes<'_>, input: &Input<'_>, lanes: &mut [[f32; 16]], out: &mut [f32]) {
    let Map::Signed(offset) = codes.map else { return };
    // What is taken off the codes, 0 to 128.
    let less = offset.unsigned_abs();
    if input.tokens >= TILE {
        let unpacker = Unpacker::new(codes.bits);
        for row in (0..codes.rows).step_by(8) {
            match codes.group_granules {
                n if n.is_multiple_of(4) => fast_panel::<4>(codes, &unpacker, less, input, row, lanes, out),
                n if n.is_multiple_of(2) => fast_panel::<2>(codes, &unpacker, less, input, row, lanes, out),
                _ => fast_panel::<1>(codes, &unpacker, less, input, row, lanes, out),
            }
        }
        return;
    }
    let unpacker = Unpacker::new(codes.bits);
    let less = _mm512_set1_epi8(less as u8 as i8);
    let ahead = distance(codes.row_bytes);
    let is_nibbles = codes.bits == 4 && !input.halves.is_empty();
    for token in 0..input.tokens {
        let mut row = 0;
        while row < codes.rows {
            let place = out.get_mut(row * input.tokens + token..).unwrap_or(&mut []);
            row += match (is_nibbles, codes.rows - row >= TILE) {
                (true, true) => fast_nibbles::<TILE>(codes, less, ahead, input, row, token, place),
                (true, false) => fast_nibbles::<1>(codes, less, ahead, input, row, token, place),
                (false, true) => fast_rows::<TILE>(codes, &unpacker, less, ahead, input, row, token, place),
                (false, false) => fast_rows::<1>(codes, &unpacker, less, ahead, input, row, token, place),
            };
        }
    }
}

/// Some rows of codes of any width by one token; gives how many rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
#[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
fn fast_rows<const R: usize>(
    codes: &Codes<'_>,
    unpacker: &Unpacker,
    less: __m512i,
    ahead: usize,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) -> usize {
    let rows: [&[u8]; R] = core::array::from_fn(|i| codes.row(row + i));
    let scales: [_; R] = core::array::from_fn(|i| codes.scales(row + i));
    let mut lanes = [[_mm512_setzero_ps(); 1]; R];
    for (block, (q, scale)) in input.quantised(token).iter().zip(input.scales(token)).enumerate() {
        let (q, scale) = (load_codes(q), _mm512_set1_ps(*scale));
        let taken = _mm512_dpbusd_epi32(_mm512_setzero_si512(), less, q);
        let taken = _mm512_sub_epi32(_mm512_setzero_si512(), taken);
        for r in 0..R {
            prefetch(rows[0], ahead + (block * R + r) * 8 * codes.bits);
            let unpacked = unpacker.unpack(rows[r], block);
            let Some(four) = scales[r].get(block) else { continue };
            let sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(taken, unpacked, q));
            lanes[r][0] = _mm512_fmadd_ps(sums, _mm512_mul_ps(spread(four), scale), lanes[r][0]);
        }
    }
    add_sums(&lanes, input.tokens, out);
    R
}

/// Some rows of codes of 4 bits by one token, 128 columns at a time: even columns are in the lower
/// halves of bytes, odd ones in the upper halves. Gives how many rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn fast_nibbles<const R: usize>(
    codes: &Codes<'_>,
    less: __m512i,
    ahead: usize,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) -> usize {
    let rows: [&[u8]; R] = core::array::from_fn(|i| codes.own_row(row + i));
    let whole: [&[[u8; 64]]; R] = core::array::from_fn(|i| rows[i].as_chunks().0);
    let scales: [&[[[f32; GRANULES]; 2]]; R] = core::array::from_fn(|i| codes.scales(row + i).as_chunks().0);
    let low = _mm512_set1_epi8(15);
    let mut lanes = [[_mm512_setzero_ps(); 1]; R];
    let (halves, pairs) = input.pairs(token);
    for (i, ([even, odd], [first, second])) in halves.iter().zip(pairs).enumerate() {
        let (even, odd) = (load_codes(even), load_codes(odd));
        let taken = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), less, even), less, odd);
        let taken = _mm512_sub_epi32(_mm512_setzero_si512(), taken);
        let scale = _mm512_mask_blend_ps(0xFF00, _mm512_set1_ps(*first), _mm512_set1_ps(*second));
        for r in 0..R {
            prefetch(rows[0], ahead + (i * R + r) * 64);
            let bytes = match whole[r].get(i) {
                Some(bytes) => load_bytes(bytes),
                None => load_part(rows[r].get(i * 64..).unwrap_or(&[]), 64),
            };
            let Some(eight) = scales[r].get(i) else { continue };
            let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
            let sums = _mm512_dpbusd_epi32(taken, _mm512_and_si512(bytes, low), even);
            let sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sums, upper, odd));
            lanes[r][0] = _mm512_fmadd_ps(sums, _mm512_mul_ps(spread_8(eight), scale), lanes[r][0]);
        }
    }
    add_sums(&lanes, input.tokens, out);
    R
}

/// Eight rows of codes by all tokens. `STEP` granules share a scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn fast_panel<const STEP: usize>(
    codes: &Codes<'_>,
    unpacker: &Unpacker,
    less: u16,
    input: &Input<'_>,
    row: usize,
    lanes: &mut [[f32; 16]],
    out: &mut [f32],
) {
    let count = (codes.rows - row).min(8);
    let rows: [&[u8]; 8] = core::array::from_fn(|i| if i < count { codes.row(row + i) } else { &[] });
    let scales: [_; 8] = core::array::from_fn(|i| if i < count { codes.scales(row + i) } else { &[] });
    let less = -i32::from(less);
    lanes.fill([0.0; 16]);
    for block in 0..codes.blocks {
        let unpacked: [__m512i; 8] = core::array::from_fn(|i| unpacker.unpack(rows[i], block));
        // Eight columns in each: row by row.
        let weights = transpose(unpacked);
        let mut of_rows = [[0.0; 16]; GRANULES];
        for (i, scales) in scales.iter().enumerate() {
            let four = scales.get(block).copied().unwrap_or_default();
            for (of_rows, scale) in of_rows.iter_mut().zip(four) {
                of_rows[2 * i] = scale;
                of_rows[2 * i + 1] = scale;
            }
        }
        for (token, lanes) in lanes.iter_mut().take(input.tokens).enumerate() {
            let (Some(q), Some(scale), Some(all)) = (
                input.quantised(token).get(block),
                input.scales(token).get(block),
                input.sums(token).get(block),
            ) else {
                continue;
            };
            let q = q.as_chunks::<8>().0;
            let scale = _mm512_set1_ps(*scale);
            let mut so_far = load_floats(lanes);
            for i in (0..GRANULES).step_by(STEP) {
                let all: i32 = all[i..i + STEP].iter().sum();
                let mut sums = _mm512_maskz_set1_epi32(0x5555, less * all);
                for j in 2 * i..2 * (i + STEP) {
                    let q = _mm512_set1_epi64(i64::from_le_bytes(q[j].map(|q| q as u8)));
                    sums = _mm512_dpbusd_epi32(sums, weights[j], q);
                }
                let of_rows = _mm512_mul_ps(load_floats(&of_rows[i]), scale);
                so_far = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), of_rows, so_far);
            }
            store_floats(so_far, lanes);
        }
    }
    let outs = out.chunks_mut(input.tokens.max(1)).skip(row).take(count);
    for (i, out) in outs.enumerate() {
        for (out, lanes) in out.iter_mut().zip(lanes.iter()) {
            *out += lanes[2 * i] + lanes[2 * i + 1];
        }
    }
}

/// Maps of codes to values.
const SIGNED: u8 = 0;
const TABLE_16: u8 = 1;
const TABLE_256: u8 = 2;

/// Makes weights of codes.
#[derive(Clone, Copy)]
struct Decoder<'k> {
    unpacker: Unpacker,
    /// Taken off the codes.
    less: __m512i,
    /// Whether all granules of a block are in one group.
    is_uniform: bool,
    /// Values of 16 codes.
    table: __m512,
    values: &'k [f32; 256],
}

impl<'k> Decoder<'k> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(codes: &Codes<'k>) -> (u8, Self) {
        const NONE: &[f32; 256] = &[0.0; 256];
        let (map, less, values) = match codes.map {
            Map::Signed(offset) => (SIGNED, offset.unsigned_abs() as u8, NONE),
            Map::Values(values) if codes.used_bits <= 4 => (TABLE_16, 0, values),
            Map::Values(values) => (TABLE_256, 0, values),
        };
        let first = values.first_chunk().copied().unwrap_or_default();
        let this = Self {
            unpacker: Unpacker::new(codes.bits),
            less: _mm512_set1_epi8(less as i8),
            is_uniform: codes.group_granules.is_multiple_of(GRANULES),
            table: load_floats(&first),
            values,
        };
        (map, this)
    }

    /// The weights of a block, a granule in each vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,fma")]
    fn weights<const MAP: u8, const ZERO: u8>(
        &self,
        row: &[u8],
        scales: &[[f32; GRANULES]],
        zeros: &[[f32; GRANULES]],
        block: usize,
    ) -> [__m512; GRANULES] {
        let codes = self.unpacker.unpack(row, block);
        let codes = if MAP == SIGNED { _mm512_sub_epi8(codes, self.less) } else { codes };
        let scales = self.each_granule(scales.get(block));
        let zeros = if ZERO == 0 { scales } else { self.each_granule(zeros.get(block)) };
        // By way of memory, which the compiler would rather avoid: ports that shuffle are scarce.
        let mut bytes = [0; 64];
        store_bytes(codes, &mut bytes);
        let parts = core::hint::black_box(&bytes).as_chunks::<GRANULE>().0;
        let mut out = [_mm512_setzero_ps(); GRANULES];
        for i in 0..GRANULES {
            let part = load_16(&parts[i]);
            let value = match MAP {
                SIGNED => _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(part)),
                TABLE_16 => _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(part), self.table),
                _ => self.look_up(_mm512_cvtepu8_epi32(part)),
            };
            out[i] = match ZERO {
                0 => _mm512_mul_ps(value, scales[i]),
                1 => _mm512_mul_ps(_mm512_sub_ps(value, zeros[i]), scales[i]),
                _ => _mm512_add_ps(_mm512_mul_ps(value, scales[i]), zeros[i]),
            };
        }
        out
    }

    /// The values of the granules of a block, each in all lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn each_granule(&self, values: Option<&[f32; GRANULES]>) -> [__m512; GRANULES] {
        let Some(values) = values else { return [_mm512_setzero_ps(); GRANULES] };
        if self.is_uniform {
            return [_mm512_set1_ps(values[0]); GRANULES];
        }
        // SAFETY: the array has the 4 values that are read.
        let four = _mm512_castps128_ps512(unsafe { _mm_loadu_ps(values.as_ptr()) });
        core::array::from_fn(|i| _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32), four))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn look_up(&self, codes: __m512i) -> __m512 {
        // SAFETY: lanes are bytes that were extended with zeros, at most 255, and there are 256 values.
        unsafe { _mm512_i32gather_ps::<4>(codes, self.values.as_ptr()) }
    }
}

/// Calls a kernel with the map and the use of zero points as constants.
macro_rules! by_meaning {
    ($map:expr, $zero:expr, $kernel:ident($($argument:expr),*)) => {
        match ($map, $zero) {
            (SIGNED, Zero::None) => $kernel::<SIGNED, 0>($($argument),*),
            (SIGNED, Zero::Subtract) => $kernel::<SIGNED, 1>($($argument),*),
            (SIGNED, Zero::Add) => $kernel::<SIGNED, 2>($($argument),*),
            (TABLE_16, Zero::None) => $kernel::<TABLE_16, 0>($($argument),*),
            (TABLE_16, Zero::Subtract) => $kernel::<TABLE_16, 1>($($argument),*),
            (TABLE_16, Zero::Add) => $kernel::<TABLE_16, 2>($($argument),*),
            (_, Zero::None) => $kernel::<TABLE_256, 0>($($argument),*),
            (_, Zero::Subtract) => $kernel::<TABLE_256, 1>($($argument),*),
            (_, Zero::Add) => $kernel::<TABLE_256, 2>($($argument),*),
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn exact(codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) {
    let (map, decoder) = Decoder::new(codes);
    by_meaning!(map, codes.zero, exact_rows(codes, &decoder, input, out));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn exact_rows<const MAP: u8, const ZERO: u8>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    input: &Input<'_>,
    out: &mut [f32],
) {
    let tokens = input.tokens;
    let mut row = 0;
    while row < codes.rows {
        let height = if codes.rows - row >= TILE { TILE } else { 1 };
        let mut token = 0;
        while token < tokens {
            let width = if tokens - token >= TILE { TILE } else { 1 };
            let place = out.get_mut(row * tokens + token..).unwrap_or(&mut []);
            match (height, width) {
                (1, 1) => exact_tile::<MAP, ZERO, 1, 1>(codes, decoder, input, row, token, place),
                (1, _) => exact_tile::<MAP, ZERO, 1, TILE>(codes, decoder, input, row, token, place),
                (_, 1) => exact_tile::<MAP, ZERO, TILE, 1>(codes, decoder, input, row, token, place),
                _ => exact_tile::<MAP, ZERO, TILE, TILE>(codes, decoder, input, row, token, place),
            }
            token += width;
        }
        row += height;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn exact_tile<const MAP: u8, const ZERO: u8, const R: usize, const T: usize>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let rows: [&[u8]; R] = core::array::from_fn(|i| codes.row(row + i));
    let scales: [_; R] = core::array::from_fn(|i| codes.scales(row + i));
    let zeros: [_; R] = core::array::from_fn(|i| codes.zeros(row + i));
    let values: [_; T] = core::array::from_fn(|i| input.values(token + i));
    let ahead = distance(codes.row_bytes);
    let mut lanes = [[_mm512_setzero_ps(); T]; R];
    for block in 0..codes.blocks {
        let mut x: [&[[f32; 16]]; T] = [&[]; T];
        for t in 0..T {
            let Some(values) = values[t].get(block) else { return };
            x[t] = values.as_chunks().0;
        }
        for r in 0..R {
            prefetch(rows[0], ahead + (block * R + r) * 8 * codes.bits);
            let weights = decoder.weights::<MAP, ZERO>(rows[r], scales[r], zeros[r], block);
            for t in 0..T {
                for (weights, x) in weights.iter().zip(x[t]) {
                    lanes[r][t] = _mm512_fmadd_ps(*weights, load_floats(x), lanes[r][t]);
                }
            }
        }
    }
    add_sums(&lanes, input.tokens, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn dot(weights: &[[f32; BLOCK]], input: &Input<'_>, out: &mut [f32]) {
    let rows = weights.len().checked_div(input.blocks).unwrap_or(0);
    tiles!(rows, input, out, |row, token, place| dot_tile(weights, input, row, token, place));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn dot_tile<const R: usize, const T: usize>(
    weights: &[[f32; BLOCK]],
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let blocks = input.blocks;
    let weights: [&[[f32; GRANULE]]; R] = core::array::from_fn(|i| {
        let row = weights.get((row + i) * blocks..(row + i + 1) * blocks).unwrap_or(&[]);
        row.as_flattened().as_chunks().0
    });
    let values: [&[[f32; GRANULE]]; T] =
        core::array::from_fn(|i| input.values(token + i).as_flattened().as_chunks().0);
    let mut lanes = [[_mm512_setzero_ps(); T]; R];
    for granule in 0..blocks * GRANULES {
        let mut x = [_mm512_setzero_ps(); T];
        for t in 0..T {
            let Some(values) = values[t].get(granule) else { return };
            x[t] = load_floats(values);
        }
        for r in 0..R {
            let Some(weights) = weights[r].get(granule) else { return };
            let weights = load_floats(weights);
            for t in 0..T {
                lanes[r][t] = _mm512_fmadd_ps(weights, x[t], lanes[r][t]);
            }
        }
    }
    add_sums(&lanes, input.tokens, out);
}

const F16: u8 = 0;
const BF16: u8 = 1;
const F32: u8 = 2;

/// The first 16 elements of `bytes`, or as many as there are, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_elements<const KIND: u8>(bytes: &[u8]) -> __m512 {
    if KIND == F32 {
        return _mm512_castsi512_ps(load_some(bytes, 64));
    }
    let halves = match bytes.first_chunk::<32>() {
        // SAFETY: the array has the 32 bytes that are read.
        Some(bytes) => unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) },
        None => _mm512_castsi512_si256(load_part(bytes, 32)),
    };
    match KIND {
        F16 => _mm512_cvtph_ps(halves),
        _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn elements(rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    match rows.element {
        Element::F16 => elements_of::<F16>(rows, input, out),
        Element::Bf16 => elements_of::<BF16>(rows, input, out),
        Element::F32 => elements_of::<F32>(rows, input, out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn elements_of<const KIND: u8>(rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    let tokens = input.tokens;
    let mut row = 0;
    while row < rows.rows {
        let height = if rows.rows - row >= TILE { TILE } else { 1 };
        let mut token = 0;
        while token < tokens {
            let width = if tokens - token >= TILE { TILE } else { 1 };
            let place = out.get_mut(row * tokens + token..).unwrap_or(&mut []);
            match (height, width) {
                (1, 1) => elements_tile::<KIND, 1, 1>(rows, input, row, token, place),
                (1, _) => elements_tile::<KIND, 1, TILE>(rows, input, row, token, place),
                (_, 1) => elements_tile::<KIND, TILE, 1>(rows, input, row, token, place),
                _ => elements_tile::<KIND, TILE, TILE>(rows, input, row, token, place),
            }
            token += width;
        }
        row += height;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn elements_tile<const KIND: u8, const R: usize, const T: usize>(
    rows: &Elements<'_>,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let step = GRANULE * rows.element.bytes();
    let ahead = distance(rows.cols * rows.element.bytes());
    let bytes: [&[u8]; R] = core::array::from_fn(|i| rows.row(row + i));
    let values: [&[[f32; GRANULE]]; T] =
        core::array::from_fn(|i| input.values(token + i).as_flattened().as_chunks().0);
    let mut lanes = [[_mm512_setzero_ps(); T]; R];
    for granule in 0..rows.cols.div_ceil(GRANULE) {
        let mut x = [_mm512_setzero_ps(); T];
        for t in 0..T {
            let Some(values) = values[t].get(granule) else { return };
            x[t] = load_floats(values);
        }
        for r in 0..R {
            let place = (granule * R + r) * step;
            if place.is_multiple_of(64) {
                prefetch(bytes[0], ahead + place);
            }
            let weights = load_elements::<KIND>(bytes[r].get(granule * step..).unwrap_or(&[]));
            for t in 0..T {
                lanes[r][t] = _mm512_fmadd_ps(weights, x[t], lanes[r][t]);
            }
        }
    }
    add_sums(&lanes, input.tokens, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn halves(elements: &[[u8; 2]], out: &mut [f32]) {
    let ahead = size_of_val(elements);
    for (elements, out) in elements.chunks(16).zip(out.chunks_mut(16)) {
        // The elements of the rows that follow.
        prefetch(elements.as_flattened(), ahead);
        store_part(load_elements::<F16>(elements.as_flattened()), out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
pub(super) fn decode(codes: &Codes<'_>, cols: usize, out: &mut [f32]) {
    let (map, decoder) = Decoder::new(codes);
    by_meaning!(map, codes.zero, decode_rows(codes, &decoder, cols, out));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,avx2,fma")]
fn decode_rows<const MAP: u8, const ZERO: u8>(
    codes: &Codes<'_>,
    decoder: &Decoder<'_>,
    cols: usize,
    out: &mut [f32],
) {
    for (row, out) in (0..codes.rows).zip(out.chunks_exact_mut(cols.max(1))) {
        let (bytes, scales, zeros) = (codes.row(row), codes.scales(row), codes.zeros(row));
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let weights = decoder.weights::<MAP, ZERO>(bytes, scales, zeros, block);
            for (weights, out) in weights.into_iter().zip(out.chunks_mut(GRANULE)) {
                match out.first_chunk_mut() {
                    Some(out) => store_floats(weights, out),
                    None => store_part(weights, out),
                }
            }
        }
    }
}

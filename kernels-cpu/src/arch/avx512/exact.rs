//! Exact products of rows of codes whose scales lie as [`super::scales`] reads them: weights are those that the
//! reference decodes.
//!
//! With up to 4 bits a group has at most 16 different weights: they are made once for its 32 columns, and each code picks
//! its own. The codes of 16 columns are in a quadword, which is loaded into all of a vector; one instruction then puts
//! the bits from a code on into each lane, of which the lookup reads the lowest 4. Wider codes are spread to bytes and
//! converted.

use core::arch::x86_64::*;

use super::few::{BLOCKS, Values};
use super::memory::*;
use super::scales::{Decoder, Halves};
use super::*;
use crate::operands::{GRANULE, Twice};

/// Granules of 8 blocks.
const SIXTEEN: usize = BLOCKS * GRANULES;
/// Granules of a group.
const OF_GROUP: usize = 2;
/// Bits of codes that look up their weights.
const MOST_BITS: usize = 4;
/// Groups in order.
const ORDER: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Rows whose scales are f16. Gives whether that was done.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,bmi2,fma,f16c")]
pub(in crate::arch) fn exact_stored(codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    let (Some(rows), Some(stored)) = (rows(codes, input, out), codes.stored) else { return false };
    let Some(scales) = Halves::new(stored, rows, codes.blocks, &ORDER) else { return false };
    products(codes, rows, input, out, |row, i, is_last| {
        // SAFETY: `products` asks for rows below `rows` and for all of their blocks, and says which are the last.
        (unsafe { scales.sixteen(row, i, is_last) }, None)
    });
    true
}

/// Rows whose scales and zero points are codes, as [`exact_stored`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,bmi2,fma,f16c")]
pub(in crate::arch) fn exact_twice(twice: &Twice<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    let codes = &twice.codes;
    let Some(rows) = rows(codes, input, out) else { return false };
    let Some(scales) = Decoder::new(&twice.scale, rows, codes.blocks, &ORDER) else { return false };
    let Some(zero) = &twice.zero else {
        products(codes, rows, input, out, |row, i, is_last| {
            // SAFETY: as in `exact_stored`.
            (unsafe { scales.sixteen(row, i, is_last) }, None)
        });
        return true;
    };
    let Some(zeros) = Decoder::new(zero, rows, codes.blocks, &ORDER) else { return false };
    products(codes, rows, input, out, |row, i, is_last| {
        // SAFETY: as in `exact_stored`.
        unsafe { (scales.sixteen(row, i, is_last), Some(zeros.sixteen(row, i, is_last))) }
    });
    true
}

/// Rows that there are codes and room for; `None` where there are fewer codes than rows, or codes are others.
#[inline]
fn rows(codes: &Codes<'_>, input: &Input<'_>, out: &[f32]) -> Option<usize> {
    let rows = codes.rows.min(out.len() / input.tokens.max(1));
    let is_there = rows.checked_mul(codes.row_bytes)? <= codes.bytes.len();
    let is_known = codes.bits <= MOST_BITS || matches!(codes.map, Map::Signed(_));
    (is_known && is_there).then_some(rows)
}

/// All products, with scales and what is added by row, by number of 8 blocks, and by whether they are the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,bmi2,fma,f16c")]
fn products(
    codes: &Codes<'_>,
    rows: usize,
    input: &Input<'_>,
    out: &mut [f32],
    values: impl Fn(usize, usize, bool) -> Values,
) {
    let most = (1usize << codes.bits) - 1;
    let (of_codes, offset) = match codes.map {
        // Bits above those of a code are of those that follow.
        Map::Signed(offset) => {
            (core::array::from_fn(|i| f32::from((i & most) as i16 + offset)), offset as i8)
        }
        Map::Values(values) => (core::array::from_fn(|i| values[i & most]), 0),
    };
    let places = core::array::from_fn(|i| (i / 4 * codes.bits) as u8);
    let granules = (codes.row_bytes * 8).div_ceil(GRANULE * codes.bits).min(codes.blocks * GRANULES);
    match codes.bits {
        ..=MOST_BITS => {
            let products = Products { codes, granules, of_codes, places, offset, values, kind: Few };
            tiles!(rows, input, out, |row, token, place| tile(&products, input, row, token, place));
        }
        8 => {
            let products = Products { codes, granules, of_codes, places, offset, values, kind: Bytes };
            tiles!(rows, input, out, |row, token, place| tile(&products, input, row, token, place));
        }
        _ => {
            let products = Products { codes, granules, of_codes, places, offset, values, kind: Wide };
            tiles!(rows, input, out, |row, token, place| tile(&products, input, row, token, place));
        }
    }
}

/// How rows are multiplied with.
struct Products<'k, V, K> {
    codes: &'k Codes<'k>,
    /// Of a row.
    granules: usize,
    /// What a lane of 4 bits stands for before scale and zero point.
    of_codes: [f32; 16],
    /// Of each byte the bit of a quadword that it begins with.
    places: [u8; 64],
    /// Added to codes that are converted.
    offset: i8,
    values: V,
    #[expect(dead_code, reason = "says what codes are")]
    kind: K,
}

/// What codes are, in the type of a kernel.
trait Kind {
    /// Whether weights are looked up, and else codes converted.
    const LOOKS_UP: bool;
    /// Whether codes are a byte each.
    const IS_BYTES: bool;
}

/// Codes of up to 4 bits.
struct Few;

impl Kind for Few {
    const LOOKS_UP: bool = true;
    const IS_BYTES: bool = false;
}

/// Codes of 5 to 7 bits.
struct Wide;

impl Kind for Wide {
    const LOOKS_UP: bool = false;
    const IS_BYTES: bool = false;
}

/// Codes of 8 bits.
struct Bytes;

impl Kind for Bytes {
    const LOOKS_UP: bool = false;
    const IS_BYTES: bool = true;
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,bmi2,fma,f16c")]
fn tile<const R: usize, const T: usize>(
    products: &Products<'_, impl Fn(usize, usize, bool) -> Values, impl Kind>,
    input: &Input<'_>,
    row: usize,
    token: usize,
    out: &mut [f32],
) {
    let codes = products.codes;
    let rows: [&[u8]; R] = core::array::from_fn(|r| codes.row(row + r));
    let x: [&[[f32; 16]]; T] = core::array::from_fn(|t| input.values(token + t).as_flattened().as_chunks().0);
    if x.iter().any(|x| x.len() < products.granules) {
        return;
    }
    let (step, bytes) = (2 * codes.bits, SIXTEEN * 2 * codes.bits);
    let ahead = distance(codes.row_bytes);
    let sixteens = products.granules.div_ceil(SIXTEEN);
    let mut lanes = [[_mm512_setzero_ps(); T]; R];
    for i in 0..sixteens {
        let (mut scales, mut zeros, mut has_zeros) = ([[0.0; 16]; R], [[0.0; 16]; R], false);
        for (r, (scales, zeros)) in scales.iter_mut().zip(&mut zeros).enumerate() {
            for line in (0..bytes).step_by(64) {
                prefetch(rows[0], ahead + (i * R + r) * bytes + line);
            }
            let (own, added) = (products.values)(row + r, i, i + 1 == sixteens);
            store_floats(own, scales);
            if let Some(added) = added {
                store_floats(added, zeros);
                has_zeros = true;
            }
        }
        let first = i * SIXTEEN;
        // Each token has that of every granule: see above.
        let x = x.map(|x| x.as_ptr().wrapping_add(first));
        let granules = (products.granules - first).min(SIXTEEN);
        let part = Part { products, scales: &scales, zeros: has_zeros.then_some(&zeros), x, granules };
        lanes = match rows.iter().all(|row| row.len() >= (i + 1) * bytes + 16) {
            true => part.add(lanes, |r, granule| {
                // SAFETY: the place of the granule is in the `bytes` bytes, behind which each row is followed by 16.
                unsafe { rows[r].as_ptr().add(i * bytes + granule * step).cast::<[u8; 16]>().read() }
            }),
            false => part.add(lanes, |r, granule| {
                let bytes = rows[r].get(i * bytes + granule * step..).unwrap_or(&[]);
                let mut codes = [0; 16];
                codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = *byte);
                codes
            }),
        };
    }
    add_sums(&lanes, input.tokens, out);
}

/// Up to 16 groups of a tile.
struct Part<'k, V, K, const R: usize, const T: usize> {
    products: &'k Products<'k, V, K>,
    scales: &'k [[f32; 16]; R],
    zeros: Option<&'k [[f32; 16]; R]>,
    /// Of each token `granules` granules.
    x: [*const [f32; 16]; T],
    granules: usize,
}

impl<V, K: Kind, const R: usize, const T: usize> Part<'_, V, K, R, T> {
    /// Adds products. `codes` gives 16 bytes from the codes of a granule of a row on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx2,bmi2,fma,f16c")]
    fn add(self, mut lanes: [[__m512; T]; R], codes: impl Fn(usize, usize) -> [u8; 16]) -> [[__m512; T]; R] {
        let of_codes = load_floats(&self.products.of_codes);
        let places = load_bytes(&self.products.places);
        let offset = _mm_set1_epi8(self.products.offset);
        let unpacker = Unpacker::new(self.products.codes.bits);
        let spread = |bytes| {
            let words = _mm_permutexvar_epi8(_mm512_castsi512_si128(unpacker.bytes), bytes);
            let codes = _mm_multishift_epi64_epi8(_mm512_castsi512_si128(unpacker.shifts), words);
            _mm_and_si128(codes, _mm512_castsi512_si128(unpacker.mask))
        };
        for group in 0..self.granules.div_ceil(OF_GROUP) {
            let (mut scales, mut added, mut tables) =
                ([of_codes; R], [_mm512_setzero_ps(); R], [of_codes; R]);
            for r in 0..R {
                scales[r] = _mm512_set1_ps(self.scales[r][group]);
                tables[r] = _mm512_mul_ps(of_codes, scales[r]);
                if let Some(zeros) = self.zeros {
                    added[r] = _mm512_set1_ps(zeros[r][group]);
                    tables[r] = _mm512_add_ps(tables[r], added[r]);
                }
            }
            for granule in OF_GROUP * group..self.granules.min(OF_GROUP * (group + 1)) {
                let mut x = [_mm512_setzero_ps(); T];
                for (x, all) in x.iter_mut().zip(self.x) {
                    // SAFETY: `granule` is below `granules`, of which each token has as many.
                    *x = load_floats(unsafe { &*all.add(granule) });
                }
                for r in 0..R {
                    let codes = codes(r, granule);
                    let weights = if K::LOOKS_UP {
                        let [word, _]: [i64; 2] = bytemuck::cast(codes);
                        let words = _mm512_set1_epi64(word);
                        _mm512_permutexvar_ps(_mm512_multishift_epi64_epi8(places, words), tables[r])
                    } else {
                        let codes = load_16(&codes);
                        let codes = _mm_add_epi8(if K::IS_BYTES { codes } else { spread(codes) }, offset);
                        let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
                        let scaled = _mm512_mul_ps(values, scales[r]);
                        if self.zeros.is_some() { _mm512_add_ps(scaled, added[r]) } else { scaled }
                    };
                    for t in 0..T {
                        lanes[r][t] = _mm512_fmadd_ps(weights, x[t], lanes[r][t]);
                    }
                }
            }
        }
        lanes
    }
}

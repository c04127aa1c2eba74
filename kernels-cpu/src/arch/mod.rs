//! Kernels by instruction set. All `unsafe` of the crate is below this module.
//!
//! Arithmetic of vectors is safe in functions that are compiled for their instruction set; what is
//! not are calls of such functions and loads and stores through pointers.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;
mod signed;

use crate::isa::Isa;
use crate::operands::{
    BLOCK, Codes, Elements, GRANULES, HalfTables, Input, LANES, Listed, Planes, Quantised, Scaled,
    SignTables, Signed, Twice, Words,
};

/// An instruction set that this machine has: there is no way to a value but [`Simd::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Simd(Isa);

impl Simd {
    /// `None` where the machine lacks the instruction set.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self(isa))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Runs portable code as compiled for the instruction set, as far as it is inlined: closures ask for
    /// that.
    #[inline(always)]
    pub(crate) fn run<R>(self, code: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            // SAFETY: `Simd::new` has seen that this machine has AVX2, FMA and F16C.
            Isa::Avx2 => return unsafe { run_avx2(code) },
            // SAFETY: `Simd::new` has seen that this machine has all that `Isa::Avx512` stands for.
            Isa::Avx512 => return unsafe { avx512::run(code) },
            _ => {}
        }
        code()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<R>(code: impl FnOnce() -> R) -> R {
    code()
}

/// Gives what the kernel of the instruction set does.
macro_rules! dispatch {
    ($simd:expr, $name:ident($($argument:expr),*)) => {{
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        if $simd.0 != Isa::Scalar {
            // SAFETY: `Simd::new` has seen that this machine has NEON.
            return unsafe { neon::$name($($argument),*) };
        }
        avx512_or_portable!($simd, $name($($argument),*))
    }};
}

/// On AVX-512, gives what its kernel does.
macro_rules! by_avx512 {
    ($simd:expr, $name:ident($($argument:expr),*)) => {
        #[cfg(target_arch = "x86_64")]
        if $simd.0 == Isa::Avx512 {
            // SAFETY: `Simd::new` has seen that this machine has all that `Isa::Avx512` stands for.
            return unsafe { avx512::$name($($argument),*) };
        }
        // Elsewhere nothing may read them.
        let _ = (&$simd, $(&$argument),*);
    };
}

/// As [`dispatch`], but for 64-bit Arm.
macro_rules! avx512_or_portable {
    ($simd:expr, $name:ident($($argument:expr),*)) => {{
        by_avx512!($simd, $name($($argument),*));
        $simd.run(
            #[inline(always)]
            || portable::$name($($argument),*),
        )
    }};
}

/// On 64-bit Arm, gives what its kernel does with the instruction set's way to sum products of bytes.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
macro_rules! by_dot {
    ($simd:expr, $name:ident($($argument:expr),*)) => {
        match $simd.0 {
            // SAFETY: `Simd::new` has seen that this machine has NEON.
            Isa::Neon => return unsafe { neon::$name(neon::Wide::new(), $($argument),*) },
            // SAFETY: `Simd::new` has seen that this machine has NEON with `sdot`.
            Isa::Dotprod => return unsafe { neon::$name(neon::Dotprod::new(), $($argument),*) },
            // SAFETY: `Simd::new` has seen that this machine has NEON with `sdot` and `smmla`.
            Isa::I8mm => return unsafe { neon::$name(neon::Matmul::new(), $($argument),*) },
            _ => {}
        }
    };
}

/// Adds the products of rows of codes, as the reference decodes them, with each token to
/// `out[row * tokens + token]`.
pub(crate) fn exact(simd: Simd, codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) {
    dispatch!(simd, exact(codes, input, out))
}

/// As [`exact`], with scales as they are stored, where there is a kernel for that: else `false`.
pub(crate) fn exact_stored(simd: Simd, codes: &Codes<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    by_avx512!(simd, exact_stored(codes, input, out));
    false
}

/// As [`exact_stored`], for rows whose scales and zero points are codes.
pub(crate) fn exact_twice(simd: Simd, rows: &Twice<'_>, input: &Input<'_>, out: &mut [f32]) -> bool {
    by_avx512!(simd, exact_twice(rows, input, out));
    false
}

/// As [`exact`], with quantised activations; codes are [`crate::operands::Map::Signed`], and what zero
/// points add comes from [`zero_sums`]. `lanes` has room for one vector a token.
pub(crate) fn fast(
    simd: Simd,
    codes: &Codes<'_>,
    input: &Input<'_>,
    lanes: &mut [[f32; 16]],
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Simd::new` has seen that this machine has AVX2, FMA and F16C.
    if simd.0 == Isa::Avx2 && unsafe { avx2::fast(codes, input, out) } {
        return;
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    by_dot!(simd, fast(codes, input, lanes, out));
    avx512_or_portable!(simd, fast(codes, input, lanes, out))
}

/// As [`fast`], with scales as they are stored, where there is a kernel for that: else `false`.
/// Few tokens; `prepared` has the vectors of [`crate::operands::room`].
pub(crate) fn fast_stored(
    simd: Simd,
    codes: &Codes<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    by_avx512!(simd, fast_stored(codes, input, prepared, out));
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    by_dot!(simd, fast_stored(codes, input, out));
    false
}

/// As [`fast_stored`], for rows whose scales and zero points are codes.
pub(crate) fn fast_twice(
    simd: Simd,
    rows: &Twice<'_>,
    input: &Input<'_>,
    prepared: &mut [[f32; 16]],
    out: &mut [f32],
) -> bool {
    by_avx512!(simd, fast_twice(rows, input, prepared, out));
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    by_dot!(simd, fast_twice(rows, input, prepared, out));
    false
}

/// Adds the products of rows of f16, bf16 or f32 elements to `out[row * tokens + token]`.
pub(crate) fn elements(simd: Simd, rows: &Elements<'_>, input: &Input<'_>, out: &mut [f32]) {
    dispatch!(simd, elements(rows, input, out))
}

/// Adds the products of rows of listed values to `out[row * tokens + token]`, up to the first row whose
/// columns do not ascend or are not all there, and gives how many rows that were.
pub(crate) fn listed(simd: Simd, rows: &Listed<'_>, input: &Input<'_>, out: &mut [f32]) -> usize {
    avx512_or_portable!(simd, listed(rows, input, out))
}

/// A row whose values lie where bits are set, in their order, and zeros elsewhere.
pub(crate) fn expand(simd: Simd, bits: &[u32], values: &[f32], out: &mut [f32]) {
    avx512_or_portable!(simd, expand(bits, values, out))
}

/// Decodes `cols` columns of rows with signs, `stride` values apart.
pub(crate) fn signed(simd: Simd, rows: &Signed<'_>, cols: usize, stride: usize, out: &mut [f32]) {
    avx512_or_portable!(simd, signed(rows, cols, stride, out))
}

/// Columns of the right factor times `x`, for the components of the rank from `first` on.
pub(crate) fn products(
    simd: Simd,
    rows: &Signed<'_>,
    first: usize,
    x: &[[f32; BLOCK]],
    out: &mut [[f32; LANES]],
) {
    simd.run(
        #[inline(always)]
        || signed::products(rows, first, x, out),
    );
}

/// Tables of a block's columns.
pub(crate) fn fill_tables(simd: Simd, columns: &[[f32; LANES]; BLOCK], tables: &mut SignTables) {
    avx512_or_portable!(simd, fill_tables(columns, tables))
}

/// Adds to the sums of rows what their signs of a block say.
pub(crate) fn sum_signs(simd: Simd, signs: &[u64], tables: &SignTables, sums: &mut [[f32; LANES]]) {
    avx512_or_portable!(simd, sum_signs(signs, tables, sums))
}

/// Values of f16 elements.
pub(crate) fn halves(simd: Simd, elements: &[[u8; 2]], out: &mut [f32]) {
    dispatch!(simd, halves(elements, out))
}

/// As [`exact`], for rows of decoded weights, padded to blocks.
pub(crate) fn dot(simd: Simd, weights: &[[f32; BLOCK]], input: &Input<'_>, out: &mut [f32]) {
    dispatch!(simd, dot(weights, input, out))
}

/// Adds the products of `terms`, of each row `stride` blocks with one for a granule, with the sums of
/// granules of each token.
pub(crate) fn zero_sums(
    simd: Simd,
    terms: &[[f32; GRANULES]],
    stride: usize,
    input: &Input<'_>,
    out: &mut [f32],
) {
    simd.run(
        #[inline(always)]
        || portable::zero_sums(terms, stride, input, out),
    );
}

/// Decodes rows of codes.
pub(crate) fn decode(simd: Simd, codes: &Codes<'_>, cols: usize, out: &mut [f32]) {
    dispatch!(simd, decode(codes, cols, out))
}

/// Codes of rows of bit planes, a byte each.
pub(crate) fn planes(simd: Simd, planes: &Planes<'_>, out: &mut [[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Simd::new` has seen that this machine has all that `Isa::Avx512` stands for.
    if simd.0 == Isa::Avx512 && unsafe { avx512::planes(planes, out) } {
        return;
    }
    for (row, out) in (0..planes.rows).zip(out.chunks_exact_mut(planes.blocks.max(1))) {
        let of_row = planes.row(row);
        row_of_planes(simd, of_row.get(..planes.count).unwrap_or(&of_row), out);
    }
    if planes.rounds {
        simd.run(
            #[inline(always)]
            || out.as_flattened_mut().iter_mut().for_each(|code| *code = code.div_ceil(2).min(planes.most)),
        );
    }
}

/// Codes of a row of bit planes, the most significant first.
fn row_of_planes(simd: Simd, planes: &[&[u8]], out: &mut [[u8; BLOCK]]) {
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    if simd.0 != Isa::Scalar {
        // SAFETY: `Simd::new` has seen that this machine has NEON.
        return unsafe { neon::planes(planes, out) };
    }
    simd.run(
        #[inline(always)]
        || portable::planes(planes, out),
    )
}

/// Whether [`planes_fast`] does something.
pub(crate) fn reads_planes(simd: Simd) -> bool {
    simd.0 == Isa::Avx512
}

/// Adds the products of integer codes in bit planes with quantised activations to `out[row * tokens + token]`,
/// where [`reads_planes`] says so. Few tokens; `prepared` has three values for each scale of a row.
pub(crate) fn planes_fast(
    simd: Simd,
    planes: &Planes<'_>,
    scaled: &Scaled<'_>,
    input: &Input<'_>,
    prepared: &mut [f32],
    out: &mut [f32],
) {
    by_avx512!(simd, planes_fast(planes, scaled, input, prepared, out));
}

/// As [`planes_fast`], for codes that name values of a table for each row, all of them finite, where there is a
/// kernel for that: else `false`. `pieces` has two for each block.
pub(crate) fn planes_tables(
    simd: Simd,
    planes: &Planes<'_>,
    tables: &[f32],
    input: &Input<'_>,
    pieces: &mut [[u8; BLOCK]],
    out: &mut [f32],
) -> bool {
    by_avx512!(simd, planes_tables(planes, tables, input, pieces, out));
    false
}

/// As [`exact`], for codes in bit planes that name f16 values, where there is a kernel for that: else `false`. Few
/// tokens.
pub(crate) fn planes_halves(
    simd: Simd,
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    input: &Input<'_>,
    out: &mut [f32],
) -> bool {
    by_avx512!(simd, planes_halves(planes, tables, input, out));
    false
}

/// Decodes rows of what [`planes_halves`] multiplies with, where there is a kernel for that: else `false`.
pub(crate) fn planes_decode(
    simd: Simd,
    planes: &Planes<'_>,
    tables: &HalfTables<'_>,
    cols: usize,
    out: &mut [f32],
) -> bool {
    by_avx512!(simd, planes_decode(planes, tables, cols, out));
    false
}

/// Adds the products of a row of codes that name finite values with quantised activations to `out[token]`.
pub(crate) fn table_fast(
    simd: Simd,
    codes: &[[u8; BLOCK]],
    values: &[f32],
    input: &Input<'_>,
    out: &mut [f32],
) {
    simd.run(
        #[inline(always)]
        || portable::table_fast(codes, values, input, out),
    )
}

/// The values plus 128 of the weights of rows of words, into rows of `blocks` blocks.
pub(crate) fn trellis(simd: Simd, words: &Words<'_>, blocks: usize, out: &mut [[u8; BLOCK]]) {
    dispatch!(simd, trellis(words, blocks, out))
}

/// Sums over the columns of weights times quantised activations: `sums[(row of words * tokens +
/// token) * rows of a word + row]`. `panel` has room for the weights of a row of words, `lanes` for a
/// vector for each token and 4 rows of a word.
pub(crate) fn trellis_fast(
    simd: Simd,
    words: &Words<'_>,
    input: &Input<'_>,
    panel: &mut [[u8; BLOCK]],
    lanes: &mut [[f32; 16]],
    sums: &mut [f32],
) {
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    by_dot!(simd, trellis_fast(words, input, panel, lanes, sums));
    avx512_or_portable!(simd, trellis_fast(words, input, panel, lanes, sums))
}

/// Asks for the cache line `ahead` bytes behind the start of `bytes`, on machines where portable code can.
#[inline(always)]
pub(crate) fn ask(bytes: &[u8], ahead: usize) {
    let line = bytes.as_ptr().wrapping_add(ahead);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has SSE, and any address may be asked for.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    let _ = line;
}

/// A value from memory. Compilers make gathers of loads from many places, which take far longer; not of these.
#[inline(always)]
pub(crate) fn load_alone(value: &f32) -> f32 {
    // SAFETY: a reference may be read from.
    unsafe { core::ptr::read_volatile(value) }
}

/// Blocks of values, each over a scale of its own.
pub(crate) fn quantise(simd: Simd, blocks: &[[f32; BLOCK]], out: Quantised<'_>) {
    simd.run(
        #[inline(always)]
        || portable::quantise(blocks, out),
    )
}

//! Windows of a path: the bits that a weight is a function of (spec: encodings/trellis, "Decode").

use multiversion::multiversion;

/// Columns of a row that are decoded at a time, a multiple of 8: what is in flight stays in the
/// nearest cache.
pub(super) const TILE: usize = 1024;

/// Bits of a path's past that [`Along`] holds: the longest window.
const PAST_BITS: u32 = 16;

/// Consecutive bits of one word that are consecutive bits of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Piece {
    /// Word of the path.
    pub(super) word: u64,
    /// First bit within the word.
    shift: u32,
    /// Ones at the low end, as many as there are bits.
    mask: u32,
    /// Where the first bit goes in the window.
    at: u32,
}

impl Piece {
    /// Adds this piece of the windows of some columns, whose words these are.
    pub(super) fn add(&self, words: &[[u8; 4]], windows: &mut [u32]) {
        add_pieces(*self, words, windows);
    }
}

/// Free of `self`, as `multiversion` needs it.
#[multiversion(targets("x86_64+avx2"))]
fn add_pieces(piece: Piece, words: &[[u8; 4]], windows: &mut [u32]) {
    for (window, word) in windows.iter_mut().zip(words) {
        *window |= ((u32::from_le_bytes(*word) >> piece.shift) & piece.mask) << piece.at;
    }
}

/// The window of `state_bits` bits that ends at bit `end` of a ring of `ring_bits` bits, at least 1,
/// in pieces: one or two, and one or two more where the window reaches back over the start.
pub(super) fn pieces(ring_bits: u64, end: u64, state_bits: u32) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    // Bits left of the start are those of the end; a short ring goes round several times.
    let turns = u64::from(state_bits).div_ceil(ring_bits) * ring_bits;
    let mut bit = (end + turns - u64::from(state_bits)) % ring_bits;
    core::iter::from_fn(move || {
        let shift = (bit % 32) as u32;
        let left_in_ring = u32::try_from(ring_bits - bit).unwrap_or(u32::MAX);
        let bits = (state_bits - at).min(32 - shift).min(left_in_ring);
        let piece = Piece { word: bit / 32, shift, mask: (1 << bits) - 1, at };
        (at, bit) = (at + bits, (bit + u64::from(bits)) % ring_bits);
        (bits > 0).then_some(piece)
    })
}

/// Windows of one path after the other, whose words lie next to each other.
#[derive(Debug)]
pub(super) struct Along {
    state_bits: u32,
    /// The last [`PAST_BITS`] bits.
    past: u64,
}

impl Along {
    /// Before the first weight of a path of `ring_bits` bits, at least 1.
    pub(super) fn new(path: &[u8], ring_bits: u64, state_bits: u32) -> Self {
        let mut past = 0;
        for piece in pieces(ring_bits, ring_bits, PAST_BITS) {
            let start = usize::try_from(piece.word * 4).unwrap_or(usize::MAX);
            let words = path.get(start..).unwrap_or(&[]).as_chunks().0;
            let mut window = [0];
            piece.add(words, &mut window);
            past |= u64::from(window[0]);
        }
        Self { state_bits, past }
    }

    /// The windows of the next weights; `path` begins at the bits of the first of them. All but
    /// the last call of a path ask for a multiple of 8.
    pub(super) fn next(&mut self, step_bits: u32, path: &[u8], windows: &mut [u32]) {
        match step_bits {
            1 => self.next_by::<1>(path, windows),
            2 => self.next_by::<2>(path, windows),
            3 => self.next_by::<3>(path, windows),
            _ => self.next_by::<4>(path, windows),
        }
    }

    /// Eight weights fill `STEP` bytes.
    fn next_by<const STEP: usize>(&mut self, path: &[u8], windows: &mut [u32]) {
        let (whole, rest) = path.as_chunks::<STEP>();
        let (eights, tail) = windows.as_chunks_mut::<8>();
        for (windows, bytes) in eights.iter_mut().zip(whole) {
            *windows = self.eight(bytes);
        }
        if !tail.is_empty() {
            let mut bytes = [0; STEP];
            match whole.get(eights.len()) {
                Some(last) => bytes = *last,
                None => bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from),
            }
            tail.iter_mut().zip(self.eight(&bytes)).for_each(|(to, from)| *to = from);
        }
    }

    #[inline]
    fn eight<const STEP: usize>(&mut self, bytes: &[u8; STEP]) -> [u32; 8] {
        let mut wide = [0; 8];
        wide[..STEP].copy_from_slice(bytes);
        let bits = self.past | u64::from_le_bytes(wide) << PAST_BITS;
        self.past = (bits >> (8 * STEP)) & ((1 << PAST_BITS) - 1);
        let (first, mask) = (PAST_BITS - self.state_bits, (1u32 << self.state_bits) - 1);
        core::array::from_fn(|i| (bits >> (first + (STEP * (i + 1)) as u32)) as u32 & mask)
    }
}

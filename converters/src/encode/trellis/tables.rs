//! Trained values of small trellises.
//!
//! For a Gaussian source of unit variance, by Lloyd's rounds: encode a long sequence, give each window
//! the mean of what it stood for, and its complement the negative. The rounds began with quantiles of
//! the source, ranked by a linear map of the window's bits; of many random maps the best was kept,
//! which is worth 0.3 dB over windows ranked at random.

/// Least and greatest number of state bits with a table.
const STATE_BITS: std::ops::RangeInclusive<u32> = 6..=10;

/// For 1 to 4 step bits the tables of 6 to 10 state bits, one `i8` a window.
const TABLES: &[u8] = include_bytes!("tables.bin");

/// What takes a table to unit variance of the source, in the order of [`TABLES`].
const SCALES: [[f32; 5]; 4] = [
    [0.0146618, 0.01670187, 0.01688486, 0.01760764, 0.01830294],
    [0.02000177, 0.02133579, 0.02356103, 0.02340838, 0.02530177],
    [0.02259658, 0.02504398, 0.02595536, 0.02681854, 0.02846828],
    [0.01643148, 0.02237416, 0.02733017, 0.02863596, 0.02967415],
];

/// The values of a trained table, the largest of which is 127, and the scale that takes them to a
/// Gaussian source of unit variance; `None` where there is no table.
pub fn trained(state_bits: u32, step_bits: u32) -> Option<(&'static [i8], f32)> {
    let column = STATE_BITS.clone().position(|bits| bits == state_bits)?;
    let row = (step_bits as usize).checked_sub(1)?;
    let scale = *SCALES.get(row)?.get(column)?;
    let states = |bits: u32| 1usize << bits;
    let from = row * STATE_BITS.map(states).sum::<usize>()
        + (*STATE_BITS.start()..state_bits).map(states).sum::<usize>();
    let table = TABLES.get(from..from + states(state_bits))?;
    Some((bytemuck::cast_slice(table), scale))
}

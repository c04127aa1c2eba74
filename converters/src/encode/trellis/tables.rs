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

/// A table of 64 values: the index is the newest six bits of a window, and for each older bit that is
/// set the bits of `added` are flipped in it. Trained as the others, from the best of some hundred
/// random maps.
#[derive(Debug)]
pub(super) struct Hashed {
    state_bits: u32,
    step_bits: u32,
    /// What takes the values to a Gaussian source of unit variance.
    pub(super) unit: f32,
    /// For each older bit of a window, the oldest first.
    added: &'static [u8],
    values: [i8; 64],
}

impl Hashed {
    /// The value of a window.
    pub(super) fn value(&self, window: usize) -> f32 {
        let older = self.added.iter().enumerate().filter(|(bit, _)| window >> bit & 1 == 1);
        let index = older.fold(window >> self.added.len(), |index, (_, added)| index ^ usize::from(*added));
        f32::from(self.values.get(index).copied().unwrap_or(0))
    }
}

static HASHED: [Hashed; 4] = [
    Hashed {
        state_bits: 10,
        step_bits: 1,
        unit: 0.016_142_977,
        added: &[9, 27, 20, 22],
        values: [
            -127, 59, 21, -36, -27, 23, 73, -96, -31, 10, 35, -55, -81, 43, 17, -25, -15, 18, 75, -31, -43,
            74, 28, -12, -59, 90, 26, -24, -23, 33, 109, -50, 25, -17, -43, 81, 55, -35, -10, 31, 96, -73,
            -23, 27, 36, -21, -59, 127, 50, -109, -33, 23, 24, -26, -90, 59, 12, -28, -74, 43, 31, -75, -18,
            15,
        ],
    },
    Hashed {
        state_bits: 10,
        step_bits: 2,
        unit: 0.020_469_582,
        added: &[50, 58, 35, 9],
        values: [
            -127, -86, 11, 11, -13, -7, 96, 88, 45, 57, -26, -26, 27, 30, -51, -45, -30, -27, 45, 51, -57,
            -45, 26, 26, 7, 13, -88, -96, 86, 127, -11, -11, 4, 5, -71, -67, 71, 60, -7, -6, -22, -22, 44,
            46, -48, -42, 26, 21, 42, 48, -21, -26, 22, 22, -46, -44, -60, -71, 6, 7, -5, -4, 67, 71,
        ],
    },
    Hashed {
        state_bits: 12,
        step_bits: 1,
        unit: 0.015_562_901,
        added: &[39, 49, 61, 53, 12, 12],
        values: [
            -127, -28, -47, -26, -24, -43, -25, -120, -21, -62, -32, -71, -52, -36, -62, -16, -70, -23, -63,
            -7, -13, -63, -28, -79, -17, -35, -18, -96, -103, -9, -66, -23, 28, 127, 26, 47, 43, 24, 120, 25,
            62, 21, 71, 32, 36, 52, 16, 62, 23, 70, 7, 63, 63, 13, 79, 28, 35, 17, 96, 18, 9, 103, 23, 66,
        ],
    },
    Hashed {
        state_bits: 12,
        step_bits: 2,
        unit: 0.020_396_456,
        added: &[56, 54, 15, 51, 39, 22],
        values: [
            -127, -20, -27, -74, -11, -41, -47, 1, -13, -44, -47, -3, -87, -18, -28, -61, 30, 64, 83, 22, 44,
            9, 13, 38, 57, 6, 10, 47, 24, 64, 96, 20, -24, -64, -96, -20, -57, -6, -10, -47, -44, -9, -13,
            -38, -30, -64, -83, -22, 87, 18, 28, 61, 13, 44, 47, 3, 11, 41, 47, -1, 127, 20, 27, 74,
        ],
    },
];

/// The hashed table of these widths, if there is one.
pub(super) fn hashed(state_bits: u32, step_bits: u32) -> Option<&'static Hashed> {
    HASHED.iter().find(|table| table.state_bits == state_bits && table.step_bits == step_bits)
}

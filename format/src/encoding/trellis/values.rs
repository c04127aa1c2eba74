//! Values of windows before the scale.

use super::{Code, Descriptor, STATE_BITS};
use multiversion::multiversion;

/// The sum of the four bytes of `window * multiplier + addend` modulo 2^32, less 510; exact.
#[inline]
fn byte_sum(window: u32, multiplier: u32, addend: u32) -> f32 {
    let x = window.wrapping_mul(multiplier).wrapping_add(addend);
    let pairs = (x & 0x00FF_00FF) + ((x >> 8) & 0x00FF_00FF);
    ((pairs & 0xFFFF) + (pairs >> 16)) as i32 as f32 - 510.0
}

/// The value of every window, `2^state_bits` of them, before the scale; `None` for the code
/// [`Code::Table`], whose values are the table's, and for `state_bits` that no node has.
pub fn code_values(descriptor: &Descriptor) -> Option<Vec<f32>> {
    match descriptor.code {
        Code::ByteSum { multiplier, addend } if STATE_BITS.contains(&descriptor.state_bits) => {
            let windows = 0..1u32 << descriptor.state_bits;
            Some(windows.map(|window| byte_sum(window, multiplier, addend)).collect())
        }
        _ => None,
    }
}

/// Maps windows to values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values<'a> {
    /// By an entry each, `2^state_bits` of them.
    Table(&'a [f32]),
    /// See [`Code::ByteSum`].
    ByteSum { multiplier: u32, addend: u32 },
}

impl Values<'_> {
    pub(super) fn map(&self, windows: &[u32], out: &mut [f32]) {
        /// A table of known length needs no bounds checks.
        macro_rules! by_length {
            ($table:ident, $($bits:literal)*) => {
                match $table.len() {
                    $(n if n == 1 << $bits => look_up::<{ 1 << $bits }>($table, windows, out),)*
                    _ => {}
                }
            };
        }
        match *self {
            Values::Table(table) => by_length!(table, 6 7 8 9 10 11 12 13 14 15 16),
            Values::ByteSum { multiplier, addend } => {
                byte_sums(windows, multiplier, addend, out);
            }
        }
    }
}

/// With 256-bit registers a row decodes twice as fast.
#[multiversion(targets("x86_64+avx2"))]
fn byte_sums(windows: &[u32], multiplier: u32, addend: u32, out: &mut [f32]) {
    for (out, window) in out.iter_mut().zip(windows) {
        *out = byte_sum(*window, multiplier, addend);
    }
}

fn look_up<const N: usize>(table: &[f32], windows: &[u32], out: &mut [f32]) {
    let Some(table) = table.first_chunk::<N>() else { return };
    for (out, window) in out.iter_mut().zip(windows) {
        *out = table[*window as usize % N];
    }
}

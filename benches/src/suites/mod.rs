//! The tables.

mod convert;
mod decode;
mod open;
mod resident;
mod tensor;
mod trellis;
mod verify;

use crate::row::Suite;

/// All tables in the order in which they are printed.
pub(crate) fn all() -> Vec<Suite> {
    vec![
        open::suite(),
        decode::suite(),
        tensor::suite(),
        convert::encoders(),
        trellis::suite(),
        convert::pipeline(),
        verify::suite(),
        resident::suite(),
    ]
}

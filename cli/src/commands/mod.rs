//! One module a command: its arguments, and what it does with them.

pub(crate) mod arrivals;
pub(crate) mod bench;
#[cfg(feature = "models")]
pub(crate) mod calibrate;
pub(crate) mod convert;
pub(crate) mod diff;
#[cfg(feature = "models")]
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fetch;
pub(crate) mod inspect;
pub(crate) mod plan;
pub(crate) mod recipe;
#[cfg(feature = "models")]
pub(crate) mod run;
pub(crate) mod verify;

use cmf_kernels_cpu::Precision;

/// How activations are multiplied with packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Activations {
    // In f32.
    Exact,
    // In 8 bits, with a scale for each 64 of them.
    Fast,
}

impl From<Activations> for Precision {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::Exact => Precision::Exact,
            Activations::Fast => Precision::Fast,
        }
    }
}

//! One module a command: its arguments, and what it does with them.

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

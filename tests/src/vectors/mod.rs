//! The test vectors of the spec: files that must be read with the values that they hold, and files
//! that must be refused with the kind of error.
//!
//! Node bytes and expected values come from plain formulas ([`naive`], [`number`]); the container
//! around them is written by the crate's writer and then, where a rule is to be broken, taken
//! apart and changed ([`image`]).

mod accept;
pub mod case;
pub mod frames;
pub mod image;
pub mod naive;
pub mod number;
mod reject;
pub mod transform;

use case::Files;
use cmf_format::Result;

/// All files below `spec/vectors`.
///
/// # Errors
/// From the writer, for an accept vector that is no valid archive.
pub fn generate() -> Result<Files> {
    let mut files = Files::new();
    accept::add(&mut files)?;
    reject::add(&mut files)?;
    Ok(files)
}

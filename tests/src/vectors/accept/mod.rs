//! Files that must be read.

mod codebook;
pub(super) mod container;
mod dense;
mod grouped;
mod lossless;
mod low_rank;
mod nested;
mod sign_low_rank;
mod sparse;
mod transforms;
pub(super) mod trellis;
mod unknown;

use super::case::Files;
use cmf_format::Result;

pub(super) fn add(files: &mut Files) -> Result<()> {
    dense::add(files)?;
    grouped::add(files)?;
    sparse::add(files)?;
    low_rank::add(files)?;
    codebook::add(files)?;
    lossless::add(files)?;
    trellis::add(files)?;
    sign_low_rank::add(files)?;
    nested::add(files)?;
    transforms::add(files)?;
    container::add(files)?;
    unknown::add(files)
}

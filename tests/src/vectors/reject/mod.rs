//! Files that must be refused.

use super::case::Files;
use cmf_format::Result;

pub(super) fn add(_files: &mut Files) -> Result<()> {
    Ok(())
}

//! Which units of an archive take part in a value.

use super::Unit;
use crate::source::Source;
use core::fmt;

/// Which units are held: those up to a level, or any set of them. Blocks of rows of one matrix may be
/// held at different levels.
#[derive(Clone, Copy)]
pub enum Cut<'c> {
    /// All units up to this level; `u16::MAX` is all units.
    Level(u16),
    /// The units for whose index this is true. Whoever chooses them sees to it that a unit comes
    /// with the one that it refines, and that those of level 0 are there: values of rows without
    /// any unit are 0.
    Units(&'c (dyn Fn(u32) -> bool + Sync)),
}

impl Cut<'_> {
    /// Whether `unit` is held.
    pub fn holds<S: Source>(&self, unit: &Unit<'_, S>) -> bool {
        match self {
            Cut::Level(level) => unit.level() <= *level,
            Cut::Units(held) => held(unit.index()),
        }
    }
}

impl From<u16> for Cut<'_> {
    fn from(level: u16) -> Self {
        Cut::Level(level)
    }
}

impl fmt::Debug for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cut::Level(level) => write!(f, "Level({level})"),
            Cut::Units(_) => f.write_str("Units(..)"),
        }
    }
}

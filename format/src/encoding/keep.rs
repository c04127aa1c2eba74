//! What opened nodes keep decoded between reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that nodes which are open together may still keep decoded: factors, codebooks, frames.
///
/// A term takes a few bytes of a file and may share all else with other terms, so that what each
/// of them keeps is bounded for all together. Nodes beyond the budget decode anew at each read.
#[derive(Clone, Debug)]
pub struct KeepBudget(Arc<AtomicU64>);

impl KeepBudget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    /// Takes bytes out of the budget; `false` when there are not as many.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// As [`KeepBudget::take`], for values of f32 of which at most `most` are kept.
    pub(super) fn take_values(&self, values: usize, most: usize) -> bool {
        values <= most && self.take(values.saturating_mul(4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_no_more_than_there_is() {
        let budget = KeepBudget::new(100);
        let same = budget.clone();
        assert!(budget.take(60));
        assert!(!same.take(41));
        assert!(same.take_values(10, 10));
        assert!(!budget.take(1));
    }
}

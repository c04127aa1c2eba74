//! Sets of bytes of a file, as runs of pages.

use core::ops::Range;

/// Ranges of a file: ascending, not empty, not touching each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(Vec<Range<u64>>);

impl Runs {
    /// All of `0..end`.
    pub(crate) fn up_to(end: u64) -> Self {
        let mut runs = Self::default();
        runs.push(0..end);
        runs
    }

    /// Adds a range that begins no earlier than the last one does.
    pub(crate) fn push(&mut self, range: Range<u64>) {
        match self.0.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }

    /// What is here and not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = Self::default();
        let mut others = other.0.iter().peekable();
        for run in &self.0 {
            let mut start = run.start;
            while let Some(other) = others.peek() {
                if other.end <= start {
                    others.next();
                    continue;
                }
                if other.start >= run.end {
                    break;
                }
                left.push(start..other.start.max(start));
                start = other.end.min(run.end);
                if other.end >= run.end {
                    break;
                }
            }
            left.push(start..run.end);
        }
        left
    }

    /// What is here or in `other`.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self::union([self, other])
    }

    /// What is in any of `sets`.
    pub(crate) fn union<'r>(sets: impl IntoIterator<Item = &'r Self>) -> Self {
        let mut all: Vec<_> = sets.into_iter().flat_map(|set| &set.0).cloned().collect();
        all.sort_unstable_by_key(|run| run.start);
        let mut runs = Self::default();
        all.into_iter().for_each(|run| runs.push(run));
        runs
    }

    /// What is here and in `other`.
    pub(crate) fn within(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }

    /// The runs from the multiple of `block_bytes` before to the one after, to which `phase` is added to each
    /// position.
    pub(crate) fn blocks(&self, block_bytes: u64, phase: u64) -> Self {
        let block = block_bytes.max(1);
        let over = |at: u64| (at % block + phase % block) % block;
        let mut blocks = Self::default();
        for run in &self.0 {
            let end = match over(run.end) {
                0 => run.end,
                over => run.end.saturating_add(block - over),
            };
            blocks.push(run.start.saturating_sub(over(run.start))..end);
        }
        blocks
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.end.saturating_sub(run.start)).fold(0, u64::saturating_add)
    }

    /// Whether all of `range` is here.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        let after = self.0.partition_point(|run| run.start <= range.start);
        let run = after.checked_sub(1).and_then(|last| self.0.get(last));
        range.is_empty() || run.is_some_and(|run| run.end >= range.end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// The runs in parts, cut at multiples of `part_bytes`, to which `phase` is added to each position.
    pub(crate) fn parts(&self, part_bytes: u64, phase: u64) -> Vec<Range<u64>> {
        let part = part_bytes.max(1);
        let cut = |run: &Range<u64>| {
            let end = run.end;
            let next = move |start: u64| {
                let over = (start % part + phase % part) % part;
                end.min(start.saturating_add(part - over))
            };
            let starts = core::iter::successors(Some(run.start), move |start| Some(next(*start)));
            starts.take_while(move |start| *start < end).map(move |start| start..next(start))
        };
        self.0.iter().flat_map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn runs(ranges: &[(u64, u64)]) -> Runs {
        let mut sorted: Vec<_> = ranges.iter().map(|(start, length)| *start..start + length).collect();
        sorted.sort_by_key(|range| range.start);
        let mut runs = Runs::default();
        sorted.into_iter().for_each(|range| runs.push(range));
        runs
    }

    fn bytes(runs: &Runs) -> BTreeSet<u64> {
        runs.iter().cloned().flatten().collect()
    }

    proptest! {
        #[test]
        fn are_sets(
            a in prop::collection::vec((0u64..60, 0u64..9), 0..8),
            b in prop::collection::vec((0u64..60, 0u64..9), 0..8),
            probe in (0u64..60, 0u64..9),
            phase in 0u64..9,
        ) {
            let (a, b) = (runs(&a), runs(&b));
            let (sa, sb) = (bytes(&a), bytes(&b));
            prop_assert_eq!(bytes(&a.minus(&b)), &sa - &sb);
            prop_assert_eq!(bytes(&a.plus(&b)), &sa | &sb);
            prop_assert_eq!(a.minus(&b).plus(&b), a.plus(&b), "one form for one set");
            prop_assert_eq!(bytes(&a.within(&b)), &sa & &sb);
            let block = |byte: u64| (byte + phase) / 4;
            let of_blocks = (0..80).filter(|byte| sa.iter().any(|other| block(*byte) == block(*other)));
            prop_assert_eq!(bytes(&a.blocks(4, phase)), of_blocks.collect::<BTreeSet<_>>());
            prop_assert_eq!(a.bytes(), sa.len() as u64);
            let probe = probe.0..probe.0 + probe.1;
            prop_assert_eq!(a.covers(&probe), probe.clone().all(|byte| sa.contains(&byte)));
            let parts = a.parts(4, phase);
            prop_assert!(parts.iter().all(|part| (part.end + phase) % 4 == 0 || a.iter().any(|run| run.end == part.end)));
            prop_assert!(parts.iter().all(|part| part.end - part.start <= 4 && !part.is_empty()));
            prop_assert!(parts.into_iter().flatten().eq(sa));
        }
    }
}

//! Which groups are asked for next, and what has come.

use crate::groups::Group;
use core::ops::Range;
use std::collections::BTreeSet;

/// What is to be done about each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not asked for.
    Waiting,
    /// Somebody is getting it.
    Asked,
    Here,
}

/// The state of a fetch.
#[derive(Debug)]
pub(crate) struct Queue {
    states: Vec<State>,
    /// Groups in the order in which they are wanted.
    order: Vec<usize>,
    /// Those of `order` before this one have been asked for or are here.
    next: usize,
    /// By step: groups that are missing.
    missing: Vec<u32>,
    /// Steps of which nothing is missing.
    arrived: usize,
    /// Steps that are wanted first: nothing else is asked for before they are here.
    required: usize,
    /// Steps that are wanted.
    wanted: usize,
    /// By group: whether it is wanted.
    counted: Vec<bool>,
    /// Groups that are wanted and not here.
    left: usize,
    /// Groups that somebody waits for: while there are some nothing else is asked for.
    asked: BTreeSet<usize>,
    pub(crate) have_bytes: u64,
    pub(crate) wanted_bytes: u64,
}

/// A request: groups that lie next to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) groups: Range<usize>,
    pub(crate) bytes: Range<u64>,
}

impl Queue {
    /// `groups` in file order, of a schedule of `steps`, of which the first `required` and then the first
    /// `wanted` are to come.
    pub(crate) fn new(
        groups: &[Group],
        present: &[bool],
        steps: usize,
        required: usize,
        wanted: usize,
    ) -> Self {
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|index| groups.get(*index).map_or((0, 0), |group| (group.step, group.rank)));
        let mut missing = vec![0u32; steps.saturating_add(1)];
        let mut queue = Self {
            states: present.iter().map(|here| if *here { State::Here } else { State::Waiting }).collect(),
            order,
            next: 0,
            missing: Vec::new(),
            arrived: 0,
            required,
            wanted,
            counted: groups.iter().map(|group| group.step <= wanted).collect(),
            left: 0,
            asked: BTreeSet::new(),
            have_bytes: 0,
            wanted_bytes: 0,
        };
        for (group, here) in groups.iter().zip(present) {
            if group.step <= wanted {
                queue.wanted_bytes = queue.wanted_bytes.saturating_add(group.bytes());
                queue.have_bytes = queue.have_bytes.saturating_add(if *here { group.bytes() } else { 0 });
                queue.left = queue.left.saturating_add(usize::from(!here));
            }
            if let Some(count) = missing.get_mut(group.step).filter(|_| !here) {
                *count = count.saturating_add(1);
            }
        }
        queue.missing = missing;
        queue.advance();
        queue
    }

    /// Steps that are whole: 0 also when what every model needs is not.
    pub(crate) fn arrived(&self) -> usize {
        self.arrived
    }

    /// Whether all that every model needs, and the first `steps` steps, are here.
    pub(crate) fn has(&self, steps: usize) -> bool {
        self.missing.first() == Some(&0) && self.arrived >= steps
    }

    /// Whether nothing is missing of what is wanted.
    pub(crate) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Wants `asked` of the `groups` before anything else.
    pub(crate) fn ask(&mut self, groups: &[Group], asked: Range<usize>) {
        for index in asked {
            let (Some(group), false) = (groups.get(index), self.is_here(index)) else { continue };
            self.asked.insert(index);
            if let Some(counted) = self.counted.get_mut(index).filter(|counted| !**counted) {
                *counted = true;
                self.left = self.left.saturating_add(1);
                self.wanted_bytes = self.wanted_bytes.saturating_add(group.bytes());
            }
        }
    }

    /// Whether all of the file is here.
    pub(crate) fn is_whole(&self) -> bool {
        self.states.iter().all(|state| *state == State::Here)
    }

    /// Whether group `index` is here.
    pub(crate) fn is_here(&self, index: usize) -> bool {
        self.states.get(index) == Some(&State::Here)
    }

    /// The next request, of at most `most_bytes` where it has more than one group: what somebody waits for, and
    /// when there is nothing of that what is wanted, unless `asked_only`.
    pub(crate) fn take(&mut self, groups: &[Group], most_bytes: u64, asked_only: bool) -> Option<Request> {
        let waiting = |index: &&usize| self.states.get(**index) == Some(&State::Waiting);
        if let Some(first) = self.asked.iter().find(waiting).copied() {
            return self.request(groups, first, most_bytes, |queue, index| queue.asked.contains(&index));
        }
        if asked_only || !self.asked.is_empty() {
            return None;
        }
        let until = if self.has(self.required) { self.wanted } else { self.required.min(self.wanted) };
        let first = loop {
            let first = *self.order.get(self.next)?;
            let group = groups.get(first)?;
            if group.step > until {
                return None;
            }
            if self.states.get(first) == Some(&State::Waiting) {
                break first;
            }
            self.next = self.next.saturating_add(1);
        };
        let wanted = |_: &Self, index: usize| groups.get(index).is_some_and(|group| group.step <= until);
        self.request(groups, first, most_bytes, wanted)
    }

    /// A request for `first` and what waits behind it, as far as `takes` takes it.
    fn request(
        &mut self,
        groups: &[Group],
        first: usize,
        most_bytes: u64,
        takes: impl Fn(&Self, usize) -> bool,
    ) -> Option<Request> {
        let start = groups.get(first)?.range.start;
        let (mut end, mut after) = (start, first);
        while let Some(group) = groups.get(after) {
            let waiting = self.states.get(after) == Some(&State::Waiting) && takes(self, after);
            if !waiting || (after > first && group.range.end.saturating_sub(start) > most_bytes) {
                break;
            }
            end = group.range.end;
            after = after.saturating_add(1);
        }
        self.states.get_mut(first..after)?.fill(State::Asked);
        Some(Request { groups: first..after, bytes: start..end })
    }

    /// Gives back what a request did not get.
    pub(crate) fn put_back(&mut self, request: &Request) {
        for state in self.states.get_mut(request.groups.clone()).unwrap_or(&mut []) {
            if *state == State::Asked {
                *state = State::Waiting;
            }
        }
        self.next = 0;
    }

    /// Says that group `index` is here; whether that is new.
    pub(crate) fn came(&mut self, index: usize, group: &Group) -> bool {
        let Some(state) = self.states.get_mut(index).filter(|state| **state != State::Here) else {
            return false;
        };
        *state = State::Here;
        self.asked.remove(&index);
        if self.counted.get(index) == Some(&true) {
            self.have_bytes = self.have_bytes.saturating_add(group.bytes());
            self.left = self.left.saturating_sub(1);
        }
        if let Some(count) = self.missing.get_mut(group.step) {
            *count = count.saturating_sub(1);
        }
        self.advance();
        true
    }

    fn advance(&mut self) {
        if self.missing.first() != Some(&0) {
            return;
        }
        let rest = self.missing.get(self.arrived.saturating_add(1)..).unwrap_or(&[]);
        let whole = rest.iter().take_while(|missing| **missing == 0).count();
        self.arrived = self.arrived.saturating_add(whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of ten bytes, of these steps.
    fn groups(steps: &[usize]) -> Vec<Group> {
        let group = |(i, step): (u64, &usize)| Group::for_test(10 * i..10 * i + 10, *step);
        (0..).zip(steps).map(group).collect()
    }

    #[test]
    fn asks_in_the_order_of_the_schedule_for_what_lies_together() {
        let groups = groups(&[0, 2, 2, 1, 1, 3]);
        let mut queue = Queue::new(&groups, &[false; 6], 3, 1, 2);
        let take = |queue: &mut Queue| -> Vec<_> {
            std::iter::from_fn(|| queue.take(&groups, 20, false)).map(|request| request.groups).collect()
        };
        assert_eq!(take(&mut queue), [0..1, 3..5], "what is required comes first and alone");
        [0, 3, 4].iter().for_each(|index: &usize| assert!(queue.came(*index, &groups[*index])));
        assert_eq!(take(&mut queue).as_slice(), std::slice::from_ref(&(1..3)), "the last step is not wanted");
        assert_eq!((queue.have_bytes, queue.wanted_bytes), (30, 50));
    }

    #[test]
    fn a_step_has_arrived_when_all_before_it_have() {
        let groups = groups(&[0, 1, 2, 3]);
        let mut queue = Queue::new(&groups, &[false; 4], 3, 0, 3);
        for (index, arrived) in [(2, 0), (1, 0), (0, 2), (3, 3)] {
            assert!(queue.came(index, &groups[index]) && !queue.came(index, &groups[index]));
            assert_eq!(queue.arrived(), arrived, "after group {index}");
        }
        assert!(queue.is_done());
    }

    #[test]
    fn what_somebody_waits_for_comes_first_and_alone() {
        // Two steps, and behind them what is on demand.
        let groups = groups(&[0, 1, 3, 3, 3, 2, 3]);
        let mut queue = Queue::new(&groups, &[true, true, false, false, false, false, false], 2, 1, 2);
        let take = |queue: &mut Queue, only| queue.take(&groups, 20, only).map(|request| request.groups);
        assert_eq!(take(&mut queue, true), None, "nobody waits");
        queue.ask(&groups, 3..5);
        queue.ask(&groups, 0..1);
        assert_eq!((queue.have_bytes, queue.wanted_bytes), (20, 50));
        let request = queue.take(&groups, 20, true).expect("somebody waits");
        assert_eq!(request.groups, 3..5);
        assert_eq!(take(&mut queue, false), None, "the link is theirs");
        assert!(queue.came(4, &groups[4]));
        queue.put_back(&request);
        assert_eq!(take(&mut queue, false), Some(3..4), "the rest of it is asked for again");
        assert!(queue.came(3, &groups[3]) && !queue.is_done());
        assert_eq!(take(&mut queue, false), Some(5..6));
        assert!(queue.came(5, &groups[5]) && queue.is_done() && !queue.is_whole());
        assert_eq!(queue.arrived(), 2);
        queue.ask(&groups, 6..7);
        assert!(!queue.is_done());
        // Where all of it is wanted, what is on demand comes last.
        let mut present = [false; 7];
        present[0] = true;
        let mut queue = Queue::new(&groups, &present, 2, 0, 3);
        let order: Vec<_> = std::iter::from_fn(|| take(&mut queue, false)).collect();
        assert_eq!(order, [1..3, 5..7, 3..5]);
    }

    #[test]
    fn what_did_not_come_is_asked_for_again() {
        let groups = groups(&[0, 1, 2]);
        let mut queue = Queue::new(&groups, &[true, false, false], 2, 0, 2);
        let request = queue.take(&groups, 100, false).expect("something is missing");
        assert_eq!(request, Request { groups: 1..3, bytes: 10..30 });
        assert!(queue.take(&groups, 100, false).is_none());
        queue.came(1, &groups[1]);
        queue.put_back(&request);
        assert_eq!(queue.take(&groups, 100, false).map(|r| r.groups), Some(2..3));
    }
}

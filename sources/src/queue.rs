//! Which groups are asked for next, and what has come.

use crate::groups::Group;
use core::ops::Range;

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
        order.sort_by_key(|index| groups.get(*index).map_or(0, |group| group.step));
        let mut missing = vec![0u32; steps.saturating_add(1)];
        let mut queue = Self {
            states: present.iter().map(|here| if *here { State::Here } else { State::Waiting }).collect(),
            order,
            next: 0,
            missing: Vec::new(),
            arrived: 0,
            required,
            wanted,
            have_bytes: 0,
            wanted_bytes: 0,
        };
        for (group, here) in groups.iter().zip(present) {
            let bytes = group.range.end.saturating_sub(group.range.start);
            if group.step <= wanted {
                queue.wanted_bytes = queue.wanted_bytes.saturating_add(bytes);
                queue.have_bytes = queue.have_bytes.saturating_add(if *here { bytes } else { 0 });
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
        self.have_bytes >= self.wanted_bytes && self.has(self.wanted)
    }

    /// Whether all of the file is here.
    pub(crate) fn is_whole(&self) -> bool {
        self.states.iter().all(|state| *state == State::Here)
    }

    /// Whether group `index` is here.
    pub(crate) fn is_here(&self, index: usize) -> bool {
        self.states.get(index) == Some(&State::Here)
    }

    /// The next request, of at most `most_bytes` where it has more than one group.
    pub(crate) fn take(&mut self, groups: &[Group], most_bytes: u64) -> Option<Request> {
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
        let start = groups.get(first)?.range.start;
        let (mut end, mut after) = (start, first);
        while let Some(group) = groups.get(after) {
            let waiting = self.states.get(after) == Some(&State::Waiting) && group.step <= until;
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
        if group.step <= self.wanted {
            self.have_bytes =
                self.have_bytes.saturating_add(group.range.end.saturating_sub(group.range.start));
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
            std::iter::from_fn(|| queue.take(&groups, 20)).map(|request| request.groups).collect()
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
    fn what_did_not_come_is_asked_for_again() {
        let groups = groups(&[0, 1, 2]);
        let mut queue = Queue::new(&groups, &[true, false, false], 2, 0, 2);
        let request = queue.take(&groups, 100).expect("something is missing");
        assert_eq!(request, Request { groups: 1..3, bytes: 10..30 });
        assert!(queue.take(&groups, 100).is_none());
        queue.came(1, &groups[1]);
        queue.put_back(&request);
        assert_eq!(queue.take(&groups, 100).map(|r| r.groups), Some(2..3));
    }
}

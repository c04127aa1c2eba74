//! One pass over the directory of an archive: what each step of its schedule adds.

use super::Want;
use cmf_format::archive::{Matrix, Node, Unit};
use cmf_format::{Archive, Compression, Source, wire::HEADER_BYTES};
use core::ops::Range;

/// The number of steps that never comes.
pub(super) const NEVER: u32 = u32::MAX;

/// A segment of payload as far as it is ever held.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldSegment {
    /// Steps of the schedule that must be held for it: 0 when it always is, [`NEVER`] when it is for
    /// something that a running model does not hold.
    pub(super) needed: u32,
    pub(super) raw: bool,
    /// First byte in the file.
    pub(super) offset: u64,
    pub(super) decoded_bytes: u64,
}

impl HeldSegment {
    /// The pages of the file that it lies on, when it is raw; none when it is empty.
    pub(super) fn pages(&self, page_bytes: u64) -> Range<u64> {
        if self.decoded_bytes == 0 {
            return 0..0;
        }
        let end = self.offset.saturating_add(self.decoded_bytes);
        let end = end.checked_next_multiple_of(page_bytes).unwrap_or(u64::MAX);
        self.offset - self.offset % page_bytes..end
    }
}

/// What one archive holds, in the order of its own schedule.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) identity: [u8; 32],
    /// Header, directory, and the segments of transforms.
    pub(super) overhead_bytes: u64,
    /// Elements of the matrices; those of tied tensors once, those of deltas not.
    pub(super) elements: u64,
    /// Units by step: those that are wanted.
    pub(super) units: Vec<u32>,
    /// Units that there are.
    pub(super) all_units: usize,
    /// Bytes that each step adds: those of its segments that no step before has.
    pub(super) added_bytes: Vec<u64>,
    /// Expected loss after each step; NaN where it is not stated.
    pub(super) losses: Vec<f64>,
    /// Steps up to the last unit of level 0 and the last that is wanted always.
    pub(super) required: usize,
    /// By index of the segment; `needed` counts steps of this archive.
    pub(super) segments: Vec<HeldSegment>,
}

impl Pass {
    /// O(nodes, units and segments). `want` is asked for the name of each tensor; none is all alike.
    pub(super) fn over<S: Source>(archive: &Archive<S>, want: Option<&dyn Fn(&str) -> Want>) -> Self {
        let wants = want.map(|want| wants(archive, want));
        let of_matrix = |matrix: u32| {
            let wants = wants.as_ref();
            wants.map_or(Want::Budget, |wants| wants.get(matrix as usize).copied().unwrap_or(Want::Never))
        };
        let mut pass = Self {
            identity: archive.identity(),
            overhead_bytes: HEADER_BYTES.saturating_add(archive.header().directory_bytes.get()),
            elements: elements(archive, &of_matrix),
            units: Vec::new(),
            all_units: archive.units().len(),
            added_bytes: Vec::new(),
            losses: Vec::new(),
            required: 0,
            segments: archive.segments().map(|segment| held(&segment)).collect(),
        };
        let mut walk = Walk { seen: vec![false; archive.nodes().len()], pending: Vec::new() };
        for matrix in archive.matrices().filter(|m| of_matrix(m.index()) >= Want::Budget) {
            let bytes = walk.transforms(&matrix, &mut pass.segments);
            pass.overhead_bytes = pass.overhead_bytes.saturating_add(bytes);
        }
        // A term may name the node of a transform: its segments are counted, but not those of others
        // that it was seen with.
        walk.seen.fill(false);
        let want_of = |unit: &Unit<'_, S>| of_matrix(unit.record().matrix.get());
        let steps = || archive.schedule().filter_map(|step| Some((step.unit()?, step.expected_loss())));
        let wanted = || steps().filter(|(unit, _)| want_of(unit) >= Want::Budget);
        let first = wanted().enumerate().filter(|(_, (unit, _))| unit.level() == 0).last();
        let first = first.map_or(0, |(last, _)| last + 1);
        // What is wanted always comes right behind what every model needs.
        let pinned = |unit: &Unit<'_, S>| want_of(unit) == Want::Always;
        let order = wanted().take(first);
        let order = order.chain(wanted().skip(first).filter(|(unit, _)| pinned(unit)));
        pass.required = first + wanted().skip(first).filter(|(unit, _)| pinned(unit)).count();
        for (unit, loss) in order.chain(wanted().skip(first).filter(|(unit, _)| !pinned(unit))) {
            walk.pending.extend(unit.terms().filter_map(|term| term.node()));
            pass.units.push(unit.index());
            let needed = u32::try_from(pass.units.len()).unwrap_or(NEVER);
            pass.added_bytes.push(walk.hold(&mut pass.segments, needed));
            // What a file states is for its own order.
            pass.losses.push(loss.filter(|_| wants.is_none()).unwrap_or(f64::NAN));
        }
        pass
    }
}

fn held<S: Source>(segment: &cmf_format::archive::Segment<'_, S>) -> HeldSegment {
    let record = segment.record();
    HeldSegment {
        needed: NEVER,
        raw: segment.compression() == Some(Compression::Raw),
        offset: record.offset.get(),
        decoded_bytes: record.decoded_bytes.get(),
    }
}

/// What is wanted of each matrix: the most that any tensor with it is.
fn wants<S: Source>(archive: &Archive<S>, want: &dyn Fn(&str) -> Want) -> Vec<Want> {
    let mut wants = vec![Want::Never; archive.matrices().len()];
    for tensor in archive.tensors() {
        let wanted = want(tensor.name());
        for matrix in tensor.matrices() {
            if let Some(place) = wants.get_mut(matrix.index() as usize) {
                *place = wanted.max(*place);
            }
        }
    }
    wants
}

fn elements<S: Source>(archive: &Archive<S>, want: &dyn Fn(u32) -> Want) -> u64 {
    let mut next_matrix = 0;
    let mut elements = 0u64;
    for tensor in archive.tensors() {
        let record = tensor.record();
        // A tied tensor names matrices of one before it.
        if record.first_matrix.get() != next_matrix {
            continue;
        }
        next_matrix = next_matrix.saturating_add(record.matrix_count.get());
        let wanted = || tensor.matrices().any(|matrix| want(matrix.index()) >= Want::Budget);
        if record.matrix_count.get() > 0 && !tensor.is_delta() && wanted() {
            elements = elements.saturating_add(tensor.elements());
        }
    }
    elements
}

/// Visits nodes and all below them, each once.
struct Walk<'a, S> {
    seen: Vec<bool>,
    pending: Vec<Node<'a, S>>,
}

impl<'a, S: Source> Walk<'a, S> {
    /// Marks the segments of the pending nodes and all below them that are not held yet, as `needed`;
    /// gives their bytes.
    fn hold(&mut self, segments: &mut [HeldSegment], needed: u32) -> u64 {
        let mut added = 0u64;
        while let Some(node) = self.pending.pop() {
            match self.seen.get_mut(node.index() as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            for segment in node.segments() {
                added = added.saturating_add(hold(segments, segment.index(), needed));
            }
            self.pending.extend(node.children());
        }
        added
    }

    fn transforms(&mut self, matrix: &Matrix<'a, S>, segments: &mut [HeldSegment]) -> u64 {
        let (inputs, outputs) = matrix.transforms();
        let mut added = 0u64;
        for record in inputs.into_iter().chain(outputs) {
            added = added.saturating_add(hold(segments, record.segment.get(), 0));
            self.pending.extend(matrix.archive().node(record.node.get()));
        }
        added.saturating_add(self.hold(segments, 0))
    }
}

fn hold(segments: &mut [HeldSegment], index: u32, needed: u32) -> u64 {
    match segments.get_mut(index as usize) {
        Some(segment) if segment.needed == NEVER => {
            segment.needed = needed;
            segment.decoded_bytes
        }
        _ => 0,
    }
}

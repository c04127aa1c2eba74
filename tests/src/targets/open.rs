//! Parsing: any bytes give an archive or an error, and whatever an archive lists is sound.

use super::{file, limits};
use cmf_format::archive::Node;
use cmf_format::{Archive, Source};
use std::borrow::Cow;
use std::collections::HashSet;
use std::hint::black_box;

/// Opens a file and lists all that is in it.
pub fn open(input: &[u8]) {
    let Some(bytes) = file(input) else { return };
    let limits = limits();
    let parsed = Archive::parse(&bytes, &limits);
    let fetched = Archive::parse(Fetched::new(&bytes), &limits);
    match (parsed, fetched) {
        (Ok(archive), Ok(fetched)) => {
            assert_eq!(archive.identity(), fetched.identity(), "the source matters");
            list(&archive);
        }
        (Err(error), Err(fetched)) => {
            assert_eq!(error.kind(), fetched.kind(), "the source matters");
            black_box(error.to_string());
        }
        (archive, fetched) => panic!("the source matters: {:?} {:?}", archive.err(), fetched.err()),
    }
}

/// A source that holds no more than header and directory, as one over a network does.
pub(super) struct Fetched<'a> {
    head: &'a [u8],
    all: &'a [u8],
}

impl<'a> Fetched<'a> {
    /// Takes the head that a reader would ask for first.
    pub(super) fn new(all: &'a [u8]) -> Self {
        let stated = Archive::<&[u8]>::head_bytes(all, all.len() as u64, &limits()).unwrap_or(256);
        let head = all.get(..usize::try_from(stated).unwrap_or(usize::MAX)).unwrap_or(all);
        Self { head, all }
    }
}

impl Source for Fetched<'_> {
    fn head(&self) -> &[u8] {
        self.head
    }

    fn file_bytes(&self) -> u64 {
        self.all.len() as u64
    }

    fn read(&self, offset: u64, bytes: u64) -> cmf_format::Result<Cow<'_, [u8]>> {
        self.all.read(offset, bytes).map(|bytes| Cow::Owned(bytes.into_owned()))
    }
}

fn list<S: Source>(archive: &Archive<S>) {
    let segments = archive.segments().len();
    let mut end = 0;
    for segment in archive.segments() {
        assert!(segment.record().offset.get() >= end, "segments overlap");
        end = segment.record().offset.get() + segment.record().stored_bytes.get();
        black_box(segment.compression());
    }
    assert!(end <= archive.source().file_bytes());
    let mut previous = None;
    for tensor in archive.tensors() {
        assert!(previous < Some(tensor.name()), "names are not ascending");
        previous = Some(tensor.name());
        let found = archive.tensor(tensor.name());
        assert_eq!(found.map(|t| t.index()), Some(tensor.index()), "a name is not found");
        assert_eq!(tensor.shape().iter().product::<u64>(), tensor.elements());
        let held: u64 = tensor.matrices().map(|m| m.rows() * m.cols()).sum();
        assert!(held == tensor.elements() || tensor.matrices().len() == 0);
        black_box((tensor.dtype(), tensor.is_delta(), tensor.reference().map(|r| r.kind())));
    }
    for matrix in archive.matrices() {
        black_box(matrix.transforms());
        let units: usize = matrix.units().map(|u| u.terms().len()).sum();
        assert_eq!(units, matrix.terms().len(), "a term is in no unit");
        for term in matrix.terms() {
            assert!(term.level() <= matrix.highest_level());
            assert!(term.node().is_some_and(|n| n.record().rows.get() <= matrix.rows()));
            black_box((term.is_known(), term.is_optional()));
        }
    }
    let mut depths = Vec::new();
    for node in archive.nodes() {
        depths.push(depth(&node, &depths));
        black_box((node.encoding_name(), node.is_known(), node.descriptor()));
        let all = node.all_segments();
        assert!(all.is_sorted_by(|a, b| a < b) && all.iter().all(|i| (*i as usize) < segments));
    }
    assert!(depths.iter().all(|depth| *depth <= archive.limits().node_depth));
    for unit in archive.units() {
        let all = unit.segments();
        assert!(all.is_sorted_by(|a, b| a < b) && all.iter().all(|i| (*i as usize) < segments));
    }
    let steps: HashSet<u32> = archive.schedule().map(|s| s.record().unit.get()).collect();
    assert_eq!(steps.len(), archive.units().len(), "the schedule is no permutation of the units");
    let names: Vec<&str> = archive.attributes().map(|a| a.name()).collect();
    assert!(names.is_sorted_by(|a, b| a < b));
    for name in names {
        black_box(archive.attribute(name).map(|a| (a.media_type(), a.bytes().is_ok())));
    }
    for reference in archive.references() {
        let name = reference.name();
        assert!(!name.contains(['/', '\\', '\0']) && name != "..", "{name:?} leaves the folder");
    }
}

/// Depth of a node whose children's depths are in `below`.
fn depth<S: Source>(node: &Node<'_, S>, below: &[u32]) -> u32 {
    let children = node.children().map(|c| {
        assert!(c.index() < node.index(), "a child comes after its parent");
        below.get(c.index() as usize).copied().unwrap_or(0)
    });
    1 + children.max().unwrap_or(0)
}

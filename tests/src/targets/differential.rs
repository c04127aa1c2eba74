//! The decoder against the naive one: they accept the same nodes, refuse the same payload, and
//! decode to the same bits.

use super::decode::{decode_view, same};
use crate::generate;
use crate::naive::{Outcome, Reject, Tree};
use arbitrary::Unstructured;
use cmf_format::encoding::{KeepBudget, RawNode, View};
use cmf_format::{ErrorKind, Result};
use std::borrow::Cow;

/// Most values that the naive decoder is asked for.
const MAX_VALUES: u64 = 512;

/// Generates a node, changes it a little, and compares what both decoders say.
pub fn differential(input: &[u8]) {
    let mut u = Unstructured::new(input);
    let Ok(tree) = changed(&mut u) else { return };
    compare(&tree);
}

fn changed(u: &mut Unstructured<'_>) -> arbitrary::Result<Tree> {
    let changes: Vec<Change> =
        (0..u.int_in_range(0..=3)?).map(|_| Change::take(u)).collect::<arbitrary::Result<_>>()?;
    let (rows, cols) = (u.int_in_range(0..=6)?, u.int_in_range(0..=24)?);
    let mut tree = Tree::from(&generate::node(u, rows, cols, 3)?);
    for change in &changes {
        change.apply(&mut tree, 0);
    }
    Ok(tree)
}

/// One change of a node somewhere in a tree.
struct Change {
    path: [u8; 3],
    part: u8,
    at: u16,
    byte: u8,
}

impl Change {
    fn take(u: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self {
            path: u.arbitrary()?,
            part: u.int_in_range(0..=8)?,
            at: u.arbitrary()?,
            byte: u.arbitrary()?,
        })
    }

    fn apply(&self, tree: &mut Tree, depth: usize) {
        let step = self.path.get(depth).map_or(0, |step| usize::from(*step));
        let count = tree.children.len();
        if !step.is_multiple_of(4)
            && let Some(child) = tree.children.get_mut(step % count.max(1))
        {
            return self.apply(child, depth + 1);
        }
        let at = usize::from(self.at);
        let set = |bytes: &mut Vec<u8>| {
            let length = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % length) {
                *byte = self.byte;
            }
        };
        let segments = tree.segments.len().max(1);
        match (self.part, tree.segments.get_mut(at % segments)) {
            (0 | 1, _) => set(&mut tree.descriptor),
            (2..=4, Some(segment)) => set(segment),
            (5, Some(segment)) => segment.truncate(usize::from(self.byte)),
            (6, Some(segment)) => segment.push(self.byte),
            (7, _) => tree.rows = self.byte.into(),
            (8, _) => tree.cols = self.byte.into(),
            _ => tree.version = self.byte.into(),
        }
    }
}

/// Opens a tree with the decoder under test.
///
/// # Errors
/// As [`View::open`].
fn open(tree: &Tree) -> Result<View<'_>> {
    View::open(RawNode {
        encoding: tree.encoding,
        version: tree.version,
        rows: tree.rows,
        cols: tree.cols,
        descriptor: &tree.descriptor,
        segments: tree.segments.iter().map(|s| Cow::Borrowed(s.as_slice())).collect(),
        children: tree.children.iter().map(open).collect::<Result<_>>()?,
        // Some nodes keep what they decode and others do not.
        keep: KeepBudget::new(tree.rows.saturating_mul(60)),
    })
}

/// Compares what both decoders say of a tree.
pub fn compare(tree: &Tree) {
    let view = match (open(tree), tree.check()) {
        (Ok(view), Ok(())) => view,
        (Err(error), Err(Reject::Structure | Reject::Unsupported)) => {
            assert!(matches!(error.kind(), ErrorKind::Structure | ErrorKind::Unsupported), "{error}");
            return;
        }
        (view, naive) => panic!("open: {:?}, naive: {naive:?}", view.map(|_| ())),
    };
    let (sound, naive) = (view.verify(), tree.verify());
    match (&sound, naive) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(Reject::Value)) if error.kind() == ErrorKind::Value => {}
        _ => panic!("verify: {sound:?}, naive: {naive:?}"),
    }
    decode_view(&view);
    let leaves_sound = tree.children.iter().all(|child| child.verify().is_ok());
    let few = MAX_VALUES.checked_div(tree.cols.max(1)).unwrap_or(0).min(tree.rows);
    for i in 0..few {
        let mut row = vec![f32::NAN; tree.cols as usize];
        let decoded = view.decode_rows(i as usize..i as usize + 1, &mut row);
        let expected: Outcome<Vec<f32>> = (0..tree.cols).map(|j| tree.value(i, j)).collect();
        match (decoded, expected) {
            (Ok(()), Ok(expected)) => assert!(same(&row, &expected), "row {i}: {row:?}, naive: {expected:?}"),
            (Err(error), Err(Reject::Value)) => assert_eq!(error.kind(), ErrorKind::Value),
            // A type without values is refused, whether or not a row needs any of its elements.
            (Err(error), _) if error.kind() == ErrorKind::Argument => assert!(has_c64(tree), "{error}"),
            (Ok(()), Err(Reject::Argument)) => panic!("row {i} is made of c64"),
            // A damaged child may be read in rows of its own, of which this row needs a part.
            (decoded, expected) => {
                let naive = expected.map(drop);
                assert!(!leaves_sound, "row {i}: {decoded:?}, naive: {naive:?}");
            }
        }
    }
}

fn has_c64(tree: &Tree) -> bool {
    let dtype = tree.descriptor.first().copied();
    (matches!(tree.encoding, 1 | 6) && dtype == Some(17)) || tree.children.iter().any(has_c64)
}

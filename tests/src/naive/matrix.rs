//! spec/container.md, 6.3: sums of terms between transforms.

use super::{Outcome, Transform, Tree, tree::decoded};
use cmf_format::write::{MatrixEntry, TransformEntry};
use cmf_format::{Result, Source, archive, wire::TransformRecord};

/// A term at its place.
#[derive(Clone, Debug)]
pub struct Term {
    /// Level.
    pub level: u16,
    /// First row.
    pub row: u64,
    /// First column.
    pub col: u64,
    /// Values.
    pub tree: Tree,
}

/// A matrix with all terms that are known.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: u64,
    cols: u64,
    terms: Vec<Term>,
    inputs: Vec<Transform>,
    outputs: Vec<Transform>,
}

impl Matrix {
    /// A matrix to be written, without nodes of encoding `unknown`.
    ///
    /// # Errors
    /// When a transform's factors have no values.
    pub fn of_entry(entry: &MatrixEntry, unknown: u32) -> Outcome<Self> {
        let mut terms = Vec::new();
        for unit in &entry.units {
            for term in unit.terms.iter().filter(|term| term.node.encoding != unknown) {
                let tree = Tree::from(term.node.as_ref());
                terms.push(Term { level: unit.level, row: term.row_start, col: term.col_start, tree });
            }
        }
        let list = |entries: &[TransformEntry]| entries.iter().map(transform).collect::<Outcome<Vec<_>>>();
        let (inputs, outputs) = (list(&entry.input_transforms)?, list(&entry.output_transforms)?);
        Ok(Self { rows: entry.rows, cols: entry.cols, terms, inputs, outputs })
    }

    /// A matrix of an archive.
    ///
    /// # Errors
    /// When a segment does not decode.
    pub fn of_archive<S: Source>(matrix: &archive::Matrix<'_, S>) -> Result<Outcome<Self>> {
        let mut terms = Vec::new();
        for term in matrix.terms().filter(|term| term.is_known()) {
            let (Some(node), record) = (term.node(), term.record()) else { continue };
            let tree = Tree::of_archive(&node)?;
            let (row, col) = (record.row_start.get(), record.col_start.get());
            terms.push(Term { level: term.level(), row, col, tree });
        }
        let list = |records: Vec<&TransformRecord>| -> Result<Outcome<Vec<Transform>>> {
            records.into_iter().map(|record| stored_transform(matrix.archive(), record)).collect()
        };
        let (inputs, outputs) = matrix.transforms();
        let (inputs, outputs) = (list(inputs)?, list(outputs)?);
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Ok(inputs.and_then(|inputs| Ok(Self { rows, cols, terms, inputs, outputs: outputs? })))
    }

    /// All values at a level, row-major.
    ///
    /// # Errors
    /// As [`Tree::value`].
    pub fn values(&self, level: u16) -> Outcome<Vec<f32>> {
        let mut values = Vec::new();
        for i in 0..self.rows {
            for j in 0..self.cols {
                values.push(self.sum(level, i, j)?);
            }
        }
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        for row in values.chunks_exact_mut(cols.max(1)) {
            self.inputs.iter().rev().for_each(|transform| transform.output_side(row));
        }
        for col in 0..cols {
            let mut column: Vec<f32> = (0..rows).map(|row| values[row * cols + col]).collect();
            self.outputs.iter().for_each(|transform| transform.output_side(&mut column));
            column.into_iter().enumerate().for_each(|(row, value)| values[row * cols + col] = value);
        }
        Ok(values)
    }

    fn sum(&self, level: u16, i: u64, j: u64) -> Outcome<f32> {
        self.terms.iter().filter(|term| term.level <= level).try_fold(-0.0, |sum, term| {
            let inside = (term.row..term.row + term.tree.rows).contains(&i)
                && (term.col..term.col + term.tree.cols).contains(&j);
            match inside {
                true => term.tree.add_to(sum, i - term.row, j - term.col),
                false => Ok(sum),
            }
        })
    }
}

fn factors(tree: &Tree) -> Outcome<Transform> {
    (0..tree.cols).map(|j| tree.value(0, j)).collect::<Outcome<_>>().map(Transform::Scale)
}

fn transform(entry: &TransformEntry) -> Outcome<Transform> {
    Ok(match entry {
        TransformEntry::Scale(node) => factors(&Tree::from(node.as_ref()))?,
        TransformEntry::SignHadamard { block, seed } => {
            Transform::Seeded { block: *block as usize, seed: *seed }
        }
        TransformEntry::StoredSignHadamard { block, signs } => {
            Transform::Stored { block: *block as usize, signs: decoded(signs) }
        }
        TransformEntry::Permute(indices) => Transform::Permute(decoded(indices)),
    })
}

fn stored_transform<S: Source>(
    archive: &cmf_format::Archive<S>,
    record: &TransformRecord,
) -> Result<Outcome<Transform>> {
    let block = record.block.get() as usize;
    let bytes = match archive.segment(record.segment.get()) {
        Some(segment) => Some(segment.decoded()?.into_owned()),
        None => None,
    };
    let node = archive.nodes().nth(record.node.get() as usize);
    Ok(match (record.kind.get(), bytes, node) {
        (1, _, Some(node)) => factors(&Tree::of_archive(&node)?),
        (2, Some(signs), _) => Ok(Transform::Stored { block, signs }),
        (2, None, _) => Ok(Transform::Seeded { block, seed: record.seed.get() }),
        (_, indices, _) => Ok(Transform::Permute(indices.unwrap_or_default())),
    })
}

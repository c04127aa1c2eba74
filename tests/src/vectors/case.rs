//! Vectors as they are written: a file and what to expect of it.

use super::naive::Piece;
use super::transform::{self, Transform};
use cmf_format::write::{Content, MatrixEntry, StepEntry, TensorEntry, TermEntry, UnitEntry};
use cmf_format::{ArchiveBuilder, DType, Result, SegmentData, WriteOptions, hash};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Files by their path below `spec/vectors`.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A term of a matrix.
#[derive(Clone, Debug)]
pub struct Term {
    /// First row of its region.
    pub row: usize,
    /// First column of its region.
    pub col: usize,
    /// Whether a reader may leave it out.
    pub optional: bool,
    /// The node.
    pub piece: Piece,
}

impl From<Piece> for Term {
    fn from(piece: Piece) -> Self {
        Self { row: 0, col: 0, optional: false, piece }
    }
}

impl Piece {
    /// A term at a place.
    pub fn at_place(self, row: usize, col: usize) -> Term {
        Term { row, col, ..self.into() }
    }

    /// A term that may be left out.
    pub fn optional(self) -> Term {
        Term { optional: true, ..self.into() }
    }
}

/// A unit of a matrix.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Level.
    pub level: u16,
    /// First row and number of rows.
    pub rows: (usize, usize),
    /// Terms in order.
    pub terms: Vec<Term>,
}

/// A matrix of a tensor.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Units by level and row.
    pub units: Vec<Unit>,
    /// Transforms of the input side.
    pub inputs: Vec<Transform>,
    /// Transforms of the output side.
    pub outputs: Vec<Transform>,
}

impl Matrix {
    /// A sum of terms in one unit of level 0.
    pub fn sum(rows: usize, cols: usize, terms: Vec<Term>) -> Self {
        Self { rows, cols, units: vec![Unit { level: 0, rows: (0, rows), terms }], ..Self::default() }
    }

    fn entry(&self) -> MatrixEntry {
        let transforms = |list: &[Transform]| list.iter().map(Transform::entry).collect();
        MatrixEntry {
            rows: self.rows as u64,
            cols: self.cols as u64,
            input_transforms: transforms(&self.inputs),
            output_transforms: transforms(&self.outputs),
            units: self.units.iter().map(Unit::entry).collect(),
        }
    }

    fn terms(&self, level: u16) -> impl Iterator<Item = &Term> {
        self.units.iter().filter(move |u| u.level <= level).flat_map(|u| &u.terms)
    }

    /// The sum of terms up to a level between the transforms (spec: container, 6.3).
    fn values(&self, level: u16) -> Vec<f32> {
        let mut sums = vec![-0.0f32; self.rows * self.cols];
        for term in self.terms(level).filter(|t| t.piece.known) {
            for i in 0..term.piece.rows() {
                for j in 0..term.piece.cols() {
                    let k = i * term.piece.cols() + j;
                    let sum = &mut sums[(term.row + i) * self.cols + term.col + j];
                    match &term.piece.listed {
                        Some((true, listed)) if listed[k] => *sum = term.piece.values[k],
                        Some((true, _)) => {}
                        _ => *sum += term.piece.values[k],
                    }
                }
            }
        }
        transform::apply(&self.inputs, &self.outputs, &mut sums, self.cols);
        sums
    }

    /// The exact elements of type `dtype` at a level, if there are.
    fn elements(&self, level: u16, dtype: DType) -> Option<Vec<u8>> {
        let (mut next, mut bytes) = (0, Vec::new());
        for term in self.terms(level) {
            let (own, elements) = term.piece.elements.as_ref()?;
            let placed = term.row == next && term.col == 0 && term.piece.cols() == self.cols;
            if !placed || *own != dtype || !self.inputs.is_empty() || !self.outputs.is_empty() {
                return None;
            }
            bytes.extend_from_slice(elements);
            next += term.piece.rows();
        }
        (next == self.rows).then_some(bytes)
    }
}

impl Unit {
    fn entry(&self) -> UnitEntry {
        let terms = self.terms.iter().map(|t| TermEntry {
            row_start: t.row as u64,
            col_start: t.col as u64,
            optional: t.optional,
            node: t.piece.node.clone(),
        });
        UnitEntry {
            level: self.level,
            row_start: self.rows.0 as u64,
            rows: self.rows.1 as u64,
            terms: terms.collect(),
        }
    }
}

/// Where a tensor is.
#[derive(Clone, Debug)]
enum Place {
    Here,
    Shard(String),
    Delta(String),
}

/// A tensor of an accept vector.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    matrices: Vec<Matrix>,
    place: Place,
    unreadable: bool,
}

impl Tensor {
    /// A tensor of matrices.
    pub fn new(name: &str, dtype: DType, shape: &[u64], matrices: Vec<Matrix>) -> Self {
        let (shape, unreadable) = (shape.to_vec(), false);
        Self { name: name.into(), dtype, shape, matrices, place: Place::Here, unreadable }
    }

    /// A tensor `[rows, cols]` of one matrix, the sum of terms.
    pub fn sum(name: &str, dtype: DType, terms: Vec<Term>) -> Self {
        let rows = terms.iter().map(|t| t.row + t.piece.rows()).max().unwrap_or(1);
        let cols = terms.iter().map(|t| t.col + t.piece.cols()).max().unwrap_or(1);
        Self::new(name, dtype, &[rows as u64, cols as u64], vec![Matrix::sum(rows, cols, terms)])
    }

    /// An f32 tensor of one node.
    pub fn of(name: &str, piece: Piece) -> Self {
        Self::sum(name, DType::F32, vec![piece.into()])
    }

    /// A tensor of one node that keeps elements, of their type.
    pub fn exact(name: &str, piece: Piece) -> Self {
        let dtype = piece.elements.as_ref().map_or(DType::F32, |(dtype, _)| *dtype);
        Self::sum(name, dtype, vec![piece.into()])
    }

    /// The tensor of this name is in a shard.
    pub fn in_shard(mut self, archive: &str) -> Self {
        self.place = Place::Shard(archive.into());
        self
    }

    /// The matrices are added to the tensor of this name in a base archive.
    pub fn delta_to(mut self, archive: &str) -> Self {
        self.place = Place::Delta(archive.into());
        self
    }

    /// A reader must refuse to decode it, for a reason that the nodes do not show.
    pub fn unreadable(mut self) -> Self {
        self.unreadable = true;
        self
    }

    fn entry(&self) -> TensorEntry {
        let matrices = self.matrices.iter().map(Matrix::entry).collect();
        let content = match &self.place {
            Place::Here => Content::Matrices(matrices),
            Place::Shard(name) => Content::Shard(name.clone()),
            Place::Delta(name) => Content::Delta(name.clone(), matrices),
        };
        TensorEntry { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone(), content }
    }

    fn expected(&self) -> Value {
        let mut out = Map::new();
        out.insert("name".into(), self.name.as_str().into());
        out.insert("dtype".into(), self.dtype.name().into());
        out.insert("shape".into(), self.shape.clone().into());
        match &self.place {
            Place::Here => {}
            Place::Shard(archive) => {
                out.insert("readable".into(), true.into());
                out.insert("reference".into(), json!({"archive": archive, "kind": "shard"}));
                return out.into();
            }
            Place::Delta(archive) => {
                out.insert("reference".into(), json!({"archive": archive, "kind": "base"}));
            }
        }
        let highest = self.matrices.iter().flat_map(|m| &m.units).map(|u| u.level).max().unwrap_or(0);
        let lost = |m: &Matrix, level| m.terms(level).any(|t| !t.piece.known && !t.optional);
        let readable = |level| !self.unreadable && !self.matrices.iter().any(|m| lost(m, level));
        out.insert("readable".into(), readable(highest).into());
        let real = |level: &u16| self.dtype != DType::C64 && readable(*level);
        let levels: Vec<Value> = (0..=highest).filter(real).map(|level| self.level(level)).collect();
        if !levels.is_empty() {
            out.insert("levels".into(), levels.into());
        }
        if !readable(highest) {
            return out.into();
        }
        let exact: Option<Vec<Vec<u8>>> =
            self.matrices.iter().map(|m| m.elements(highest, self.dtype)).collect();
        if let (Some(parts), Place::Here) = (exact, &self.place) {
            out.insert("elements".into(), hex(&parts.concat()).into());
        }
        out.into()
    }

    fn level(&self, level: u16) -> Value {
        let left_out: usize =
            self.matrices.iter().map(|m| m.terms(level).filter(|t| !t.piece.known).count()).sum();
        let rows: Vec<String> = self
            .matrices
            .iter()
            .flat_map(|m| m.values(level).chunks(m.cols).map(row_text).collect::<Vec<_>>())
            .collect();
        json!({"level": level, "left_out": left_out, "values": rows})
    }
}

/// The bits of a row of values.
fn row_text(row: &[f32]) -> String {
    let words: Vec<String> =
        row.iter().map(|v| if v.is_nan() { "nan".into() } else { format!("{:08x}", v.to_bits()) }).collect();
    words.join(" ")
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Attribute {
    name: String,
    media_type: String,
    bytes: Vec<u8>,
    stored: SegmentData,
}

struct Reference {
    name: String,
    base: bool,
    identity: [u8; 32],
    file_bytes: u64,
}

/// A file that must be read, and what is in it.
pub struct Accept {
    folder: &'static str,
    name: &'static str,
    why: &'static str,
    options: WriteOptions,
    tensors: Vec<Tensor>,
    attributes: Vec<Attribute>,
    references: Vec<Reference>,
    schedule: Option<Vec<StepEntry>>,
    change: Option<fn(Vec<u8>) -> Vec<u8>>,
}

impl Accept {
    /// An empty archive with small alignment and chunk groups.
    pub fn new(folder: &'static str, name: &'static str, why: &'static str) -> Self {
        Self {
            folder,
            name,
            why,
            options: WriteOptions { alignment_bytes: 64, chunk_group_bytes: 1024 },
            tensors: Vec::new(),
            attributes: Vec::new(),
            references: Vec::new(),
            schedule: None,
            change: None,
        }
    }

    /// Adds a tensor.
    pub fn tensor(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// Adds tensors.
    pub fn tensors(mut self, tensors: impl IntoIterator<Item = Tensor>) -> Self {
        self.tensors.extend(tensors);
        self
    }

    /// Adds an attribute that is stored as it is.
    pub fn attribute(self, name: &str, media_type: &str, bytes: &[u8]) -> Self {
        self.stored_attribute(name, media_type, bytes, bytes.to_vec().into())
    }

    /// Adds an attribute with its stored form.
    pub fn stored_attribute(
        mut self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
        stored: SegmentData,
    ) -> Self {
        let (name, media_type, bytes) = (name.into(), media_type.into(), bytes.to_vec());
        self.attributes.push(Attribute { name, media_type, bytes, stored });
        self
    }

    /// Adds a reference to another archive.
    pub fn reference(mut self, name: &str, base: bool, identity: [u8; 32], file_bytes: u64) -> Self {
        self.references.push(Reference { name: name.into(), base, identity, file_bytes });
        self
    }

    /// Sets alignment and chunk groups.
    pub fn options(mut self, alignment_bytes: u32, chunk_group_bytes: u32) -> Self {
        self.options = WriteOptions { alignment_bytes, chunk_group_bytes };
        self
    }

    /// Sets the schedule.
    pub fn schedule(mut self, steps: Vec<StepEntry>) -> Self {
        self.schedule = Some(steps);
        self
    }

    /// Changes the written bytes.
    pub fn change(mut self, change: fn(Vec<u8>) -> Vec<u8>) -> Self {
        self.change = Some(change);
        self
    }

    /// Writes the file and what to expect.
    ///
    /// # Errors
    /// From the writer, for a case that is no valid archive.
    pub fn finish(mut self, files: &mut Files) -> Result<()> {
        let mut builder = ArchiveBuilder::new(self.options);
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        self.attributes.sort_by(|a, b| a.name.cmp(&b.name));
        self.references.sort_by(|a, b| a.name.cmp(&b.name));
        for tensor in &self.tensors {
            builder.tensor(tensor.entry());
        }
        for attribute in &self.attributes {
            builder.attribute(&attribute.name, &attribute.media_type, attribute.stored.clone());
        }
        for r in &self.references {
            match r.base {
                true => builder.base(&r.name, r.identity, r.file_bytes),
                false => builder.shard(&r.name, r.identity, r.file_bytes),
            };
        }
        if let Some(steps) = self.schedule.take() {
            builder.schedule(steps);
        }
        let mut bytes = builder.to_vec()?;
        if let Some(change) = self.change {
            bytes = change(bytes);
        }
        let attributes: Vec<Value> = self
            .attributes
            .iter()
            .map(|a| json!({"name": a.name, "media_type": a.media_type, "bytes": hex(&a.bytes)}))
            .collect();
        let references: Vec<Value> = self
            .references
            .iter()
            .map(|r| {
                let kind = if r.base { "base" } else { "shard" };
                json!({"name": r.name, "kind": kind, "identity": hex(&r.identity), "file_bytes": r.file_bytes})
            })
            .collect();
        let expected = json!({
            "why": self.why,
            "identity": hex(&hash::hash(&bytes[..256])),
            "tensors": self.tensors.iter().map(Tensor::expected).collect::<Vec<_>>(),
            "attributes": attributes,
            "references": references,
        });
        let path = PathBuf::from("accept").join(self.folder).join(self.name);
        add(files, path, bytes, &expected);
        Ok(())
    }
}

/// Where a reject vector fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailsAt<'a> {
    /// When it is opened.
    Parse,
    /// When it is verified.
    Verify,
    /// When this tensor is decoded.
    Tensor(&'a str),
    /// When this attribute is read.
    Attribute(&'a str),
}

/// Adds a file that must be refused.
pub fn reject(files: &mut Files, kind: &str, name: &str, fails_at: FailsAt<'_>, why: &str, bytes: Vec<u8>) {
    let mut expected = Map::new();
    expected.insert("why".into(), why.into());
    expected.insert("kind".into(), kind.into());
    let (stage, what) = match fails_at {
        FailsAt::Parse => ("parse", None),
        FailsAt::Verify => ("verify", None),
        FailsAt::Tensor(name) => ("decode", Some(("tensor", name))),
        FailsAt::Attribute(name) => ("decode", Some(("attribute", name))),
    };
    expected.insert("fails_at".into(), stage.into());
    if let Some((key, name)) = what {
        expected.insert(key.into(), name.into());
    }
    add(files, PathBuf::from("reject").join(kind).join(name), bytes, &expected.into());
}

fn add(files: &mut Files, path: PathBuf, bytes: Vec<u8>, expected: &Value) {
    let mut text = format!("{expected:#}");
    text.push('\n');
    let known = files.insert(path.with_extension("cmf"), bytes);
    assert!(known.is_none(), "{} comes twice", path.display());
    files.insert(path.with_extension("json"), text.into_bytes());
}

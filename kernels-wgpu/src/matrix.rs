//! A matrix on the device: packed terms by unit, between transforms.

use crate::error::{Error, Result, index};
use crate::kernels::Kernels;
use crate::packed::{Numbers, Packed, Reader, dense_of, dense_to_come, row_step, transposed};
use crate::params::TermParams;
use crate::transforms::GpuTransforms;
use crate::upload::Uploader;
use cmf_format::archive::MatrixView;
use cmf_format::encoding::View;
use cmf_format::transform::{Side, Transform};
use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a part of a buffer starts: a multiple of what any WebGPU device asks for.
pub(crate) const ALIGNMENT: u64 = 256;
/// Most codebooks of a `codebook` node, and so of lookups that a kernel is made of.
const BOOKS_MAX: u8 = 16;

/// A matrix whose units are on a device.
///
/// Each term of a unit has a buffer of its own; [`GpuMatrix::remove`] gives it back to the device as
/// soon as what was submitted with it is done.
#[derive(Debug)]
pub struct GpuMatrix {
    rows: u32,
    cols: u32,
    input: Arc<GpuTransforms>,
    output: Arc<GpuTransforms>,
    units: BTreeMap<u32, GpuUnit>,
}

/// A unit of a matrix on the device, which a [`GpuMatrix`] need not have yet: it may be uploaded while
/// the matrix is in use.
#[derive(Debug)]
pub struct GpuUnit {
    rows: u32,
    cols: u32,
    terms: Vec<Held>,
}

impl GpuUnit {
    /// Uploads the terms of a unit of a matrix of `rows` outputs and `cols` inputs, each with the row and
    /// column at which it starts.
    ///
    /// # Errors
    /// `Unsupported` for what has no kernel, `Limit` for a term that no binding holds, `Argument` for
    /// one that reaches beyond the matrix, `Format` for damaged numbers, `Device`.
    pub fn new<'t, 'v: 't>(
        kernels: &Kernels,
        uploader: &mut Uploader,
        rows: usize,
        cols: usize,
        terms: impl Iterator<Item = (usize, usize, &'t View<'v>)>,
    ) -> Result<Self> {
        let (rows, cols) = (index("rows", rows as u64)?, index("columns", cols as u64)?);
        let mut held = Vec::new();
        for (row, col, view) in terms {
            let (row, col) = (index("row", row as u64)?, index("column", col as u64)?);
            let fits = |start: u32, extent: usize, all: u32| u64::from(start) + extent as u64 <= all.into();
            if !fits(row, view.rows(), rows) || !fits(col, view.cols(), cols) {
                return Err(Error::argument("a term reaches beyond the matrix"));
            }
            if !col.is_multiple_of(4) {
                return Err(Error::unsupported(format!("a term that starts at column {col}")));
            }
            if view.rows() > 0 && view.cols() > 0 {
                hold(kernels, uploader, row, col, view, &mut held)?;
            }
        }
        Ok(Self { rows, cols, terms: held })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.terms.iter().map(Held::bytes).sum()
    }
}

/// A term on the device.
#[derive(Debug)]
pub(crate) enum Held {
    /// One node.
    Node(Box<Node>),
    /// The product of two.
    LowRank(LowRank),
}

/// Rows of a node on the device.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) reader: Reader,
    pub(crate) numbers: Numbers,
    pub(crate) steps: u32,
    pub(crate) term: TermParams,
    pub(crate) under: Option<TermParams>,
    pub(crate) first_row: u32,
    pub(crate) first_col: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) code_bytes: u64,
    pub(crate) side_at: u64,
    pub(crate) side_bytes: u64,
    /// Where in the buffer its table is, if that can be a uniform buffer.
    pub(crate) table: Option<Range<u64>>,
    /// The table of several rows at once, which other nodes share.
    pub(crate) windows: Option<Arc<wgpu::Buffer>>,
    /// What threads of a subgroup have of a hashed table, which other nodes share.
    pub(crate) hashed: Option<Arc<wgpu::Buffer>>,
}

/// A [rows, rank] and b [rank, cols].
#[derive(Debug)]
pub(crate) struct LowRank {
    pub(crate) first_row: u32,
    pub(crate) first_col: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) rank: u32,
    pub(crate) a: Vec<Node>,
    pub(crate) b: Vec<Node>,
}

impl Node {
    /// Rows of f32 values at the start of `buffer`, which is longer by at least one value.
    pub(crate) fn of_values(buffer: wgpu::Buffer, first_row: u32, rows: u32, cols: u32) -> Result<Self> {
        let packed = dense_to_come(rows, cols)?;
        Ok(Self {
            reader: packed.reader,
            numbers: packed.numbers,
            steps: packed.steps,
            term: packed.term,
            under: None,
            first_row,
            first_col: 0,
            rows,
            cols,
            code_bytes: u64::from(rows) * u64::from(cols) * 4,
            side_at: 0,
            side_bytes: 4,
            buffer,
            table: None,
            windows: None,
            hashed: None,
        })
    }
}

impl Held {
    fn bytes(&self) -> u64 {
        match self {
            Held::Node(node) => node.buffer.size(),
            Held::LowRank(low) => low.a.iter().chain(&low.b).map(|n| n.buffer.size()).sum(),
        }
    }

    /// The rows of the matrix that the term has.
    pub(crate) fn rows(&self) -> Range<u32> {
        match self {
            Held::Node(node) => node.first_row..node.first_row.saturating_add(node.rows),
            Held::LowRank(low) => low.first_row..low.first_row.saturating_add(low.rows),
        }
    }
}

impl GpuMatrix {
    /// A matrix of `rows` outputs and `cols` inputs between these transforms, without terms.
    ///
    /// # Errors
    /// `Argument` for an empty matrix, as [`GpuTransforms::new`] else.
    pub fn new(
        kernels: &Kernels,
        uploader: &mut Uploader,
        rows: usize,
        cols: usize,
        input: &[Transform],
        output: &[Transform],
    ) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::argument("an empty matrix"));
        }
        Ok(Self {
            rows: index("rows", rows as u64)?,
            cols: index("columns", cols as u64)?,
            input: Arc::new(GpuTransforms::new(kernels, uploader, cols, input, Side::Input)?),
            output: Arc::new(GpuTransforms::new(kernels, uploader, rows, output, Side::Output)?),
            units: BTreeMap::new(),
        })
    }

    /// All that `view` has opened, as one unit, number 0.
    ///
    /// # Errors
    /// As [`GpuMatrix::new`] and [`GpuMatrix::insert`].
    pub fn from_view(kernels: &Kernels, uploader: &mut Uploader, view: &MatrixView<'_>) -> Result<Self> {
        let (input, output) = (view.input_transforms(), view.output_transforms());
        let mut this = Self::new(kernels, uploader, view.rows(), view.cols(), input, output)?;
        this.insert(kernels, uploader, 0, view.terms())?;
        Ok(this)
    }

    /// Uploads the terms of a unit, as [`GpuUnit::new`] does, and puts it in its place. After an error
    /// nothing has changed.
    ///
    /// # Errors
    /// As [`GpuUnit::new`].
    pub fn insert<'t, 'v: 't>(
        &mut self,
        kernels: &Kernels,
        uploader: &mut Uploader,
        unit: u32,
        terms: impl Iterator<Item = (usize, usize, &'t View<'v>)>,
    ) -> Result<()> {
        let (rows, cols) = (self.rows as usize, self.cols as usize);
        self.put(unit, GpuUnit::new(kernels, uploader, rows, cols, terms)?)
    }

    /// Puts a unit in its place. Units are summed in ascending order; one of the same number is replaced.
    ///
    /// # Errors
    /// `Argument` for the unit of a matrix of another shape.
    pub fn put(&mut self, number: u32, unit: GpuUnit) -> Result<()> {
        if (unit.rows, unit.cols) != (self.rows, self.cols) {
            return Err(Error::argument("a unit of another matrix"));
        }
        self.units.insert(number, unit);
        Ok(())
    }

    /// Drops a unit and its buffers; whether it was there.
    pub fn remove(&mut self, unit: u32) -> bool {
        self.units.remove(&unit).is_some()
    }

    /// Numbers of the units that are here, ascending.
    pub fn units(&self) -> impl Iterator<Item = u32> {
        self.units.keys().copied()
    }

    /// Bytes of a unit on the device.
    pub fn unit_bytes(&self, unit: u32) -> Option<u64> {
        self.units.get(&unit).map(GpuUnit::bytes)
    }

    /// Bytes of all units and transforms on the device.
    pub fn bytes(&self) -> u64 {
        let units: u64 = self.units.values().map(GpuUnit::bytes).sum();
        units + self.input.bytes() + self.output.bytes()
    }

    /// Outputs.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> u32 {
        self.cols
    }

    /// The input-side transforms.
    pub fn input(&self) -> &Arc<GpuTransforms> {
        &self.input
    }

    /// The output-side transforms.
    pub fn output(&self) -> &Arc<GpuTransforms> {
        &self.output
    }

    /// Uses the transforms of a matrix that reads the same input behind the same transforms.
    pub fn share_input(&mut self, of: &GpuMatrix) {
        self.input = Arc::clone(&of.input);
    }

    /// Terms, unit by unit.
    pub(crate) fn terms(&self) -> impl Iterator<Item = &Held> {
        self.units.values().flat_map(|unit| &unit.terms)
    }
}

fn hold(
    kernels: &Kernels,
    uploader: &mut Uploader,
    row: u32,
    col: u32,
    view: &View<'_>,
    held: &mut Vec<Held>,
) -> Result<()> {
    let View::LowRank(low) = view else {
        let nodes = nodes(kernels, uploader, row, col, view)?;
        held.extend(nodes.into_iter().map(|node| Held::Node(Box::new(node))));
        return Ok(());
    };
    let (rows, cols) = (index("rows", low.rows() as u64)?, index("columns", low.cols() as u64)?);
    let rank = index("rank", low.rank() as u64)?;
    let a = dense_of(&transposed(low.a_t(), 0..low.rows())?, rows, rank)?;
    held.push(Held::LowRank(LowRank {
        first_row: row,
        first_col: col,
        rows,
        cols,
        rank,
        a: vec![node(kernels, uploader, row, 0, a)?],
        b: nodes(kernels, uploader, 0, col, low.b())?,
    }));
    Ok(())
}

/// A node in blocks of rows that fit the bindings.
fn nodes(
    kernels: &Kernels,
    uploader: &mut Uploader,
    row: u32,
    col: u32,
    view: &View<'_>,
) -> Result<Vec<Node>> {
    if let View::Codebook(view) = view
        && view.descriptor().codebooks > BOOKS_MAX
    {
        return Err(Error::unsupported(format!("{} codebooks", view.descriptor().codebooks)));
    }
    let limit = kernels.limits().max_storage_buffer_binding_size;
    let whole = Packed::new(view, 0..view.rows())?;
    if whole.code_bytes().max(whole.side.len() as u64) <= limit {
        return Ok(vec![node(kernels, uploader, row, col, whole)?]);
    }
    let (step, bytes) = (row_step(view), whole.code_bytes().max(whole.side.len() as u64));
    drop(whole);
    let per_row = bytes.div_ceil(view.rows() as u64).max(1);
    // Tiles of eight rows stay whole.
    let unit = step.max(1).saturating_mul(8);
    let block_rows = usize::try_from(limit / per_row).unwrap_or(usize::MAX) / unit * unit;
    if step == 0 || block_rows == 0 {
        return Err(Error::limit(format!("a term of {bytes} bytes that cannot be cut by rows")));
    }
    let mut blocks = Vec::new();
    for start in (0..view.rows()).step_by(block_rows) {
        let end = view.rows().min(start + block_rows);
        let first_row = row + start as u32;
        blocks.push(node(kernels, uploader, first_row, col, Packed::new(view, start..end)?)?);
    }
    Ok(blocks)
}

fn node(
    kernels: &Kernels,
    uploader: &mut Uploader,
    first_row: u32,
    first_col: u32,
    packed: Packed<'_>,
) -> Result<Node> {
    let code_bytes = packed.code_bytes().max(4).next_multiple_of(16);
    let side_bytes = (packed.side.len() as u64).max(4).next_multiple_of(4);
    let side_at = code_bytes.next_multiple_of(ALIGNMENT);
    let usage = match packed.table {
        Some(_) => wgpu::BufferUsages::UNIFORM,
        None => wgpu::BufferUsages::empty(),
    };
    let mut parts = Vec::with_capacity(packed.codes.len() + 1);
    let mut at = 0;
    for segment in &packed.codes {
        parts.push((at, segment.as_ref()));
        at += segment.len() as u64;
    }
    parts.push((side_at, packed.side.as_slice()));
    let buffer = uploader.filled(kernels, side_at + side_bytes, usage, &parts)?;
    let windows = match (packed.together, packed.table.clone().and_then(|table| packed.side.get(table))) {
        (Some(together), Some(values)) if kernels.tuning().lanes == 1 => {
            Some(kernels.windows(together, values)?)
        }
        _ => None,
    };
    let hashed = match &packed.hashed {
        Some(table) if kernels.subgroup_width().is_some() => Some(kernels.hashed(table)?),
        _ => None,
    };
    let node = Node {
        reader: packed.reader,
        numbers: packed.numbers,
        steps: packed.steps,
        term: packed.term,
        under: packed.under,
        first_row,
        first_col,
        rows: packed.rows,
        cols: packed.cols,
        buffer,
        code_bytes,
        side_at,
        side_bytes,
        table: packed.table.map(|table| side_at + table.start as u64..side_at + table.end as u64),
        windows,
        hashed,
    };
    kernels.compile_ahead(&node)?;
    Ok(node)
}

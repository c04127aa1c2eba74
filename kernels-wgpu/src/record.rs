//! Dispatches of a matrix: products, rows of its sum, rows of the matrix.

use crate::error::{Error, Result, product};
use crate::kernels::{Ahead, Bound, GROUPS_MAX, Kernels, Permutation, Tuning};
use crate::matrix::{GpuMatrix, Held, LowRank, Node};
use crate::packed::Reader;
use crate::params::{FillParams, OuterParams, Params, TermParams};
use crate::transforms::{Activations, Rows, UNIFORM_VECTORS, uniform_vectors};
use crate::windows::HASHED_THREADS;
use crate::workspace::{Scratch, Workspace};
use core::ops::Range;

/// Rows of a thread's tile.
const TILE_ROWS: u32 = 8;
/// Rows of one that multiplies f32 values with a single activation: what eight rows begin with often falls
/// into the same lines of a processor's cache.
const WIDE_ROWS: u32 = 4;
/// Rows of one that multiplies `trellis` paths with a single activation, in matrices of so many rows at
/// least: such a tile has whole words of each path, which smaller ones read several times. The tallest
/// suits tables that give several rows at a look.
const PATH_TILES: [(u32, u32); 3] = [(4096, TALLEST), (1024, 32), (256, 16)];
const TALLEST: u32 = 64;
/// Threads of a workgroup then.
const PATH_WIDTH: u32 = 8;
/// Terms of a dispatch: what eight storage buffers hold beside input and output.
const TERMS: usize = 3;
/// Elements that are decoded at a time, or a tile of rows.
const DECODED_ELEMENTS: u32 = 1 << 20;
/// Threads of a workgroup of kernels that are not tuned.
const WIDTH: u32 = 64;

/// Terms that are read in one dispatch.
enum Batch<'m> {
    Nodes(Vec<&'m Node>),
    LowRank(&'m LowRank),
}

/// Which rows are decoded.
#[derive(Clone, Copy, Debug)]
pub enum Picked<'b> {
    /// These many from this one on.
    Range {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Those that u32 values of a buffer name. A number that is no row gives zeros.
    Ids {
        /// The buffer; `STORAGE` usage.
        buffer: &'b wgpu::Buffer,
        /// Where the first number is, a multiple of 4.
        offset_bytes: u64,
        /// How many.
        count: u32,
    },
}

impl Picked<'_> {
    fn count(&self) -> u32 {
        match self {
            Picked::Range { count, .. } | Picked::Ids { count, .. } => *count,
        }
    }
}

/// Rows that are written.
#[derive(Clone, Copy)]
struct Output<'b> {
    bound: Bound<'b>,
    at: u32,
    stride: u32,
}

impl Kernels {
    /// Writes the products of `activations` with the matrix: `y` has a row of outputs for each.
    ///
    /// # Errors
    /// `Argument` when the activations have another length or `y` does not hold the products, `Limit`,
    /// `Device`.
    pub fn multiply(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        matrix: &GpuMatrix,
        activations: &Activations,
        y: Rows<'_>,
    ) -> Result<()> {
        if activations.size != matrix.cols() {
            let (found, inputs) = (activations.size, matrix.cols());
            return Err(Error::argument(format!("activations of {found} values for {inputs} inputs")));
        }
        if matrix.output().is_identity() {
            return self.multiply_sum(pass, workspace, matrix, activations, y);
        }
        let elements = product("sums", &[matrix.rows().into(), activations.batch.into()])?;
        let sums = workspace.get(self, Scratch::Sum, elements.into())?;
        self.multiply_sum(pass, workspace, matrix, activations, Rows::of(&sums, matrix.rows()))?;
        self.transform_rows(pass, workspace, matrix.output(), &sums, activations.batch, y)
    }

    fn multiply_sum(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        matrix: &GpuMatrix,
        activations: &Activations,
        y: Rows<'_>,
    ) -> Result<()> {
        let (bound, at) = y.bind(self, activations.batch, matrix.rows())?;
        let output = Output { bound, at, stride: y.stride };
        let replaces = |term: &Held| matches!(term, Held::Node(node) if node.reader == Reader::Sparse { replaces: true });
        if matrix.terms().any(replaces) {
            return self.multiply_decoded(pass, workspace, matrix, activations, output);
        }
        let batches = batches(matrix);
        let mut written = Written::new(&batches, matrix.rows(), None);
        if written.fills {
            self.fill(pass, matrix.rows(), activations.batch, output)?;
        }
        for batch in &batches {
            match batch {
                Batch::Nodes(nodes) => {
                    let Some(first) = nodes.first() else { continue };
                    let accumulates = written.again(first.first_row, first.rows);
                    self.multiply_nodes(pass, nodes, activations, output, accumulates)?;
                }
                Batch::LowRank(low) => {
                    let accumulates = written.again(low.first_row, low.rows);
                    self.multiply_low_rank(pass, workspace, low, activations, output, accumulates)?;
                }
            }
        }
        Ok(())
    }

    /// Products with rows that are decoded before, some at a time: a term that replaces takes away from
    /// those before it what only their sum says.
    fn multiply_decoded(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        matrix: &GpuMatrix,
        activations: &Activations,
        output: Output<'_>,
    ) -> Result<()> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let block = (DECODED_ELEMENTS / cols.max(1)).max(1).next_multiple_of(TILE_ROWS).min(rows);
        for first_row in (0..rows).step_by(block.max(1) as usize) {
            let count = block.min(rows - first_row);
            let elements = product("rows", &[count.into(), cols.into()])?;
            let decoded = workspace.get(self, Scratch::Decoded, u64::from(elements) + 1)?;
            let picked = Picked::Range { first: first_row, count };
            self.decode_sum(pass, workspace, matrix, picked, Rows::of(&decoded, cols))?;
            let node = Node::of_values(decoded, first_row, count, cols)?;
            self.multiply_nodes(pass, &[&node], activations, output, false)?;
        }
        Ok(())
    }

    fn multiply_low_rank(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        low: &LowRank,
        activations: &Activations,
        output: Output<'_>,
        accumulates: bool,
    ) -> Result<()> {
        let batch = activations.batch;
        let inner = workspace.get(self, Scratch::Inner, u64::from(batch) * u64::from(low.rank))?;
        let plain = Output { bound: Bound::all(&inner), at: 0, stride: low.rank };
        for node in &low.b {
            self.multiply_nodes(pass, &[node], activations, plain, false)?;
        }
        let elements = u64::from(low.rank.saturating_add(31)) * u64::from(batch.saturating_add(15));
        let elements = elements.max(u64::from(UNIFORM_VECTORS) * 4);
        let mut tiles = Some(workspace.get(self, Scratch::InnerTiles, elements)?);
        let between = Activations::shaped(self, &mut tiles, batch, low.rank)?;
        self.lay_out(pass, workspace, &inner, &between)?;
        for node in &low.a {
            self.multiply_nodes(pass, &[node], &between, output, accumulates)?;
        }
        Ok(())
    }

    fn multiply_nodes(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        nodes: &[&Node],
        activations: &Activations,
        output: Output<'_>,
        accumulates: bool,
    ) -> Result<()> {
        let Some(node) = nodes.first() else { return Ok(()) };
        let (m, batch) = (activations.tile, activations.batch);
        let mut params = Params {
            accumulates: u32::from(accumulates),
            batch,
            out_at: output.at,
            out_stride: output.stride,
            x_tile: product("tile", &[activations.padded.into(), m.into()])? / 4,
            ..params(node)
        };
        self.multiplied_with(m, batch > m);
        let x = Bound::all(activations.held()?);
        if node.reader != Reader::Quads {
            let groups = [node.rows.div_ceil(WIDTH), batch, 1];
            let first = [x, output.bound];
            let permutation = self.multiplication(node, 1, m, false, 0);
            return self.dispatch_terms(pass, permutation, &mut params, nodes, &first, groups);
        }
        let vectors = activations.uniform_vectors(self);
        let x = if vectors > 0 { Bound { bytes: u64::from(vectors) * 16, ..x } } else { x };
        let (tile_rows, width) = self.tile_rows(node, m);
        let down = node.rows.div_ceil(tile_rows);
        let across = if self.tuning().lanes > 1 { down } else { down.div_ceil(width) };
        let terms = if nodes.len() > 1 { TERMS } else { 1 };
        let permutation = self.multiplication(node, terms, m, batch > m, vectors);
        let at_once = if permutation.number("TILES") > 1 { 2 * m } else { m };
        let groups = [across.min(GROUPS_MAX), batch.div_ceil(at_once), across.div_ceil(GROUPS_MAX)];
        self.dispatch_terms(pass, permutation, &mut params, nodes, &[x, output.bound], groups)
    }

    /// The kernel that multiplies `terms` terms like `node` with a tile of `m` activations, or with several
    /// tiles. `vectors` are those of [`Activations::uniform_vectors`].
    fn multiplication(&self, node: &Node, terms: usize, m: u32, several: bool, vectors: u32) -> Permutation {
        if node.reader != Reader::Quads {
            let numbers = [("MULTIPLY", 1), ("M", m.into()), ("WIDTH", WIDTH.into())];
            return permutation("sparse", node, terms, &numbers);
        }
        let lanes = self.tuning().lanes;
        let (tile_rows, width) = self.tile_rows(node, m);
        let hashed = node.hashed.is_some() && tile_rows > TILE_ROWS;
        let sums = self.subgroups().map_or(lanes, |(least, _)| lanes.div_ceil(least));
        let tall = tile_rows > TILE_ROWS;
        let shares = self.subgroup_size();
        let asks = match (self.subgroups(), shares) {
            (Some(_), _) if !tall => 0,
            (Some(_), Some(_)) if node.term.a >= node.term.e => 2,
            (Some(_), _) => 1,
            (None, _) => 0,
        };
        let within = asks > 0 || shares.is_some() || lanes > 1 && self.subgroups().is_some();
        let numbers = [
            ("SUBGROUPS", within.into()),
            ("TILES", 1),
            ("SHARES", shares.unwrap_or(0).into()),
            ("SUMS", sums.into()),
            ("EAGER", (tall && tile_rows < TALLEST).into()),
            ("ASKS", asks),
            ("X_VECTORS", vectors.into()),
            ("R", tile_rows.into()),
            ("M", m.into()),
            ("PARTS", i64::from(m.div_ceil(4))),
            ("LANES", lanes.into()),
            ("WIDTH", if lanes > 1 { lanes } else { width }.into()),
        ];
        let mut permutation = permutation("multiply", node, terms, &numbers);
        // What several terms come to is worth more products.
        if several && shares.is_some() && permutation.number("FUSED") == 1 {
            permutation.set("TILES", 2);
        }
        if lanes == 1 && permutation.number("WAY") == 1 && self.has_words_of_64_bits() {
            permutation.set("WIDE", 1);
        }
        if hashed {
            permutation.set("LUT", 4);
            permutation.set("ENTRIES", 4 * HASHED_THREADS as i64);
        }
        permutation
    }

    /// Rows of a thread's tile for tiles of `m` activations, and the threads of a workgroup of those that
    /// share nothing.
    fn tile_rows(&self, node: &Node, m: u32) -> (u32, u32) {
        let Tuning { lanes, width } = self.tuning();
        let shares = self.subgroup_size().unwrap_or(1);
        let width = width.next_multiple_of(shares);
        let number = |name: &str| node.numbers.iter().find(|(n, _)| *n == name).map_or(0, |(_, n)| *n);
        if m == 1 && lanes == 1 && number("KIND") == 1 {
            return (WIDE_ROWS, width);
        }
        if m > 1 || lanes > 1 || number("WAY") != 1 || number("GROUP") != 0 {
            return (TILE_ROWS, width);
        }
        let (path, extent) = (node.term.a, node.term.e);
        let at_once = number("AT_ONCE") > 1 && node.hashed.is_none();
        let fits = |(rows, tile): &&(u32, u32)| {
            if *tile == TALLEST && !at_once {
                return false;
            }
            let whole = i64::from(*tile) * number("STEP") % 32 == 0;
            node.rows >= *rows && whole && (path >= extent || path.is_multiple_of(*tile))
        };
        let subgroup = self.subgroup_width().filter(|_| node.hashed.is_some()).unwrap_or(1);
        let path_width = PATH_WIDTH.max(subgroup).next_multiple_of(shares);
        PATH_TILES.iter().find(fits).map_or((TILE_ROWS, width), |(_, tile)| (*tile, path_width))
    }

    /// Compiles what will multiply with `node`, alone and beside others, and with as many activations as
    /// there have been: products after a change of budget do not wait for a compiler.
    pub(crate) fn compile_ahead(&self, node: &Node) -> Result<()> {
        let tiles = self.tiles_seen();
        let shape = (node.rows, node.first_col.saturating_add(node.cols));
        let ahead = Ahead {
            tiles,
            is_hashed: node.hashed.is_some(),
            path: (node.term.a, node.term.e),
            reader: node.reader,
            numbers: node.numbers.clone(),
        };
        if self.is_ahead(shape, &ahead) {
            return Ok(());
        }
        for (m, several) in Self::tiles_of(tiles) {
            let vectors = uniform_vectors(self, m, shape.1);
            let all: &[usize] = if node.reader == Reader::Quads { &[1, TERMS] } else { &[1] };
            for terms in all {
                self.pipeline(self.multiplication(node, *terms, m, several, vectors))?;
            }
            self.pipeline(Permutation { kernel: "fill", numbers: vec![("WIDTH", WIDTH.into())] })?;
        }
        self.compiled_ahead(shape, ahead);
        Ok(())
    }

    /// Decodes rows of the sum of the terms, without the transforms around it.
    ///
    /// # Errors
    /// `Argument` when the matrix does not have these rows or `out` does not hold them, `Limit`,
    /// `Device`.
    pub fn decode_sum(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        matrix: &GpuMatrix,
        picked: Picked<'_>,
        out: Rows<'_>,
    ) -> Result<()> {
        let count = picked.count();
        let (ids, ids_at, gathers) = match picked {
            Picked::Range { first, count } => {
                if u64::from(first) + u64::from(count) > matrix.rows().into() {
                    return Err(Error::argument(format!("rows {first} and on, {count} of them")));
                }
                (self.nothing(), first, false)
            }
            Picked::Ids { buffer, offset_bytes, count } => {
                let (bound, at) = self.bind(buffer, offset_bytes, count.into())?;
                (bound, at, true)
            }
        };
        let (bound, at) = out.bind(self, count, matrix.cols())?;
        let output = Output { bound, at, stride: out.stride };
        let batches = batches(matrix);
        let mut written = Written::new(&batches, matrix.rows(), Some(matrix.cols()));
        // A number that is no row is written by no term.
        if written.fills || gathers {
            self.fill(pass, matrix.cols(), count, output)?;
        }
        for batch in &batches {
            let (first_row, rows) = match batch {
                Batch::Nodes(nodes) => nodes.first().map_or((0, 0), |n| (n.first_row, n.rows)),
                Batch::LowRank(low) => (low.first_row, low.rows),
            };
            let accumulates = written.again(first_row, rows);
            match batch {
                Batch::Nodes(nodes) => {
                    self.decode_nodes(pass, nodes, (ids, ids_at, gathers), count, output, accumulates)?;
                }
                Batch::LowRank(low) => {
                    let ids = (ids, ids_at, gathers);
                    self.decode_low_rank(pass, workspace, low, ids, count, output, accumulates)?;
                }
            }
        }
        Ok(())
    }

    fn decode_nodes(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        nodes: &[&Node],
        ids: (Bound<'_>, u32, bool),
        count: u32,
        output: Output<'_>,
        accumulates: bool,
    ) -> Result<()> {
        let Some(node) = nodes.first() else { return Ok(()) };
        let (ids, ids_at, gathers) = ids;
        let mut params = Params {
            accumulates: u32::from(accumulates),
            batch: count,
            out_at: output.at,
            out_stride: output.stride,
            ids_at,
            gathers: gathers.into(),
            ..params(node)
        };
        let first = [ids, output.bound];
        if node.reader != Reader::Quads {
            let numbers = [("MULTIPLY", 0), ("M", 1), ("WIDTH", WIDTH.into())];
            let permutation = permutation("sparse", node, 1, &numbers);
            return self.dispatch_terms(
                pass,
                permutation,
                &mut params,
                nodes,
                &first,
                [count.div_ceil(WIDTH), 1, 1],
            );
        }
        let terms = if nodes.len() > 1 { TERMS } else { 1 };
        let permutation = permutation("decode", node, terms, &[("R", 1), ("WIDTH", WIDTH.into())]);
        let groups = [node.steps.div_ceil(WIDTH), count.min(GROUPS_MAX), count.div_ceil(GROUPS_MAX)];
        self.dispatch_terms(pass, permutation, &mut params, nodes, &first, groups)
    }

    #[allow(clippy::too_many_arguments, reason = "a source, a target and what is between")]
    fn decode_low_rank(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        low: &LowRank,
        ids: (Bound<'_>, u32, bool),
        count: u32,
        output: Output<'_>,
        accumulates: bool,
    ) -> Result<()> {
        let rank = u64::from(low.rank);
        product("factor", &[rank, low.cols.into()])?;
        product("factor", &[rank, count.into()])?;
        let b = workspace.get(self, Scratch::Factor, rank * u64::from(low.cols))?;
        let a = workspace.get(self, Scratch::Inner, rank * u64::from(count))?;
        let b_out = Output { bound: Bound::all(&b), at: 0, stride: low.cols };
        for node in &low.b {
            let at = Output { at: node.first_row * low.cols, ..b_out };
            let shifted = (self.nothing(), node.first_row, false);
            let node = [node];
            // The factor's columns are those of the term.
            self.decode_factor(pass, &node, shifted, at)?;
        }
        for node in &low.a {
            let a_out = Output { bound: Bound::all(&a), at: 0, stride: low.rank };
            self.decode_nodes(pass, &[node], ids, count, a_out, false)?;
        }
        let params = OuterParams {
            cols: low.cols,
            rank: low.rank,
            batch: count,
            out_at: output.at + low.first_col,
            out_stride: output.stride,
            accumulates: u32::from(accumulates),
            first_row: low.first_row,
            rows: low.rows,
            ids_at: ids.1,
            gathers: u32::from(ids.2),
        };
        let permutation = Permutation { kernel: "outer", numbers: vec![("WIDTH", WIDTH.into())] };
        let bindings = [Bound::all(&a), Bound::all(&b), output.bound, ids.0];
        let groups = [low.cols.div_ceil(WIDTH), count.min(GROUPS_MAX), count.div_ceil(GROUPS_MAX)];
        self.dispatch(pass, permutation, bytemuck::bytes_of(&params), &bindings, groups)
    }

    /// All rows of a factor, whose first column is the first of `output`.
    fn decode_factor(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        nodes: &[&Node; 1],
        ids: (Bound<'_>, u32, bool),
        output: Output<'_>,
    ) -> Result<()> {
        let [node] = nodes;
        if node.reader != Reader::Quads {
            return Err(Error::unsupported("a sparse factor"));
        }
        let mut params = Params {
            batch: node.rows,
            out_at: output.at,
            out_stride: output.stride,
            ids_at: ids.1,
            first_col: 0,
            ..params(node)
        };
        let numbers = [("R", 1), ("WIDTH", WIDTH.into())];
        let permutation = permutation("decode", node, 1, &numbers);
        let groups = [node.steps.div_ceil(WIDTH), node.rows.min(GROUPS_MAX), node.rows.div_ceil(GROUPS_MAX)];
        self.dispatch_terms(pass, permutation, &mut params, &nodes[..], &[ids.0, output.bound], groups)
    }

    fn dispatch_terms(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        permutation: Permutation,
        params: &mut Params,
        nodes: &[&Node],
        first: &[Bound<'_>],
        groups: [u32; 3],
    ) -> Result<()> {
        let terms = usize::try_from(permutation.number("TERMS")).unwrap_or(1);
        let levels = usize::try_from(permutation.number("LEVELS")).unwrap_or(1);
        params.terms_held = (1 << nodes.len()) - 1;
        let mut records = vec![TermParams::default(); terms * levels];
        let mut bindings = first.to_vec();
        for (i, node) in nodes.iter().enumerate() {
            if let Some(record) = records.get_mut(i) {
                *record = node.term;
            }
            if let (Some(under), Some(record)) = (node.under, records.get_mut(terms * (levels - 1) + i)) {
                *record = under;
            }
            bindings.push(Bound { buffer: &node.buffer, offset: 0, bytes: node.code_bytes });
            bindings.push(Bound { buffer: &node.buffer, offset: node.side_at, bytes: node.side_bytes });
        }
        bindings.resize(first.len() + 2 * terms, self.nothing());
        let lut = permutation.number("LUT");
        // Terms that are not there have the table of one that is.
        let tables = (0..terms).filter_map(|i| nodes.get(i).or(nodes.first()).copied());
        for node in tables.filter(|_| matches!(lut, 1 | 3 | 4)) {
            let table = match lut {
                1 => node.table.clone().map(|range| Bound {
                    buffer: &node.buffer,
                    offset: range.start,
                    bytes: range.end - range.start,
                }),
                3 => node.windows.as_deref().map(Bound::all),
                _ => node.hashed.as_deref().map(Bound::all),
            };
            bindings.push(table.ok_or_else(|| Error::argument("a term without its table"))?);
        }
        let mut bytes = bytemuck::bytes_of(params).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&records));
        self.dispatch(pass, permutation, &bytes, &bindings, groups)
    }

    fn fill(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        count: u32,
        batch: u32,
        output: Output<'_>,
    ) -> Result<()> {
        let params = FillParams { count, batch, at: output.at, stride: output.stride };
        let permutation = Permutation { kernel: "fill", numbers: vec![("WIDTH", WIDTH.into())] };
        let groups = [count.div_ceil(WIDTH), batch, 1];
        self.dispatch(pass, permutation, bytemuck::bytes_of(&params), &[output.bound], groups)
    }
}

fn params(node: &Node) -> Params {
    Params {
        rows: node.rows,
        cols: node.cols,
        first_row: node.first_row,
        first_col: node.first_col,
        steps: node.steps,
        ..Params::default()
    }
}

fn permutation(
    kernel: &'static str,
    node: &Node,
    terms: usize,
    numbers: &[(&'static str, i64)],
) -> Permutation {
    let mut all = node.numbers.clone();
    all.push(("TERMS", terms as i64));
    all.extend(numbers);
    let mut permutation = Permutation { kernel, numbers: all };
    let fused = kernel == "multiply"
        && terms > 1
        && permutation.number("M") > 1
        && permutation.number("WAY") == 1
        && !(permutation.number("LUT") == 1 && table_place(kernel, &permutation) == 2);
    permutation.numbers.push(("FUSED", fused.into()));
    if permutation.number("LUT") == 1 {
        let lut = table_place(kernel, &permutation);
        permutation.set("LUT", lut);
        if lut == 3 {
            permutation.set("ENTRIES", 1 << permutation.number("JOINT"));
        }
    }
    let (state, step) = (permutation.number("STATE"), permutation.number("STEP"));
    if state > 0 && step > 0 {
        // Rows whose windows one word holds.
        let tile = permutation.number("R");
        let own = if permutation.number("WAY") == 1 && tile * step % 32 == 0 { tile * step / 32 } else { 0 };
        let split = if own > 0 || (32 - state) / step + 1 >= tile { tile } else { tile.min(4) };
        permutation.numbers.extend([("OWN", own), ("SPLIT", split), ("SPLITS", tile / split.max(1))]);
    }
    permutation
}

/// Most bytes of a uniform buffer, of any WebGPU device.
const UNIFORM_BYTES: i64 = 64 << 10;
/// Most bytes of workgroup memory, of any WebGPU device.
const SHARED_BYTES: i64 = 16 << 10;

/// Where a table is read. Threads that share the columns of a row share its table, if there is room beside
/// their sums: a GPU's uniform buffers are slow where threads read different entries. A processor that
/// runs shaders reads other buffers entry by entry, behind a check each.
fn table_place(kernel: &str, permutation: &Permutation) -> i64 {
    let number = |name| permutation.number(name);
    let bytes = number("ENTRIES") * 4;
    if kernel == "multiply" && number("LANES") > 1 {
        let sums = number("LANES") * number("R") * number("M") * 4;
        return if bytes + sums <= SHARED_BYTES { 2 } else { 0 };
    }
    if kernel == "multiply" && number("AT_ONCE") > 1 {
        return 3;
    }
    i64::from(bytes <= UNIFORM_BYTES)
}

/// What of the result is there already.
struct Written {
    /// Whether all is zeroed first, so that every term adds.
    fills: bool,
    rows: Vec<Range<u32>>,
}

impl Written {
    /// Whether terms that share rows have the same ones, and leave none out.
    fn new(batches: &[Batch<'_>], rows: u32, cols: Option<u32>) -> Self {
        let mut seen: Vec<Range<u32>> = Vec::new();
        let mut fills = false;
        for batch in batches {
            let (own, width, adds) = match batch {
                Batch::Nodes(nodes) => match nodes.first() {
                    Some(n) => (n.first_row..n.first_row + n.rows, n.cols, n.reader != Reader::Quads),
                    None => continue,
                },
                Batch::LowRank(low) => (low.first_row..low.first_row + low.rows, low.cols, false),
            };
            let same = seen.contains(&own);
            let apart = seen.iter().all(|s| s.end <= own.start || own.end <= s.start);
            fills |= !same && (!apart || adds || cols.is_some_and(|cols| width < cols));
            if !same {
                seen.push(own);
            }
        }
        let covered: u64 = seen.iter().map(|s| u64::from(s.end - s.start)).sum();
        fills |= covered < u64::from(rows);
        Self { fills, rows: Vec::new() }
    }

    /// Whether these rows have been written, which they are now.
    fn again(&mut self, first_row: u32, rows: u32) -> bool {
        let own = first_row..first_row.saturating_add(rows);
        let again = self.fills || self.rows.contains(&own);
        if !again {
            self.rows.push(own);
        }
        again
    }
}

/// Terms in as few dispatches as can be. Terms of other rows may be summed in any order.
fn batches(matrix: &GpuMatrix) -> Vec<Batch<'_>> {
    let mut terms: Vec<&Held> = matrix.terms().collect();
    let ordered = terms.iter().all(|a| {
        terms
            .iter()
            .all(|b| a.rows() == b.rows() || a.rows().end <= b.rows().start || b.rows().end <= a.rows().start)
    });
    if ordered {
        terms.sort_by_key(|term| term.rows().start);
    }
    let mut batches: Vec<Batch<'_>> = Vec::new();
    for term in terms {
        match term {
            Held::LowRank(low) => batches.push(Batch::LowRank(low)),
            Held::Node(node) => {
                if let Some(Batch::Nodes(nodes)) = batches.last_mut()
                    && nodes.len() < TERMS
                    && nodes.first().is_some_and(|first| joins(first, node))
                {
                    nodes.push(node);
                } else {
                    batches.push(Batch::Nodes(vec![node.as_ref()]));
                }
            }
        }
    }
    batches
}

fn joins(a: &Node, b: &Node) -> bool {
    let region = |n: &Node| (n.first_row, n.first_col, n.rows, n.cols);
    a.reader == Reader::Quads && region(a) == region(b) && a.numbers == b.numbers
}

//! Conversion: source and recipe to archive, in bounded memory.
//!
//! Every matrix is cut into row blocks of about a unit. Blocks are read, encoded and spooled to
//! disk in parallel; when all are done, the archive is laid out and streamed to a temporary file,
//! which takes the name of the output as the last step.

mod block;
mod context;
mod losses;
pub(crate) mod output;
mod spool;
mod workers;

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::moments::Moments;
use crate::recipe::{Exact, Recipe, Storage};
use crate::source::{InputFile, Source, TensorInfo};
use cmf_format::write::{Content, MatrixEntry, TensorEntry, TermEntry, TransformEntry, UnitEntry};
use cmf_format::{NodeData, WriteOptions};
use context::{Context, Contexts};
use rayon::prelude::*;
use serde::Serialize;
use spool::{BlockId, Encoded, Spool};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Attribute with the recipe, every default written out.
pub const RECIPE_ATTRIBUTE: &str = "cmf.recipe.toml";
/// Attribute that says what the archive was made from and by what.
pub const PROVENANCE_ATTRIBUTE: &str = "cmf.provenance.json";

/// Most tensors whose second moments are held.
const MAX_CONTEXTS: usize = 4;

/// Memory that blocks in work may take beside twice the largest tensor.
const MEMORY_BYTES: u64 = 160 << 20;

/// Settings of a conversion.
#[derive(Clone)]
pub struct ConvertOptions {
    /// Which terms stand for which tensors.
    pub recipe: Recipe,
    /// What is known of the activations that the matrices meet.
    pub moments: Option<Arc<dyn Moments>>,
    /// Threads; 0 is one a core.
    pub jobs: usize,
    /// Cuts the output into shards of at most about this many payload bytes.
    pub shard_bytes: Option<u64>,
    /// Replaces an output that exists.
    pub force: bool,
    /// Takes over the blocks that an interrupted run of the same conversion finished.
    pub resume: bool,
}

impl ConvertOptions {
    /// The recipe with the other settings at their defaults.
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, moments: None, jobs: 0, shard_bytes: None, force: false, resume: true }
    }
}

/// What a conversion did.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// Tensors of the model.
    pub tensors: usize,
    /// Elements of all tensors.
    pub elements: u64,
    /// Bytes of the plain elements.
    pub input_bytes: u64,
    /// Files written, the archive to open first.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bits per element that the tensors take, with scales and all; attributes and the directory
    /// are not counted.
    pub bits_per_weight: f64,
    /// What the levels of matrices amount to, where a recipe gives them several.
    pub levels: Vec<LevelReport>,
    /// Blocks taken over from an interrupted run.
    pub resumed_blocks: usize,
    /// Blocks in all.
    pub blocks: usize,
}

/// The matrices of a model at one level and all below.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LevelReport {
    /// Bits per weight of the matrices that have this level.
    pub bits_per_weight: f64,
    /// Cost of leaving a matrix out over that of its error, in dB, as a mean over their weights. The
    /// cost of an error E is tr(E H Eᵀ), with H the second moments of the activations where they are
    /// known, and the identity elsewhere.
    pub snr_db: f64,
}

/// What a conversion is doing, for a progress display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many of so many bytes of plain elements are encoded.
    Encoded {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// So many of so many bytes of output are written.
    Written {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// A row block to encode.
struct Block {
    id: BlockId,
    rows: Range<u64>,
    cols: u64,
    elements: Range<u64>,
    /// Carried in the source's own encoding.
    native: bool,
}

/// Converts `source` to an archive at `output`.
///
/// Needs the memory of one block of rows for each thread, a few times over, whatever the size of
/// the model. Until it is done, everything lies in a folder `.NAME.partial` beside the output;
/// after an error the folder is removed, after a kill the next run goes on from it. The same
/// source, recipe and shard size give the same bytes, for every number of threads.
///
/// # Errors
/// `BadArgument` when the output exists and is not to be replaced; `Io`; what reading the source
/// and encoding give.
pub fn convert(
    source: &dyn Source,
    output: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<ConvertReport> {
    output::check_free(output, options.force)?;
    if options.shard_bytes == Some(0) {
        return Err(Error::bad_argument("shard size").expected("more than 0 bytes"));
    }
    let recipe = options.recipe.to_toml()?;
    let moments = options.moments.as_deref();
    let inputs = source.inputs().iter().chain(moments.map(Moments::inputs).unwrap_or_default());
    let key = conversion_key(inputs, &recipe);
    let folder = output::work_folder(output)?;
    if !options.resume {
        // Nothing to take over: a folder of an earlier run is only in the way.
        let _ = std::fs::remove_dir_all(&folder);
    }
    if options.shard_bytes.is_some() && !options.force && !folder.exists() {
        output::check_shards_free(output)?;
    }
    let (spool, done) = Spool::open(&folder, &key, WriteOptions::default().chunk_group_bytes)?;
    let result = convert_in(source, output, options, &spool, done, &recipe, progress);
    let removed = spool.remove();
    let report = result?;
    removed?;
    Ok(report)
}

fn convert_in(
    source: &dyn Source,
    output: &Path,
    options: &ConvertOptions,
    spool: &Spool,
    mut done: HashMap<BlockId, Encoded>,
    recipe: &str,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<ConvertReport> {
    let kept = kept(source, &options.recipe)?;
    let blocks = blocks(source, &options.recipe, &kept)?;
    let bytes = |block: &Block| {
        let size = source.tensors().get(block.id.tensor as usize).map_or(0, |t| t.dtype.bytes());
        (block.elements.end - block.elements.start) * size as u64
    };
    let total = blocks.iter().map(bytes).sum();
    let wanted: HashSet<_> = blocks.iter().map(|b| b.id).collect();
    done.retain(|id, _| wanted.contains(id));
    let resumed_blocks = done.len();
    let encoded = AtomicU64::new(blocks.iter().filter(|b| done.contains_key(&b.id)).map(bytes).sum());
    let fresh: Vec<_> = blocks.iter().filter(|b| !done.contains_key(&b.id)).collect();
    let at_once = blocks_at_once(source.tensors(), &blocks, &options.recipe);
    let contexts = Contexts::new(source, options.moments.as_deref(), at_once.min(MAX_CONTEXTS));
    let context = |id: BlockId, tensor: &TensorInfo| -> Result<Option<Arc<Context>>> {
        let Storage::Terms(rule) = options.recipe.storage_of(tensor) else { return Ok(None) };
        contexts.of(id.tensor, rule).map(Some)
    };
    let encoded_blocks = workers::each(&fresh, options.jobs, at_once, |block| {
        let index = block.id.tensor as usize;
        let tensor = source.tensors().get(index).ok_or_else(|| Error::bad_argument("tensor index"))?;
        let storage = options.recipe.storage_of(tensor);
        let context = context(block.id, tensor).map_err(|e| e.tensor(&tensor.name))?;
        let levels = block::encode(source, index, storage, block, context.as_deref())
            .map_err(|e| e.tensor(&tensor.name))?;
        let stored = spool.store(block.id, levels)?;
        let bytes = bytes(block);
        progress(Progress::Encoded { done: encoded.fetch_add(bytes, Ordering::Relaxed) + bytes, total });
        Ok((block.id, stored))
    })?;
    done.extend(encoded_blocks);
    let levels = level_reports(&blocks, &done);
    let losses = losses::of(source.tensors(), &done, options.moments.as_deref());
    let carried = carried(source, &kept)?;
    let transforms = |tensor: usize| {
        let index = tensor as u64;
        let Some(tensor) = source.tensors().get(tensor) else { return Ok(Default::default()) };
        let Storage::Terms(rule) = options.recipe.storage_of(tensor) else { return Ok(Default::default()) };
        contexts.entries(index, rule).map_err(|e| e.tensor(&tensor.name))
    };
    let tensors = entries(source.tensors(), &blocks, done, carried, transforms)?;
    let elements = source.tensors().iter().filter_map(TensorInfo::elements).sum();
    let tensor_bytes: u64 = tensors.iter().map(output::stored_bytes).sum();
    let files = output::write(source, output, options, spool, tensors, &losses, recipe, progress)?;
    let file_bytes = files.iter().map(|(_, bytes)| bytes).sum();
    Ok(ConvertReport {
        tensors: source.tensors().len(),
        elements,
        input_bytes: source.tensors().iter().map(plain_bytes).fold(0, u64::saturating_add),
        files: files.into_iter().map(|(path, _)| path).collect(),
        file_bytes,
        bits_per_weight: if elements == 0 { 0.0 } else { tensor_bytes as f64 * 8.0 / elements as f64 },
        levels,
        resumed_blocks,
        blocks: blocks.len(),
    })
}

/// Sums over the blocks of progressive rules, level by level. What blocks share counts in the first.
fn level_reports(blocks: &[Block], done: &HashMap<BlockId, Encoded>) -> Vec<LevelReport> {
    let mut sums: Vec<(f64, u64, f64)> = Vec::new();
    let mut seen = HashSet::new();
    for block in blocks {
        let Some(encoded) = done.get(&block.id).filter(|encoded| encoded.cost > 0.0) else { continue };
        let elements = (block.elements.end - block.elements.start) as f64;
        let mut bytes = 0;
        for (i, level) in encoded.levels.iter().enumerate() {
            bytes += level.nodes.iter().map(|node| output::new_bytes(node, &mut seen)).sum::<u64>();
            if sums.len() <= i {
                sums.push((0.0, 0, 0.0));
            }
            if let Some((all, all_bytes, snr)) = sums.get_mut(i) {
                *all += elements;
                *all_bytes += bytes;
                *snr += elements * 10.0 * (encoded.cost / level.cost.max(f64::MIN_POSITIVE)).log10();
            }
        }
    }
    let report = |(elements, bytes, snr): (f64, u64, f64)| LevelReport {
        bits_per_weight: bytes as f64 * 8.0 / elements,
        snr_db: snr / elements,
    };
    sums.into_iter().map(report).collect()
}

/// Bytes of the plain elements of a tensor.
fn plain_bytes(tensor: &TensorInfo) -> u64 {
    tensor.elements().unwrap_or(0).saturating_mul(tensor.dtype.bytes() as u64)
}

/// For each tensor, whether it is kept in the source's own encoding.
fn kept(source: &dyn Source, recipe: &Recipe) -> Result<Vec<bool>> {
    let is_kept = |(t, tensor): (usize, &TensorInfo)| match recipe.storage_of(tensor) {
        Storage::Exact(Exact::Keep) => Ok(true),
        // What is not the elements themselves has nothing that could be kept without loss but its
        // own encoding.
        Storage::Exact(Exact::Lossless) => source.is_exact(t).map(|exact| !exact),
        Storage::Terms(_) => Ok(false),
    };
    source.tensors().iter().enumerate().map(is_kept).collect()
}

/// The matrices of the tensors that an archive hands on as they are, by tensor.
fn carried(source: &dyn Source, kept: &[bool]) -> Result<HashMap<usize, Vec<MatrixEntry>>> {
    let Some(archive) = source.archive() else { return Ok(HashMap::new()) };
    let kept = kept.par_iter().enumerate().filter(|(_, kept)| **kept);
    kept.map(|(t, _)| Ok((t, archive.matrices(t)?))).collect()
}

/// How many blocks may be in work: as many as fit twice the largest tensor and [`MEMORY_BYTES`].
fn blocks_at_once(tensors: &[TensorInfo], blocks: &[Block], recipe: &Recipe) -> usize {
    let largest = tensors.iter().map(plain_bytes).max().unwrap_or(0);
    let block_bytes = |block: &Block| {
        let tensor = tensors.get(block.id.tensor as usize)?;
        Some(block::working_bytes(recipe.storage_of(tensor), tensor.dtype, block))
    };
    let needed = blocks.iter().filter_map(block_bytes).max().unwrap_or(0).max(1);
    let most = largest.saturating_mul(2).saturating_add(MEMORY_BYTES) / needed;
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// What must be the same for a resumed conversion to go on: program, recipe, input files.
fn conversion_key<'a>(inputs: impl Iterator<Item = &'a InputFile> + Clone, recipe: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    for text in inputs.clone().map(|i| i.path.to_string_lossy()).chain([recipe.into()]) {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    for input in inputs {
        hasher.update(&input.bytes.to_le_bytes()).update(&input.modified_ns.to_le_bytes());
    }
    hasher.finalize().into()
}

/// All row blocks to be encoded, by tensor, matrix and row.
fn blocks(source: &dyn Source, recipe: &Recipe, kept: &[bool]) -> Result<Vec<Block>> {
    let alignment = u64::from(WriteOptions::default().alignment_bytes);
    let mut blocks = Vec::new();
    for (t, tensor) in source.tensors().iter().enumerate() {
        let elements = tensor
            .elements()
            .ok_or_else(|| Error::bad_file("element count overflows 64 bits").tensor(&tensor.name))?;
        let kept = kept.get(t).copied().unwrap_or(false);
        if elements == 0 || (kept && source.archive().is_some()) {
            continue;
        }
        let geometry = Geometry::of(&tensor.shape);
        let storage = recipe.storage_of(tensor);
        let bits = block::bits_per_weight(storage, tensor.dtype, geometry.cols);
        // Plain blocks end at the alignment where they can, so that those of one tensor lie end to
        // end in the file and can be read as one slice.
        let (step, least) = match storage {
            Storage::Exact(Exact::Keep) => {
                let row_bytes = geometry.cols.saturating_mul(tensor.dtype.bytes() as u64).max(1);
                (alignment >> row_bytes.trailing_zeros().min(alignment.trailing_zeros()), 1)
            }
            Storage::Terms(rule) => {
                let block = context::output_block(rule, geometry.rows);
                (block.max(16), block)
            }
            Storage::Exact(Exact::Lossless) => (16, 1),
        };
        let cut: Vec<_> = geometry.row_blocks(bits, recipe.unit_bytes, step, least).collect();
        for matrix in 0..geometry.count {
            for rows in cut.iter().cloned() {
                let element = |row: u64| (matrix * geometry.rows + row) * geometry.cols;
                blocks.push(Block {
                    id: BlockId { tensor: t as u64, matrix, row_start: rows.start },
                    elements: element(rows.start)..element(rows.end),
                    cols: geometry.cols,
                    rows,
                    native: kept,
                });
            }
        }
    }
    Ok(blocks)
}

fn entries(
    tensors: &[TensorInfo],
    blocks: &[Block],
    mut done: HashMap<BlockId, Encoded>,
    carried: HashMap<usize, Vec<MatrixEntry>>,
    transforms: impl Fn(usize) -> Result<(Vec<TransformEntry>, Vec<TransformEntry>)>,
) -> Result<Vec<TensorEntry>> {
    let mut matrices: Vec<Vec<MatrixEntry>> = vec![Vec::new(); tensors.len()];
    for block in blocks {
        let tensor = block.id.tensor as usize;
        let list = matrices.get_mut(tensor).ok_or_else(|| Error::bad_argument("tensor index"))?;
        if list.len() as u64 == block.id.matrix {
            let (input_transforms, output_transforms) = transforms(tensor)?;
            let cols = block.cols;
            list.push(MatrixEntry { cols, input_transforms, output_transforms, ..MatrixEntry::default() });
        }
        let Some(matrix) = list.last_mut() else { continue };
        let encoded = done.remove(&block.id).ok_or_else(|| Error::bad_argument("block was not encoded"))?;
        let term = |node: NodeData| TermEntry {
            row_start: block.rows.start,
            col_start: 0,
            optional: false,
            node: node.into(),
        };
        matrix.rows = block.rows.end;
        for (level, own) in (0u16..).zip(encoded.levels) {
            matrix.units.push(UnitEntry {
                level,
                row_start: block.rows.start,
                rows: block.rows.end - block.rows.start,
                terms: own.nodes.into_iter().map(term).collect(),
            });
        }
    }
    for matrix in matrices.iter_mut().flatten() {
        matrix.units.sort_by_key(|unit| (unit.level, unit.row_start));
    }
    for (t, own) in carried {
        if let Some(list) = matrices.get_mut(t) {
            *list = own;
        }
    }
    let entry = |(tensor, matrices): (&TensorInfo, Vec<MatrixEntry>)| TensorEntry {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        content: Content::Matrices(matrices),
    };
    Ok(tensors.iter().zip(matrices).map(entry).collect())
}

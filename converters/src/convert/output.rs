//! The files of a conversion: written aside, synced, then renamed.

use super::spool::Spool;
use super::{ConvertOptions, PROVENANCE_ATTRIBUTE, Progress, RECIPE_ATTRIBUTE};
use crate::error::{Error, Result};
use crate::schedule::{TensorLosses, schedule};
use crate::source::{CARRIED, CmfSource, Source};
use cmf_format::write::{Content, Layout, TensorEntry};
use cmf_format::{ArchiveBuilder, NodeData, SegmentData, SegmentSource, WriteOptions};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// zstd level of attributes: they are small and read once.
const ATTRIBUTE_LEVEL: i32 = 19;

/// Refuses an output that exists, unless it is to be replaced.
pub(crate) fn check_free(output: &Path, force: bool) -> Result<()> {
    if output.is_dir() {
        return Err(Error::bad_argument("is a folder").file(output));
    }
    match output.exists() && !force {
        true => Err(Error::bad_argument("exists; --force replaces it").file(output)),
        false => Ok(()),
    }
}

/// The folder beside `output` for unfinished work.
pub(super) fn work_folder(output: &Path) -> Result<PathBuf> {
    let name = output
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(|| Error::bad_argument("is no file name").file(output))?;
    Ok(output.with_file_name(format!(".{name}.partial")))
}

/// Lays the archive out, with its shards if it has any, and writes it. Gives the files with their
/// lengths, the archive to open first.
#[expect(
    clippy::too_many_arguments,
    reason = "one caller, at the end of a conversion, which has all of them"
)]
pub(super) fn write(
    source: &dyn Source,
    output: &Path,
    options: &ConvertOptions,
    spool: &Spool,
    tensors: Vec<TensorEntry>,
    losses: &BTreeMap<String, TensorLosses>,
    recipe: &str,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<(PathBuf, u64)>> {
    let mut main = ArchiveBuilder::new(WriteOptions::default());
    let (mut earlier_recipe, mut earlier) = (None, None);
    for attribute in source.attributes()? {
        match attribute.name.as_str() {
            RECIPE_ATTRIBUTE => earlier_recipe = Some(attribute.bytes),
            PROVENANCE_ATTRIBUTE => earlier = Some(attribute.bytes),
            _ => add_attribute(&mut main, &attribute.name, &attribute.media_type, attribute.bytes)?,
        }
    }
    add_attribute(&mut main, RECIPE_ATTRIBUTE, "application/toml", recipe.as_bytes().to_vec())?;
    let provenance = provenance(source, earlier_recipe, earlier)?;
    add_attribute(&mut main, PROVENANCE_ATTRIBUTE, "application/json", provenance)?;
    let mut layouts = Vec::new();
    match options.shard_bytes {
        None => {
            // What is carried whole keeps its order of units.
            let steps = match is_carried(&tensors) {
                true => source.archive().and_then(CmfSource::schedule),
                false => schedule(&tensors, losses)?,
            };
            if let Some(steps) = steps {
                main.schedule(steps);
            }
            for tensor in tensors {
                main.tensor(tensor);
            }
        }
        Some(limit) => {
            let shards = cut(tensors, limit);
            for (i, shard) in shards.iter().enumerate() {
                let name = shard_name(output, i + 1, shards.len())?;
                let path = output.with_file_name(&name);
                let mut builder = ArchiveBuilder::new(WriteOptions::default());
                for tensor in shard {
                    builder.tensor(tensor.clone());
                }
                if let Some(steps) = schedule(shard, losses)? {
                    builder.schedule(steps);
                }
                let layout = lay_out(&builder)?;
                // A kill between the renames leaves shards that are as they should be.
                let same =
                    cmf_loader::Model::open(&path).is_ok_and(|model| model.identity() == layout.identity());
                if !same {
                    check_free(&path, options.force)?;
                }
                main.shard(&name, layout.identity(), layout.file_bytes());
                for tensor in shard {
                    main.tensor(TensorEntry { content: Content::Shard(name.clone()), ..tensor.clone() });
                }
                layouts.push((path, layout));
            }
        }
    }
    // The archive that refers to the others takes its name last.
    layouts.push((output.to_path_buf(), lay_out(&main)?));
    let total = layouts.iter().map(|(_, layout)| layout.file_bytes()).sum();
    let mut done = 0;
    for (i, (_, layout)) in layouts.iter().enumerate() {
        let path = spool.path(&format!("output-{i}"));
        write_synced(&path, |out| {
            let mut out = Reporting { out, done: &mut done, total, progress };
            layout.write(&mut out, |segment, out| match source.archive() {
                Some(archive) if segment.key & CARRIED != 0 => archive.copy_segment(segment.key, out),
                _ => spool.copy(segment, out),
            })
        })?;
    }
    for (i, (path, _)) in layouts.iter().enumerate() {
        rename(&spool.path(&format!("output-{i}")), path)?;
    }
    let mut files: Vec<_> = layouts.into_iter().map(|(path, layout)| (path, layout.file_bytes())).collect();
    files.rotate_right(1);
    Ok(files)
}

fn lay_out(builder: &ArchiveBuilder) -> Result<Layout> {
    builder.layout().map_err(|e| Error::bad_file(e.to_string()).caused_by(e))
}

fn add_attribute(builder: &mut ArchiveBuilder, name: &str, media_type: &str, bytes: Vec<u8>) -> Result<()> {
    let segment = SegmentData::compressed(bytes, ATTRIBUTE_LEVEL)
        .map_err(|e| Error::bad_argument(e.to_string()).caused_by(e))?;
    builder.attribute(name, media_type, segment);
    Ok(())
}

/// Says what the archive was made from, and by which recipe that was made, if it was a `.cmf`.
/// Names and lengths only: the same input gives the same bytes wherever and whenever it is
/// converted.
fn provenance(
    source: &dyn Source,
    earlier_recipe: Option<Vec<u8>>,
    earlier: Option<Vec<u8>>,
) -> Result<Vec<u8>> {
    let inputs: Vec<_> = source
        .inputs()
        .iter()
        .map(|input| {
            let name = input.path.file_name().map(|n| n.to_string_lossy().into_owned());
            serde_json::json!({ "name": name, "bytes": input.bytes })
        })
        .collect();
    let mut text = serde_json::json!({
        "tool": concat!("cmf ", env!("CARGO_PKG_VERSION")),
        "inputs": inputs,
    });
    if let (Some(object), Some(recipe)) = (text.as_object_mut(), &earlier_recipe) {
        object.insert("input_recipe".into(), String::from_utf8_lossy(recipe).into());
    }
    if let (Some(object), Some(earlier)) = (text.as_object_mut(), &earlier) {
        // What is no JSON was not written by this tool; it is kept as text.
        let value =
            serde_json::from_slice(earlier).unwrap_or_else(|_| String::from_utf8_lossy(earlier).into());
        object.insert("input_provenance".into(), value);
    }
    serde_json::to_vec_pretty(&text).map_err(|e| Error::bad_argument(e.to_string()).caused_by(e))
}

/// Cuts tensors, in order, into groups of at most about `limit` stored bytes.
fn cut(tensors: Vec<TensorEntry>, limit: u64) -> Vec<Vec<TensorEntry>> {
    let mut shards: Vec<Vec<TensorEntry>> = Vec::new();
    let mut held = u64::MAX;
    for tensor in tensors {
        let bytes = stored_bytes(&tensor);
        if held.saturating_add(bytes) > limit {
            shards.push(Vec::new());
            held = 0;
        }
        held = held.saturating_add(bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

/// Whether all matrices come from the source as they are.
fn is_carried(tensors: &[TensorEntry]) -> bool {
    fn carried(node: &NodeData) -> bool {
        let stored = |s: &SegmentData| matches!(&s.source, SegmentSource::Stored(s) if s.key & CARRIED != 0);
        node.segments.iter().all(stored) && node.children.iter().all(|child| carried(child))
    }
    let matrices = tensors.iter().filter_map(|tensor| match &tensor.content {
        Content::Matrices(matrices) => Some(matrices),
        _ => None,
    });
    let units = matrices.flatten().flat_map(|matrix| &matrix.units);
    units.flat_map(|unit| &unit.terms).all(|term| carried(&term.node))
}

/// Bytes of the segments of a tensor; those of equal content once.
pub(super) fn stored_bytes(tensor: &TensorEntry) -> u64 {
    let Content::Matrices(matrices) = &tensor.content else { return 0 };
    let terms = matrices.iter().flat_map(|m| &m.units).flat_map(|u| &u.terms);
    let mut seen = HashSet::new();
    terms.map(|t| new_bytes(&t.node, &mut seen)).sum()
}

/// Bytes of the segments of a node whose content is not `seen` yet: the planes that levels of
/// `nested` share count once.
pub(super) fn new_bytes(node: &NodeData, seen: &mut HashSet<[u8; 32]>) -> u64 {
    let own = node.segments.iter().map(|segment| match &segment.source {
        SegmentSource::Stored(stored) if !seen.insert(stored.hash) => 0,
        _ => segment.stored_bytes(),
    });
    let own: u64 = own.sum();
    own + node.children.iter().map(|child| new_bytes(child, seen)).sum::<u64>()
}

fn shard_name(output: &Path, number: usize, count: usize) -> Result<String> {
    Ok(format!("{}-{number:05}-of-{count:05}.cmf", stem(output)?))
}

fn stem(output: &Path) -> Result<&str> {
    output
        .file_stem()
        .and_then(|n| n.to_str())
        .ok_or_else(|| Error::bad_argument("is no file name").file(output))
}

/// Refuses, before any work, files beside `output` that look like shards of it. How many shards
/// there will be shows only at the end.
pub(super) fn check_shards_free(output: &Path) -> Result<()> {
    let stem = stem(output)?;
    let folder = folder_of(output);
    let failed = |e| Error::io("cannot be read", e).file(folder);
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        let numbers = name
            .and_then(|n| n.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".cmf")?.split_once("-of-"));
        if numbers.is_some_and(|(number, count)| digits(number) && digits(count)) {
            check_free(&path, false)?;
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a new file with `fill` and brings it to disk.
pub(crate) fn write_synced(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let failed = |e| Error::io("cannot be written", e).file(path);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    fill(&mut out).map_err(failed)?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

/// Gives a finished file its name, and brings the name to disk.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io("cannot take its name", e).file(to);
    std::fs::rename(from, to).map_err(failed)?;
    File::open(folder_of(to)).and_then(|folder| folder.sync_all()).map_err(failed)
}

struct Reporting<'a, W> {
    out: &'a mut W,
    done: &'a mut u64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<W: Write> Write for Reporting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        *self.done += written as u64;
        (self.progress)(Progress::Written { done: *self.done, total: self.total });
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

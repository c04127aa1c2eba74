//! Encoded blocks on disk until the archive is laid out, so that memory stays bounded and an
//! interrupted conversion goes on where it stopped.
//!
//! The folder beside the output holds `segments`, the bytes of all segments end to end, and
//! `journal`: for each finished block a length, a BLAKE3 hash and a bincode record.

use crate::error::{Error, Result};
use crate::gguf::ReadAt;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use cmf_format::hash;
use cmf_format::{Compression, NodeData, SegmentData, SegmentSource, StoredSegment};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest journal record: a block has few nodes, and 32 bytes for each 64 KiB of their segments.
const RECORD_LIMIT_BYTES: usize = 16 << 20;

type Config = Configuration<LittleEndian, Fixint, Limit<RECORD_LIMIT_BYTES>>;

fn config() -> Config {
    bincode::config::legacy().with_limit::<RECORD_LIMIT_BYTES>()
}

/// One row block of one matrix of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct BlockId {
    pub(super) tensor: u64,
    pub(super) matrix: u64,
    pub(super) row_start: u64,
}

/// One level of a block: its terms, and what the error costs that all levels so far leave.
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub(super) nodes: Vec<NodeData>,
    pub(super) cost: f64,
}

/// An encoded block.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) levels: Vec<Level>,
    /// What leaving out everything costs.
    pub(super) cost: f64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    block: BlockId,
    levels: Vec<(Vec<NodeRecord>, f64)>,
    cost: f64,
}

impl Record {
    fn into_encoded(self) -> Encoded {
        let level = |(nodes, cost): (Vec<NodeRecord>, f64)| Level {
            nodes: nodes.into_iter().map(NodeRecord::into_node).collect(),
            cost,
        };
        Encoded { levels: self.levels.into_iter().map(level).collect(), cost: self.cost }
    }
}

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    encoding: u32,
    version: u16,
    rows: u64,
    cols: u64,
    descriptor: Vec<u8>,
    segments: Vec<(StoredSegment, u64, Compression)>,
    children: Vec<NodeRecord>,
}

impl NodeRecord {
    fn from_node(node: &NodeData) -> Result<Self> {
        let segments = node.segments.iter().map(|s| match &s.source {
            SegmentSource::Stored(stored) => Ok((stored.clone(), s.decoded_bytes, s.compression)),
            SegmentSource::Bytes(_) => Err(Error::bad_argument("segment is not spooled")),
        });
        Ok(Self {
            encoding: node.encoding,
            version: node.version,
            rows: node.rows,
            cols: node.cols,
            descriptor: node.descriptor.clone(),
            segments: segments.collect::<Result<_>>()?,
            children: node.children.iter().map(|c| Self::from_node(c)).collect::<Result<_>>()?,
        })
    }

    fn into_node(self) -> NodeData {
        let segment = |(stored, decoded_bytes, compression)| SegmentData {
            source: SegmentSource::Stored(stored),
            decoded_bytes,
            compression,
        };
        NodeData {
            encoding: self.encoding,
            version: self.version,
            rows: self.rows,
            cols: self.cols,
            descriptor: self.descriptor,
            segments: self.segments.into_iter().map(segment).collect(),
            children: self.children.into_iter().map(|c| Arc::new(c.into_node())).collect(),
        }
    }

    fn segments<'a>(&'a self, found: &mut Vec<&'a StoredSegment>) {
        found.extend(self.segments.iter().map(|(stored, ..)| stored));
        self.children.iter().for_each(|c| c.segments(found));
    }
}

/// The folder of one conversion.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    segments: File,
    /// Where the next segment goes. Held while it is written.
    end: Mutex<u64>,
    journal: Mutex<File>,
    chunk_group_bytes: usize,
}

impl Spool {
    /// Opens or creates `folder` for the conversion that `key` names, and gives the blocks that an
    /// earlier run of the same conversion finished. Blocks whose bytes are not whole are left out.
    ///
    /// # Errors
    /// `Io`, also when another process is converting to the same output.
    pub(super) fn open(
        folder: &Path,
        key: &[u8; 32],
        chunk_group_bytes: u32,
    ) -> Result<(Self, HashMap<BlockId, Encoded>)> {
        let failed = |e| Error::io("cannot be used as work folder", e).file(folder);
        match std::fs::create_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            made => made.map_err(failed)?,
        }
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join(name))
                .map_err(failed)
        };
        let (segments, mut journal) = (open("segments")?, open("journal")?);
        journal
            .try_lock()
            .map_err(|e| failed(io::Error::other(format!("another conversion uses it: {e}"))))?;
        let records = read_journal(&mut journal, key).map_err(failed)?;
        let mut done = HashMap::new();
        let mut end = 0;
        for record in records {
            let mut stored = Vec::new();
            record.levels.iter().flat_map(|(nodes, _)| nodes).for_each(|n| n.segments(&mut stored));
            end = stored.iter().map(|s| s.key.saturating_add(s.stored_bytes)).fold(end, u64::max);
            let whole = stored.iter().try_fold(true, |all, s| Ok(all && is_whole(&segments, s)?));
            if whole.map_err(failed)? {
                done.insert(record.block, record.into_encoded());
            }
        }
        if done.is_empty() {
            end = 0;
            segments.set_len(0).map_err(failed)?;
            journal
                .set_len(0)
                .and_then(|()| journal.rewind())
                .and_then(|()| journal.write_all(key))
                .map_err(failed)?;
        }
        let spool = Self {
            folder: folder.to_path_buf(),
            segments,
            end: Mutex::new(end),
            journal: Mutex::new(journal),
            chunk_group_bytes: chunk_group_bytes as usize,
        };
        Ok((spool, done))
    }

    /// Moves the bytes of `nodes` to disk, notes the block as finished, and gives back the nodes
    /// that refer to them.
    pub(super) fn store(&self, block: BlockId, encoded: Encoded) -> Result<Encoded> {
        let store = |level: Level| {
            let nodes = level.nodes.into_iter().map(|n| self.store_node(n)).collect::<Result<_>>()?;
            Ok(Level { nodes, ..level })
        };
        let levels = encoded.levels.into_iter().map(store).collect::<Result<Vec<_>>>()?;
        let record = |level: &Level| {
            let nodes = level.nodes.iter().map(NodeRecord::from_node).collect::<Result<_>>()?;
            Ok((nodes, level.cost))
        };
        let records = levels.iter().map(record).collect::<Result<_>>()?;
        let record = Record { block, levels: records, cost: encoded.cost };
        let record = bincode::serde::encode_to_vec(record, config())
            .map_err(|e| Error::limit(format!("journal record: {e}")))?;
        let mut entry = (record.len() as u32).to_le_bytes().to_vec();
        entry.extend_from_slice(&hash::hash(&record));
        entry.extend_from_slice(&record);
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(&entry).map_err(|e| self.failed(e))?;
        Ok(Encoded { levels, ..encoded })
    }

    fn store_node(&self, node: NodeData) -> Result<NodeData> {
        let segments = node.segments.into_iter().map(|s| self.store_segment(s)).collect::<Result<_>>()?;
        let child = |c: Arc<NodeData>| self.store_node(Arc::unwrap_or_clone(c)).map(Arc::new);
        let children = node.children.into_iter().map(child).collect::<Result<_>>()?;
        Ok(NodeData { segments, children, ..node })
    }

    fn store_segment(&self, segment: SegmentData) -> Result<SegmentData> {
        let SegmentSource::Bytes(bytes) = &segment.source else { return Ok(segment) };
        let (hash, chunk_hashes) = hash::segment_hashes(bytes, self.chunk_group_bytes);
        let stored_bytes = bytes.len() as u64;
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let key = *end;
        let mut file = &self.segments;
        file.seek(io::SeekFrom::Start(key))
            .and_then(|_| file.write_all(bytes))
            .map_err(|e| self.failed(e))?;
        *end += stored_bytes;
        drop(end);
        let source = SegmentSource::Stored(StoredSegment { key, stored_bytes, hash, chunk_hashes });
        Ok(SegmentData { source, ..segment })
    }

    /// Writes the bytes of a segment to `out`.
    pub(super) fn copy(&self, segment: &StoredSegment, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < segment.stored_bytes {
            let step = (segment.stored_bytes - at).min(buffer.len() as u64);
            let part = buffer.get_mut(..step as usize).unwrap_or_default();
            self.segments.read_exact_at(segment.key + at, part)?;
            out.write_all(part)?;
            at += step;
        }
        Ok(())
    }

    /// A file in the folder, for what is not finished yet.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Removes the folder and all in it.
    pub(super) fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("work folder cannot be written", error).file(&self.folder)
    }
}

/// The records of a journal that begins with `key`, up to the first that is not whole; empty when
/// it is of another conversion. The file is cut after the last whole record.
fn read_journal(journal: &mut File, key: &[u8; 32]) -> io::Result<Vec<Record>> {
    let mut bytes = Vec::new();
    journal.read_to_end(&mut bytes)?;
    let Some(mut rest) = bytes.strip_prefix(key) else { return Ok(Vec::new()) };
    let mut records = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((stated, after)) = after.split_first_chunk::<32>() else { break };
        let Some((record, after)) = after.split_at_checked(length) else { break };
        if length > RECORD_LIMIT_BYTES || hash::hash(record) != *stated {
            break;
        }
        match bincode::serde::decode_from_slice::<Record, _>(record, config()) {
            Ok((decoded, used)) if used == record.len() => records.push(decoded),
            _ => break,
        }
        rest = after;
    }
    let whole = bytes.len() - rest.len();
    journal.set_len(whole as u64)?;
    journal.seek(io::SeekFrom::Start(whole as u64))?;
    Ok(records)
}

fn is_whole(segments: &File, stored: &StoredSegment) -> io::Result<bool> {
    let length = segments.metadata()?.len();
    if stored.key.checked_add(stored.stored_bytes).is_none_or(|end| end > length) {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(stored.stored_bytes).unwrap_or(0)];
    segments.read_exact_at(stored.key, &mut bytes)?;
    Ok(hash::hash(&bytes) == stored.hash)
}

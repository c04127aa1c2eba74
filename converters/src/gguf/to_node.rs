//! Blocks as nodes of the container, with the very values that they have in GGUF.
//!
//! Nothing is quantised again: codes and f16 factors are moved, not computed. Scales that a block
//! quantises once more become `grouped` children, and the grids of the IQ types `codebook`s that
//! all nodes of a type share. Inside a block, codes are put in the order of their columns.

use std::sync::{Arc, OnceLock};

use cmf_format::encoding::{codebook, dense, grouped};
use cmf_format::{DType, NodeData};

use super::blocks::{Parts, unpack};
use super::iq::Grid;
use super::layout::{ByteFloat, Elements, Layout, Map, Shared, layout};
use super::types::GgmlType;
use crate::error::{Error, Result};

/// Builds a node of `rows` by `cols` elements from the blocks of whole rows.
///
/// Its reference decode gives the same f32, to the bit, as [`decode`](super::decode()).
///
/// # Errors
/// `BadFile` if `cols` is no multiple of the block; `BadArgument` if `bytes` is not `rows` rows.
pub fn block_node(ty: GgmlType, rows: u64, cols: u64, bytes: &[u8]) -> Result<NodeData> {
    let expected = ty.row_bytes(cols)?.checked_mul(rows);
    if expected != Some(bytes.len() as u64) {
        return Err(Error::bad_argument(format!("{rows} rows of {cols} {} elements", ty.name()))
            .expected(expected.map_or("fewer".to_owned(), |bytes| format!("{bytes} bytes")))
            .found(bytes.len()));
    }
    let node = match (ty.dtype(), layout(ty)) {
        (Some(dtype), _) => dense::pack(dtype, rows, cols, bytes.to_vec()),
        (None, Some(layout)) => {
            let geometry = Geometry::new(ty, &layout, rows, cols);
            let columns = Columns::of(ty, &layout, bytes);
            match layout.elements {
                Elements::Codes(bits, map) => columns.grouped(&layout, &geometry, bits, map),
                Elements::Vectors(grid) => columns.codebook(&layout, &geometry, grid),
            }
        }
        (None, None) => return Err(Error::unsupported(format!("tensors of type {}", ty.name()))),
    };
    // All sizes follow from those checked above; what is left are limits of the container.
    node.map_err(|error| Error::unsupported(format!("{} as a node", ty.name())).caused_by(error))
}

/// Extents of a node and of what its groups share.
struct Geometry {
    rows: u64,
    cols: u64,
    /// Groups in a row.
    groups: u64,
    /// Blocks in a row.
    blocks: u64,
    /// Groups that share the f16 factors of a block.
    groups_per_block: u32,
}

impl Geometry {
    fn new(ty: GgmlType, layout: &Layout, rows: u64, cols: u64) -> Self {
        Self {
            rows,
            cols,
            groups: cols / layout.group as u64,
            blocks: cols / ty.block_elems(),
            groups_per_block: ty.block_elems() as u32 / layout.group as u32,
        }
    }
}

/// The parts of all blocks, each kind by itself.
#[derive(Default)]
struct Columns {
    /// Bit stream of the elements. Blocks are multiples of 32 elements, so rows need no padding.
    codes: Vec<u8>,
    vectors: Vec<u16>,
    scales: Vec<u8>,
    mins: Vec<u8>,
    /// The f16 factors of the scales.
    d: Vec<u8>,
    /// The f16 minima or factors of the minima, negated where they are subtracted.
    dmin: Vec<u8>,
}

impl Columns {
    fn of(ty: GgmlType, layout: &Layout, bytes: &[u8]) -> Self {
        let (block_elems, block_bytes) = (ty.block_elems() as usize, ty.block_bytes() as usize);
        let groups = block_elems / layout.group;
        let coded_mins = matches!(layout.min, Some(Shared::Scaled(..)));
        let mut columns = Self::default();
        let elems = bytes.len() / block_bytes * block_elems;
        match layout.elements {
            Elements::Codes(bits, _) => columns.codes.reserve_exact(elems / 8 * usize::from(bits)),
            Elements::Vectors(grid) => columns.vectors.reserve_exact(elems / grid.vector()),
        }
        let mut parts = Parts::new();
        for block in bytes.chunks_exact(block_bytes) {
            unpack(ty, block, &mut parts);
            match layout.elements {
                Elements::Codes(bits, _) => pack(&parts.codes[..block_elems], bits, &mut columns.codes),
                Elements::Vectors(grid) => {
                    columns.vectors.extend_from_slice(&parts.vectors[..block_elems / grid.vector()]);
                }
            }
            if !matches!(layout.scale, Shared::Byte(_)) {
                columns.d.extend(parts.d.to_le_bytes());
            }
            if layout.scale != Shared::Half {
                columns.scales.extend_from_slice(&parts.scales[..groups]);
            }
            if coded_mins {
                columns.mins.extend_from_slice(&parts.mins[..groups]);
                columns.dmin.extend((parts.dmin ^ 0x8000).to_le_bytes());
            } else if layout.min.is_some() {
                columns.dmin.extend(parts.dmin.to_le_bytes());
            }
        }
        columns
    }

    fn grouped(
        self,
        layout: &Layout,
        geometry: &Geometry,
        bits: u8,
        map: Map<i8>,
    ) -> cmf_format::Result<NodeData> {
        // The container's floats of 8 bits are not halved, so the doubled elements must be.
        let unit = match layout.scale {
            Shared::Byte(float) if float.covers(&self.scales) => 0.5,
            _ => 1.0,
        };
        let scale = shared(layout.scale, geometry, self.scales, self.d)?;
        let zero = layout.min.map(|min| shared(min, geometry, self.mins, self.dmin)).transpose()?;
        let (code_map, table) = match map {
            Map::Offset(offset) => (integer(offset), None),
            Map::Table(table) => {
                let values: Vec<_> = table.iter().map(|&value| f32::from(value) * unit).collect();
                (grouped::CodeMap::Table, Some(table_node(DType::F16, &values)?))
            }
        };
        let descriptor = grouped::Descriptor {
            bits,
            code_map,
            scale_op: grouped::ScaleOp::Multiply,
            zero_op: if zero.is_some() { grouped::ZeroOp::Add } else { grouped::ZeroOp::None },
            group_rows: 1,
            group_cols: layout.group as u32,
        };
        let children = grouped::Children { scale: Some(scale), zero, table };
        grouped::pack_stream(&descriptor, geometry.rows, geometry.cols, self.codes, children)
    }

    fn codebook(self, layout: &Layout, geometry: &Geometry, grid: Grid) -> cmf_format::Result<NodeData> {
        let scale = shared(layout.scale, geometry, self.scales, self.d)?;
        let descriptor = codebook::Descriptor {
            codebooks: 1,
            bits: grid.index_bits(),
            has_scale: true,
            vector_rows: 1,
            vector_cols: grid.vector() as u32,
            scale_cols: layout.group as u32,
        };
        let &Geometry { rows, cols, .. } = geometry;
        codebook::pack(&descriptor, rows, cols, &self.vectors, grid.entries()?, Some(Arc::new(scale)))
    }
}

impl Grid {
    /// The node of all vectors, one for all tensors of a process.
    fn entries(self) -> cmf_format::Result<Arc<NodeData>> {
        static NODES: [OnceLock<Arc<NodeData>>; Grid::COUNT] = [const { OnceLock::new() }; Grid::COUNT];
        let node = &NODES[self as usize];
        if let Some(node) = node.get() {
            return Ok(node.clone());
        }
        let width = self.vector();
        let count = 1usize << self.index_bits();
        let mut entry = [0; 8];
        let mut bytes = Vec::with_capacity(count * width);
        for index in 0..=u16::MAX >> (16 - self.index_bits()) {
            self.entry(index, &mut entry[..width]);
            bytes.extend(entry[..width].iter().flat_map(|element| element.to_le_bytes()));
        }
        let built = dense::pack(DType::I8, count as u64, width as u64, bytes)?;
        Ok(node.get_or_init(|| Arc::new(built)).clone())
    }
}

/// Appends codes of `bits` bits, least significant bit first. Their number is a multiple of 8.
fn pack(codes: &[u8], bits: u8, out: &mut Vec<u8>) {
    let bits = usize::from(bits);
    for eight in codes.chunks_exact(8) {
        let word = eight.iter().rev().fold(0u64, |word, &code| word << bits | u64::from(code));
        out.extend_from_slice(&word.to_le_bytes()[..bits]);
    }
}

/// The node of scales or minima.
fn shared(
    kind: Shared,
    geometry: &Geometry,
    codes: Vec<u8>,
    halves: Vec<u8>,
) -> cmf_format::Result<NodeData> {
    let &Geometry { rows, groups, blocks, groups_per_block, .. } = geometry;
    let (bits, map) = match kind {
        Shared::Half => return dense::pack(DType::F16, rows, groups, halves),
        Shared::Byte(float) => return byte_floats(float, rows, groups, codes),
        Shared::Scaled(bits, map) => (bits, map),
    };
    let (code_map, table) = match map {
        Map::Offset(offset) => (integer(offset), None),
        Map::Table(table) => (grouped::CodeMap::Table, Some(table_node(DType::F16, table)?)),
    };
    let descriptor = grouped::Descriptor {
        bits,
        code_map,
        scale_op: grouped::ScaleOp::Multiply,
        zero_op: grouped::ZeroOp::None,
        group_rows: 1,
        group_cols: groups_per_block,
    };
    let factor = dense::pack(DType::F16, rows, blocks, halves)?;
    let children = grouped::Children { scale: Some(factor), zero: None, table };
    grouped::pack(&descriptor, rows, groups, &codes, children)
}

/// Floats of 8 bits: as they are where the container's type has the same values, else by a table.
fn byte_floats(float: &ByteFloat, rows: u64, cols: u64, codes: Vec<u8>) -> cmf_format::Result<NodeData> {
    if float.covers(&codes) {
        return dense::pack(float.dtype, rows, cols, codes);
    }
    let descriptor = grouped::Descriptor {
        bits: 8,
        code_map: grouped::CodeMap::Table,
        scale_op: grouped::ScaleOp::None,
        zero_op: grouped::ZeroOp::None,
        group_rows: 0,
        group_cols: 0,
    };
    // bf16 holds every one of the halves.
    let table = Some(table_node(DType::BF16, &float.halves)?);
    grouped::pack(&descriptor, rows, cols, &codes, grouped::Children { table, ..Default::default() })
}

fn integer(offset: i16) -> grouped::CodeMap {
    grouped::CodeMap::Integer { offset: offset.into() }
}

fn table_node(dtype: DType, values: &[f32]) -> cmf_format::Result<NodeData> {
    dense::pack_values(dtype, 1, values.len() as u64, values)
}

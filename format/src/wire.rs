//! The records of the header and the directory, byte for byte (spec: container, sections 3 and 4).
//!
//! Every field is little-endian with alignment 1, so a record can be viewed in place at any
//! address. A record is only data: what its fields must satisfy is checked in `archive`.

use bytemuck::{Pod, Zeroable};

macro_rules! little_endian {
    ($($name:ident $native:ty, $bytes:literal;)*) => {$(
        #[doc = concat!("A little-endian `", stringify!($native), "` of alignment 1.")]
        #[derive(Clone, Copy, PartialEq, Eq, Default, Zeroable, Pod)]
        #[repr(transparent)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The stored value.
            pub const fn get(self) -> $native {
                <$native>::from_le_bytes(self.0)
            }
        }

        impl From<$native> for $name {
            fn from(value: $native) -> Self {
                Self(value.to_le_bytes())
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.get().fmt(f)
            }
        }
    )*};
}

little_endian! {
    U16 u16, 2;
    U32 u32, 4;
    I32 i32, 4;
    U64 u64, 8;
    F32 f32, 4;
    F64 f64, 8;
}

/// Declares a record and proves its size at compile time.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident $size:literal { $($(#[$field_meta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, ::bytemuck::Zeroable, ::bytemuck::Pod)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size && align_of::<$name>() == 1);
    };
}
pub(crate) use record;

/// The first 12 bytes of every archive (spec: container, 3.1).
pub const MAGIC: [u8; 12] = [0x8C, b'C', b'M', b'F', 0x0D, 0x0A, 0x1A, 0x0A, 0x00, 0xFF, 0x0A, 0x0D];
/// The container major version that this crate reads and writes.
pub const MAJOR: u16 = 1;
/// The newest container minor version that this crate knows.
pub const MINOR: u16 = 0;
/// The newest dated list of encodings that this crate knows, as `yyyymm`.
pub const EDITION: u32 = 202_611;
/// Size of the header, and the offset of the directory.
pub const HEADER_BYTES: u64 = 256;
/// Table flag: a reader that does not know the table must refuse the archive.
pub const TABLE_REQUIRED: u32 = 1;
/// Term flag: a reader that does not know the term's encoding may leave the term out.
pub const TERM_OPTIONAL: u16 = 1 << 8;
/// Tensor flag: the terms are added to the tensor of the same name in the base archive.
pub const TENSOR_DELTA: u32 = 1;
/// Schedule flag: `expected_loss` is stated.
pub const SCHEDULE_LOSS: u32 = 1;
/// Archive kind: holds tensors of this model.
pub const ARCHIVE_SHARD: u32 = 1;
/// Archive kind: delta tensors here are added to its tensors.
pub const ARCHIVE_BASE: u32 = 2;
/// Transform kind: multiply by a factor each.
pub const TRANSFORM_SCALE: u32 = 1;
/// Transform kind: random signs and a block Hadamard matrix.
pub const TRANSFORM_SIGN_HADAMARD: u32 = 2;
/// Transform kind: reorder.
pub const TRANSFORM_PERMUTE: u32 = 3;
/// "No index" wherever a record holds an optional index.
pub const NONE: u32 = u32::MAX;

record! {
    /// The fixed header at offset 0. Its BLAKE3 hash is the archive's identity.
    Header 256 {
        /// [`MAGIC`].
        magic: [u8; 12],
        /// Container major version; another major is refused.
        major: U16,
        /// Container minor version; a newer minor is read if no unknown must-understand bit is set.
        minor: U16,
        /// Newest edition whose encodings the archive may use.
        edition: U32,
        /// Alignment of segments: a power of two from 64 to 65 536.
        alignment_bytes: U32,
        /// Length of the whole file.
        file_bytes: U64,
        /// Offset of the directory: 256.
        directory_offset: U64,
        /// Length of the directory.
        directory_bytes: U64,
        /// Feature bits that a reader must know.
        must_understand: U64,
        /// Feature bits that a reader may ignore.
        may_ignore: U64,
        /// BLAKE3 of the directory.
        directory_hash: [u8; 32],
        /// Bytes of one chunk group: a power of two from 1 024 to 2^30.
        chunk_group_bytes: U32,
        /// Segment that holds the chunk-group hashes, 0, or [`NONE`] when there are none.
        chunk_hash_segment: U32,
        /// Number of table records at the start of the directory.
        table_count: U32,
        /// Zero.
        reserved: [u8; 148],
    }
}

record! {
    /// Where one table of the directory lies.
    TableRecord 32 {
        /// A [`Table`] number; unknown numbers follow `flags`.
        kind: U32,
        /// Bit 0: a reader that does not know the table must refuse the archive; set for all tables
        /// of version 1. Of a known table bits 1 to 15 must be understood, high 16 bits may be ignored.
        flags: U32,
        /// Bytes from one record to the next; at least the size that this version knows.
        record_bytes: U32,
        /// Zero.
        reserved: U32,
        /// Offset from the start of the directory, a multiple of 8.
        offset: U64,
        /// Number of records.
        count: U64,
    }
}

/// The tables of version 1, in file order. All are present, empty ones with count 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Table {
    /// UTF-8 bytes, the strings that records refer to, sorted and unique, end to end.
    Strings = 1,
    /// `u64` extents of tensor shapes.
    Extents = 2,
    /// [`AttributeRecord`]
    Attributes = 3,
    /// [`ArchiveRecord`]
    Archives = 4,
    /// [`TensorRecord`]
    Tensors = 5,
    /// [`MatrixRecord`]
    Matrices = 6,
    /// [`TransformRecord`]
    Transforms = 7,
    /// [`TermRecord`]
    Terms = 8,
    /// [`NodeRecord`]
    Nodes = 9,
    /// `u32` segment and node indices.
    Refs = 10,
    /// Descriptor bytes.
    Descriptors = 11,
    /// [`SegmentRecord`]
    Segments = 12,
    /// [`UnitRecord`]
    Units = 13,
    /// [`ScheduleRecord`]
    Schedule = 14,
}

impl Table {
    /// All tables in file order.
    pub const ALL: [Table; 14] = [
        Table::Strings,
        Table::Extents,
        Table::Attributes,
        Table::Archives,
        Table::Tensors,
        Table::Matrices,
        Table::Transforms,
        Table::Terms,
        Table::Nodes,
        Table::Refs,
        Table::Descriptors,
        Table::Segments,
        Table::Units,
        Table::Schedule,
    ];

    /// The number on disk.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The table's name in the spec and in error messages.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Strings => "strings",
            Table::Extents => "extents",
            Table::Attributes => "attributes",
            Table::Archives => "archives",
            Table::Tensors => "tensors",
            Table::Matrices => "matrices",
            Table::Transforms => "transforms",
            Table::Terms => "terms",
            Table::Nodes => "nodes",
            Table::Refs => "refs",
            Table::Descriptors => "descriptors",
            Table::Segments => "segments",
            Table::Units => "units",
            Table::Schedule => "schedule",
        }
    }
}

record! {
    /// A string: a range of the strings table.
    StringRef 8 {
        /// First byte.
        offset: U32,
        /// Length.
        bytes: U32,
    }
}

record! {
    /// A named, opaque segment: model config, tokenizer, recipe, licence.
    AttributeRecord 32 {
        /// Bare file name, unique, ascending.
        name: StringRef,
        /// Media type (RFC 6838).
        media_type: StringRef,
        /// The segment with the bytes.
        segment: U32,
        /// Low 16 bits must be understood, high 16 bits may be ignored; none is defined.
        flags: U32,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// Another archive that this one refers to.
    ArchiveRecord 64 {
        /// Bare file name.
        name: StringRef,
        /// BLAKE3 of that archive's header.
        identity: [u8; 32],
        /// 1: shard (holds tensors of this model), 2: base (tensors here are deltas to it).
        kind: U32,
        /// As in [`AttributeRecord::flags`].
        flags: U32,
        /// Length of that file.
        file_bytes: U64,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// A named array of the model.
    TensorRecord 48 {
        /// Unique, ascending in byte order.
        name: StringRef,
        /// Original element type, a [`crate::DType`] number.
        dtype: U16,
        /// Number of extents.
        rank: U16,
        /// As in [`AttributeRecord::flags`]. Bit 0: delta, the terms are added to the tensor of the
        /// same name in `archive`.
        flags: U32,
        /// First extent in the extents table, outermost dimension first.
        first_extent: U32,
        /// Archive that holds the tensor (or its base), or [`NONE`].
        archive: U32,
        /// First matrix.
        first_matrix: U32,
        /// Number of matrices, all of the same shape, in row-major order of the leading extents.
        matrix_count: U32,
        /// Product of the extents.
        elements: U64,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// What kernels multiply with: `rows` outputs by `cols` inputs.
    MatrixRecord 48 {
        /// Outputs.
        rows: U64,
        /// Inputs.
        cols: U64,
        /// First term; terms are ascending in level, then in unit.
        first_term: U32,
        /// Number of terms.
        term_count: U32,
        /// First transform; input transforms come first, each list in order of application.
        first_transform: U32,
        /// Number of input-side transforms.
        input_transforms: U16,
        /// Number of output-side transforms.
        output_transforms: U16,
        /// First unit.
        first_unit: U32,
        /// Number of units.
        unit_count: U32,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// A scale, sign-Hadamard or permutation on one side of a matrix.
    TransformRecord 48 {
        /// 1 scale, 2 sign_hadamard, 3 permute.
        kind: U32,
        /// As in [`AttributeRecord::flags`].
        flags: U32,
        /// Length of the side.
        size: U64,
        /// Hadamard block, a power of two that divides `size`; 0 elsewhere.
        block: U64,
        /// Seed of the sign generator; 0 where signs are stored or absent.
        seed: U64,
        /// Node `[1, size]` with the factors, or [`NONE`].
        node: U32,
        /// Segment with signs or permutation indices, or [`NONE`].
        segment: U32,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// One addend of a matrix: a node at a place, with a level.
    TermRecord 32 {
        /// The node with the values.
        node: U32,
        /// Level 0 is required; each higher level refines the sum of all below.
        level: U16,
        /// Low 8 bits must be understood, high 8 bits may be ignored. Bit 8: optional, a reader
        /// that does not know the encoding may leave the term out.
        flags: U16,
        /// First row of the region.
        row_start: U64,
        /// First column of the region.
        col_start: U64,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// An encoded two-dimensional array.
    NodeRecord 48 {
        /// Encoding id.
        encoding: U32,
        /// Version of the encoding.
        version: U16,
        /// Low 8 bits must be understood, high 8 bits may be ignored; none is defined.
        flags: U16,
        /// Rows.
        rows: U64,
        /// Columns.
        cols: U64,
        /// First byte in the descriptors table, a multiple of 8: the end of those before, or one of
        /// them again.
        descriptor_offset: U32,
        /// Length, a multiple of 8.
        descriptor_bytes: U32,
        /// First entry in the refs table, where those of the node before end: segments, then
        /// children.
        first_ref: U32,
        /// Number of segments.
        segment_count: U16,
        /// Number of children; each child's index is below this node's.
        child_count: U16,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// A contiguous, aligned range of payload.
    SegmentRecord 64 {
        /// Absolute offset, a multiple of the alignment.
        offset: U64,
        /// Bytes in the file.
        stored_bytes: U64,
        /// Bytes after decompression; equal to `stored_bytes` when raw.
        decoded_bytes: U64,
        /// First chunk-group hash, or [`NONE`] when the segment is one chunk group or less.
        first_chunk_hash: U32,
        /// 0 raw, 1 zstd.
        compression: u8,
        /// Zero.
        reserved: u8,
        /// Low 8 bits must be understood, high 8 bits may be ignored; none is defined.
        flags: U16,
        /// BLAKE3 of the stored bytes.
        hash: [u8; 32],
    }
}

impl SegmentRecord {
    /// Whether version 1 knows the compression and every must-understand flag.
    pub const fn is_known(&self) -> bool {
        self.compression <= 1 && self.flags.get() & 0xFF == 0
    }
}

record! {
    /// What residency adds or drops: one level of one matrix, or of a block of its rows.
    UnitRecord 48 {
        /// The matrix.
        matrix: U32,
        /// The level.
        level: U16,
        /// Low 8 bits must be understood, high 8 bits may be ignored; none is defined.
        flags: U16,
        /// First term.
        first_term: U32,
        /// Number of terms.
        term_count: U32,
        /// First row.
        row_start: U64,
        /// Number of rows.
        rows: U64,
        /// Bytes resident when the unit is executed as stored.
        resident_bytes: U64,
        /// Zero.
        reserved: U64,
    }
}

record! {
    /// One step of the schedule.
    ScheduleRecord 32 {
        /// The unit.
        unit: U32,
        /// Bit 0: `expected_loss` is stated. Bits as in [`AttributeRecord::flags`].
        flags: U32,
        /// Resident bytes of this unit and all before it, shared segments counted once.
        cumulative_bytes: U64,
        /// Expected loss with this unit and all before it; 0 when not stated.
        expected_loss: F64,
        /// Zero.
        reserved: U64,
    }
}

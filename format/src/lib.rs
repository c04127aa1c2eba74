//! The CMF container: one compressed model file for any memory size.
//!
//! This crate says what the bytes of a `.cmf` mean. It opens no file, has no `unsafe` and works on
//! any bytes: a map, a vector, a fetched buffer, or a [`Source`] that reads on demand. Files are
//! opened by `cmf-loader`, made by `cmf-converters`; the contract for the bytes is `spec/`.
//!
//! # Read
//!
//! [`Archive::parse`] checks header and directory whole, in O(directory), and is the only way to a
//! view; payload is not touched.
//!
//! ```
//! use cmf_format::archive::TensorView;
//! use cmf_format::encoding::dense;
//! use cmf_format::write::{Content, MatrixEntry, TensorEntry};
//! use cmf_format::{Archive, ArchiveBuilder, DType, Limits};
//!
//! // Write: the same entries give the same bytes, in whatever order they are added.
//! let node = dense::pack_values(DType::F16, 2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! let mut builder = ArchiveBuilder::default();
//! builder.tensor(TensorEntry {
//!     name: "w".into(),
//!     dtype: DType::F16,
//!     shape: vec![2, 3],
//!     content: Content::Matrices(vec![MatrixEntry::from_node(node)]),
//! });
//! let bytes = builder.to_vec()?;
//!
//! // Read.
//! let archive = Archive::parse(&bytes, &Limits::default())?;
//! let tensor = archive.tensor("w").ok_or("no such tensor")?;
//! let mut row = [0.0; 3];
//! TensorView::open(&tensor, u16::MAX)?.decode_rows(1..2, &mut row)?;
//! assert_eq!(row, [4.0, 5.0, 6.0]);
//! archive.verify()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The file
//!
//! ```text
//! 0    header, 256 bytes: magic, version, lengths, hash of the directory
//! 256  directory: tables of fixed little-endian records
//!        strings extents attributes archives tensors matrices transforms
//!        terms nodes refs descriptors segments units schedule
//!      payload: aligned segments in file order
//!        chunk-group hashes, attributes, transforms, then units as the schedule orders them
//! ```
//!
//! A tensor is one or more matrices, a matrix a sum of terms between transforms, a term a tree of
//! encoded nodes ([`encoding`]), a node some segments.
//!
//! # Limits
//!
//! What a reader is willing to hold is a value, [`Limits`], checked before anything is allocated.
//!
//! # Features
//!
//! - `serde`: derives for [`StoredSegment`] and [`Compression`], for programs that keep a journal of
//!   segments that are not yet in an archive. The format itself never uses serde. Stable.

pub mod archive;
pub mod bits;
mod dtype;
pub mod encoding;
mod error;
pub mod hash;
mod limits;
mod name;
mod node;
mod segment;
mod source;
pub mod transform;
pub mod wire;
pub mod write;

pub use archive::Archive;
pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use limits::Limits;
pub use node::NodeData;
pub use segment::{Compression, SegmentData, SegmentSource, StoredSegment, decompress, decompress_frame};
pub use source::Source;
pub use write::{ArchiveBuilder, WriteOptions};

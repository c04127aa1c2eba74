//! The CMF container: one compressed model file for any memory size.
//!
//! Draft docs.

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

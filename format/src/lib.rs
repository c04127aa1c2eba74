//! The CMF container: one compressed model file for any memory size.
//!
//! Draft docs.

pub mod bits;
mod dtype;
pub mod encoding;
mod error;
pub mod hash;
mod limits;
mod node;
mod segment;
pub mod wire;

pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use limits::Limits;
pub use node::NodeData;
pub use segment::{Compression, SegmentData, SegmentSource, StoredSegment, decompress, decompress_frame};

//! Import of GGUF files, the format of llama.cpp and ggml.
//!
//! [`GgufSource`] opens a file, or all files of a split model, and reads rows of tensors as they
//! are stored. [`decode`] gives their values as f32.
//!
//! Nothing that a file says is trusted: counts are compared with the bytes that are left before
//! anything is allocated, sums and products are checked, and the whole directory is proven to lie
//! inside the file before the first tensor is read.

mod blocks;
mod decode;
mod grids;
mod head;
mod iq;
mod layout;
mod metadata;
mod read_at;
mod reader;
mod source;
mod to_node;
mod types;
mod value;

pub use decode::decode;
pub use metadata::Metadata;
pub use read_at::ReadAt;
pub use reader::{Gguf, TensorInfo};
pub use source::GgufSource;
pub use to_node::block_node;
pub use types::GgmlType;
pub use value::{Array, Text, Value, ValueType};

/// Bounds on what a file may ask for, beyond its own size.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of header, metadata and tensor directory, which are kept in memory.
    pub head_bytes: u64,
    /// Tensors in a file.
    pub tensors: u64,
    /// Bytes of a tensor's name or a metadata key. llama.cpp stops at 63.
    pub name_bytes: u64,
    /// Arrays inside arrays. llama.cpp stops at 1.
    pub array_depth: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 256 << 20, tensors: 1 << 20, name_bytes: 1024, array_depth: 4 }
    }
}

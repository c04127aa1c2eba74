//! Importers, encoders, recipes and exporters for .cmf files.

pub mod encode;
pub mod error;
pub mod gguf;

//! Importers, encoders, recipes and exporters for .cmf files.

pub mod error;

//! Importers, encoders, recipes and exporters for .cmf files.
//!
//! [`source::open`] opens a model in any format that is read, [`convert::convert`] makes a `.cmf`
//! of it as a [`recipe::Recipe`] says, [`export`] writes one back, [`compare::compare`] says how two
//! differ. All work tensor by tensor in bounded memory.

pub mod compare;
pub mod convert;
pub mod encode;
pub mod error;
pub mod export;
mod geometry;
pub mod gguf;
pub mod moments;
pub mod recipe;
pub mod schedule;
pub mod source;

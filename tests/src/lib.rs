//! Cross-crate tests of CMF: vectors, mutation, laws and the command line.
//!
//! The bodies of the fuzz targets are here as plain functions, so that a plain `cargo test`
//! replays every seed and every regression on the stable toolchain.

pub mod generate;
pub mod naive;
pub mod places;
pub mod raw;
pub mod repair;
pub mod samples;
pub mod seeds;
pub mod targets;
pub mod vectors;

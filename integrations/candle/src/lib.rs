//! Llama-family models from `.cmf` on candle tensors: run, evaluated and calibrated.

pub mod config;
mod error;
mod layers;
pub mod llama;
pub mod moments;
mod output;
mod source;
mod text;
pub mod weights;

pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use layers::{Hidden, Progress};
pub use source::AnyModel;
pub use text::{Text, Tokens, Windows};

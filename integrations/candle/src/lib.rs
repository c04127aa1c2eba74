//! Llama-family models from `.cmf` on candle tensors: run, evaluated and calibrated.

mod card;
pub mod chat;
pub mod config;
pub mod cut;
mod error;
pub mod eval;
pub mod generate;
pub mod gguf;
mod layers;
pub mod llama;
pub mod moments;
mod output;
pub mod packed;
pub mod sample;
mod source;
mod text;
mod var_builder;
pub mod weights;

pub use card::Card;
pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use layers::{Hidden, Progress};
pub use source::AnyModel;
pub use text::{Text, Tokens, Windows};
pub use var_builder::var_builder;

//! Runs, evaluates and calibrates models of the Llama family from `.cmf` files, on candle tensors.
//!
//! [`packed::PackedModel`] keeps matrices packed and decodes blocks of rows as it multiplies with
//! them; [`moving::Moving`] holds it in a budget that can be changed between tokens, from any
//! thread:
//!
//! ```no_run
//! use cmf_candle::llama::{Cache, Llama};
//! use cmf_candle::moving::Moving;
//! use cmf_candle::cut;
//! use cmf_loader::{Budget, Model};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("smollm2.cmf")?;
//! let card = cut::card(&model)?;
//! let moving = Moving::new(model.resident(Budget::Minimum)?);
//! let weights = card.weights(moving.packed());
//! let llama = Llama::load(weights.as_ref(), card.config())?;
//! let mut cache = Cache::new(card.config());
//! let prompt = card.text()?.encode("Once upon a time")?;
//! let hidden = llama.hidden(&prompt.ids, &mut cache)?;
//! moving.set_budget(Budget::parse("80MiB")?)?;
//! let logits = llama.logits(&hidden)?;
//! # let _ = logits;
//! # Ok(())
//! # }
//! ```
//!
//! [`weights::Dense`] over [`AnyModel`] or [`cut::CutModel`] holds plain tensors instead, of any
//! model that `cmf-converters` reads. [`var_builder()`] gives a `.cmf` to any other model of
//! candle-transformers.
//!
//! - [`llama`]: the model; it asks [`weights::Weights`] for what it multiplies with
//! - [`experts`]: those of a mixture, held in memory when they are chosen
//! - [`generate`], [`sample`], [`chat`]: text
//! - [`eval`]: perplexity, and divergence from another model
//! - [`moments`]: second moments of activations

mod card;
pub mod chat;
pub mod config;
pub mod cut;
mod error;
pub mod eval;
pub mod experts;
pub mod generate;
pub mod gguf;
#[cfg(feature = "gpu")]
pub mod gpu;
mod layers;
pub mod llama;
pub mod moments;
pub mod moving;
mod output;
pub mod packed;
pub mod sample;
mod source;
mod text;
mod var_builder;
mod vocabulary;
pub mod weights;

pub use card::Card;
pub use config::Config;
pub use error::{Error, ErrorKind, Result};
pub use layers::{Hidden, Progress};
pub use source::AnyModel;
pub use text::{Text, Tokens, Windows};
pub use var_builder::var_builder;

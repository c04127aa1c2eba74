//! What a model is besides its weights: configuration, tokenizer, chat template.

use crate::chat::Chat;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::{self, GgufNames};
use crate::text::Text;
use crate::weights::Weights;
use cmf_converters::gguf::{Limits, Metadata};
use serde_json::Value;

/// A model's configuration and language, from the files of Hugging Face or the metadata of GGUF that
/// travel with it.
pub struct Card {
    config: Config,
    text: Result<Text>,
    chat: Chat,
    ends: Vec<u32>,
    gguf: bool,
}

impl Card {
    /// Reads what travels with a model: `file` gives a file by name, `shape` the shape of a tensor.
    ///
    /// # Errors
    /// `BadModel` when there is no configuration or it makes no model, `Unsupported` for another
    /// architecture, and what `file` gives.
    pub fn read(
        file: &dyn Fn(&str) -> Result<Option<Vec<u8>>>,
        shape: &dyn Fn(&str) -> Option<Vec<u64>>,
    ) -> Result<Self> {
        match (file("config.json")?, file(gguf::METADATA)?) {
            (Some(json), _) => Self::hugging_face(&json, file),
            (None, Some(json)) => Self::gguf(&json, file, shape),
            (None, None) => Err(Error::model("config.json is not there")),
        }
    }

    fn hugging_face(json: &[u8], file: &dyn Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let config = Config::parse(json)?;
        let text = file("tokenizer.json")?.ok_or_else(|| Error::model("tokenizer.json is not there"));
        let text = text.and_then(|json| Text::parse(&json));
        let jinja = file("chat_template.jinja")?;
        let settings = file("tokenizer_config.json")?.unwrap_or_else(|| b"{}".to_vec());
        let chat = Chat::parse(&settings, jinja.as_deref())?;
        let mut ends = config.eos.clone();
        ends.extend(text.as_ref().ok().and_then(|text| text.id(chat.eos())));
        let generation = file("generation_config.json")?.unwrap_or_default();
        let generation = serde_json::from_slice::<Value>(&generation).unwrap_or_default();
        let ids = match generation.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        ends.extend(ids.into_iter().filter_map(|id| u32::try_from(id).ok()));
        Ok(Self { config, text, chat, ends, gguf: false })
    }

    fn gguf(
        json: &[u8],
        file: &dyn Fn(&str) -> Result<Option<Vec<u8>>>,
        shape: &dyn Fn(&str) -> Option<Vec<u64>>,
    ) -> Result<Self> {
        let config = gguf::config(json, shape)?;
        let keys = serde_json::from_slice::<Value>(json).ok().and_then(|v| Some(v.as_object()?.len()));
        let raw = file(gguf::METADATA_BYTES)?.unwrap_or_default();
        let metadata = Metadata::parse(&raw, keys.unwrap_or(0) as u64, &Limits::default())?;
        let (text, chat) = (gguf::text(&metadata), gguf::chat(&metadata)?);
        let ends = config.eos.clone();
        Ok(Self { config, text, chat, ends, gguf: true })
    }

    /// The architecture.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `BadModel` when there is none or it is damaged, `Unsupported` for one that is not known here.
    pub fn text(&self) -> Result<&Text> {
        self.text.as_ref().map_err(|e| Error::new(e.kind(), e.to_string()))
    }

    /// The chat template.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// `weights` by the names that a model asks for.
    pub fn weights<'w>(&self, weights: impl Weights + 'w) -> Box<dyn Weights + 'w> {
        match self.gguf {
            true => Box::new(GgufNames::new(weights, &self.config)),
            false => Box::new(weights),
        }
    }
}

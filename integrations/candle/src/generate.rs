//! Text from a model, token by token.

use crate::error::{Error, Result};
use crate::llama::{Cache, Llama};
use crate::sample::Sampler;
use crate::text::Text;

/// Tokens of a prompt that go through the model at once.
const PROMPT_TOKENS: usize = 256;

/// A model in the middle of a text.
pub struct Generator<'g, 'w> {
    model: &'g Llama<'w>,
    cache: Cache,
    /// The tokens that `cache` holds.
    seen: Vec<u32>,
    logits: Vec<f32>,
}

impl<'g, 'w> Generator<'g, 'w> {
    /// A model before any text.
    pub fn new(model: &'g Llama<'w>) -> Self {
        Self { cache: Cache::new(model.config()), model, seen: Vec::new(), logits: Vec::new() }
    }

    /// Reads a text from its first token on. What it has in common with the text so far is not read
    /// again.
    ///
    /// # Errors
    /// `BadArgument` for no tokens, unknown ones or more than the model has positions; what the model
    /// gives.
    pub fn read(&mut self, ids: &[u32]) -> Result<()> {
        let limit = self.model.config().max_positions;
        if ids.is_empty() || ids.len() > limit {
            return Err(Error::argument(format!(
                "prompt: expected 1 to {limit} tokens, found {}",
                ids.len()
            )));
        }
        // A pass that failed may have left something in the cache.
        let is_whole = self.cache.positions() == self.seen.len();
        if !is_whole || !ids.starts_with(&self.seen) || ids.len() == self.seen.len() {
            (self.cache, self.seen) = (Cache::new(self.model.config()), Vec::new());
        }
        for part in ids.get(self.seen.len()..).unwrap_or(&[]).chunks(PROMPT_TOKENS) {
            match self.seen.len() + part.len() < ids.len() {
                true => drop(self.model.hidden(part, &mut self.cache)?),
                false => self.logits = self.model.next(part, &mut self.cache)?,
            }
            self.seen.extend_from_slice(part);
        }
        Ok(())
    }

    /// Chooses the next token and reads it.
    ///
    /// # Errors
    /// `BadArgument` at the last position that the model has; what the model gives.
    pub fn next(&mut self, sampler: &mut Sampler) -> Result<u32> {
        let id = self.choose(sampler)?;
        self.accept(id)?;
        Ok(id)
    }

    /// Chooses the next token.
    ///
    /// # Errors
    /// `BadModel` for logits that are not finite.
    pub fn choose(&self, sampler: &mut Sampler) -> Result<u32> {
        sampler.next(&self.logits)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// `BadArgument` at the last position that the model has; what the model gives.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        let limit = self.model.config().max_positions;
        if self.seen.len() >= limit {
            return Err(Error::argument(format!("the model has {limit} positions")));
        }
        self.logits = self.model.next(&[id], &mut self.cache)?;
        self.seen.push(id);
        Ok(())
    }

    /// Logits of the next token.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }
}

/// Tokens as text while they come: characters appear when they are whole.
pub struct Stream<'t> {
    text: &'t Text,
    ids: Vec<u32>,
    /// Tokens whose text has been given, but for `context` of them, which are decoded again with what
    /// follows: a token's text can depend on the one before it.
    given: usize,
    context: usize,
}

impl<'t> Stream<'t> {
    /// A stream before any token.
    pub fn new(text: &'t Text) -> Self {
        Self { text, ids: Vec::new(), given: 0, context: 0 }
    }

    /// The text that has become whole with `id`.
    ///
    /// # Errors
    /// `BadModel` when the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let before = self.text.decode(self.ids.get(self.context..self.given).unwrap_or(&[]))?;
        let now = self.text.decode(self.ids.get(self.context..).unwrap_or(&[]))?;
        match now.strip_prefix(&before) {
            Some(new) if !new.ends_with('\u{FFFD}') => {
                (self.context, self.given) = (self.given, self.ids.len());
                Ok(new.to_owned())
            }
            _ => Ok(String::new()),
        }
    }
}

//! Text to tokens and back.

use crate::error::{Error, Result};
use std::path::Path;
use tokenizers::Tokenizer;

/// A tokenizer.
pub struct Text(Tokenizer);

/// A text file as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids.
    pub ids: Vec<u32>,
    /// Where each ends in the text, in bytes.
    pub ends: Vec<usize>,
}

impl Text {
    /// Parses a `tokenizer.json`.
    ///
    /// # Errors
    /// `BadModel` when it is none.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let tokenizer =
            Tokenizer::from_bytes(json).map_err(|e| Error::model(format!("tokenizer.json: {e}")))?;
        Ok(Self(tokenizer))
    }

    /// The tokens of `text`, without special tokens around it; special tokens in the text are taken
    /// as such.
    ///
    /// # Errors
    /// `BadModel` when the tokenizer fails on it.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let encoding =
            self.0.encode(text, false).map_err(|e| Error::model(format!("tokenizer.json: {e}")))?;
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end).collect();
        Ok(Tokens { ids: encoding.get_ids().to_vec(), ends })
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// `BadModel` when the tokenizer fails on them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids, true).map_err(|e| Error::model(format!("tokenizer.json: {e}")))
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }
}

/// The first `tokens` tokens of a text file in windows of `context`, each scored on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    tokens: Tokens,
    context: usize,
}

impl Windows {
    /// Reads and tokenizes the text at `path`; whole windows alone are kept.
    ///
    /// # Errors
    /// `Io`; `BadArgument` for fewer tokens than one window, or a context below 2.
    pub fn read(path: &Path, text: &Text, tokens: usize, context: usize) -> Result<Self> {
        let content = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        // A token is hardly ever longer than 12 bytes on average; only as much as is needed.
        let enough = tokens.saturating_mul(12);
        let cut = content.get(enough..).and_then(|rest| rest.find('\n')).map(|end| enough + end + 1);
        let content = content.get(..cut.unwrap_or(content.len())).unwrap_or(&content);
        Self::new(text.encode(content)?, tokens, context)
            .map_err(|e| Error::argument(format!("{}: {e}", path.display())))
    }

    /// Whole windows of the first `limit` tokens.
    ///
    /// # Errors
    /// `BadArgument` for fewer tokens than one window, or a context below 2.
    pub fn new(mut tokens: Tokens, limit: usize, context: usize) -> Result<Self> {
        let windows = tokens.ids.len().min(limit) / context.max(1);
        if windows == 0 || context < 2 {
            let found = tokens.ids.len().min(limit);
            return Err(Error::argument(format!("{found} tokens make no window of {context}")));
        }
        tokens.ids.truncate(windows * context);
        tokens.ends.truncate(windows * context);
        Ok(Self { tokens, context })
    }

    /// Tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The windows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.ids.chunks_exact(self.context.max(1))
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> usize {
        self.tokens.ids.len()
    }

    /// Bytes of the text that the last tokens of each window make, from position `first` on.
    pub fn bytes_from(&self, first: usize) -> u64 {
        let ends = self.tokens.ends.chunks_exact(self.context.max(1));
        let bytes = ends.map(|ends| {
            let start = first.checked_sub(1).and_then(|before| ends.get(before)).copied();
            ends.last().copied().unwrap_or(0).saturating_sub(start.unwrap_or(0)) as u64
        });
        bytes.sum()
    }
}

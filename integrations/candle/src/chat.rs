//! Chat templates (Jinja) of `tokenizer_config.json` or `chat_template.jinja`.

use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Deserialize;

/// Steps that a template may take: a hostile one ends.
const FUEL: u64 = 10_000_000;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// How a conversation becomes a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    template: Option<String>,
    bos: String,
    eos: String,
}

fn failed(error: minijinja::Error) -> Error {
    Error::model(format!("chat template: {error}"))
}

#[derive(Deserialize)]
struct Raw {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Token::Text(text) | Token::Object { content: text } => text,
        }
    }
}

impl Chat {
    /// Parses `tokenizer_config.json`; the template of `chat_template.jinja` comes before its own.
    ///
    /// # Errors
    /// `BadModel` for a file that is no configuration.
    pub fn parse(config: &[u8], jinja: Option<&[u8]>) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(config)
            .map_err(|e| Error::model(format!("tokenizer_config.json: {e}")))?;
        let own = raw.chat_template.and_then(|templates| match templates {
            Templates::One(template) => Some(template),
            Templates::Named(all) => all.into_iter().find(|t| t.name == "default").map(|t| t.template),
        });
        let jinja = jinja.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let token = |token: Option<Token>| token.map(Token::into_text).unwrap_or_default();
        Ok(Self { template: jinja.or(own), bos: token(raw.bos_token), eos: token(raw.eos_token) })
    }

    /// The token that ends a text; empty when none is stated.
    pub fn eos(&self) -> &str {
        &self.eos
    }

    /// Whether there is a template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt for the assistant's next message. Without a template, the last message as it is.
    ///
    /// # Errors
    /// `BadModel` for a template that does not render, or that refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        let Some(template) = &self.template else {
            return Ok(messages.last().map(|message| message.content.clone()).unwrap_or_default());
        };
        let mut environment = Environment::new();
        // As transformers renders them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        let list =
            messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() });
        let list: Vec<Value> = list.collect();
        let rendered = environment.render_str(
            template,
            context! {
                messages => list, add_generation_prompt => true, bos_token => self.bos.as_str(), eos_token => self.eos.as_str()
            },
        );
        rendered.map_err(failed)
    }
}

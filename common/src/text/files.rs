//! The text files of a model directory: tokenizer, template and special tokens.

use super::TextError;
use crate::input_file::{self, LFS_POINTER};
use serde_json::Value;
use std::path::Path;

/// The files that [`ModelText::read`] reads, if they exist.
pub const TEXT_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Maximum size of tokenizer.json. The largest ones of known models have about 35 MB.
const TOKENIZER_LIMIT: u64 = 256 << 20;
/// Maximum size of each other file, whose JSON values take about fifty times as much memory.
const SIZE_LIMIT: u64 = 16 << 20;

/// Tokens added to a tokenizer after its training, by older versions of transformers.
const ADDED_TOKENS: &str = "added_tokens.json";

/// The text files of a Hugging Face model directory, read but not interpreted.
#[derive(Clone, Debug, Default)]
pub struct ModelText {
    /// Name of the directory, for messages.
    pub name: String,
    /// tokenizer.json
    pub tokenizer: Vec<u8>,
    /// tokenizer_config.json, config.json, generation_config.json and special_tokens_map.json; null if
    /// absent.
    pub tokenizer_config: Value,
    pub config: Value,
    pub generation_config: Value,
    pub special_tokens_map: Value,
    /// chat_template.jinja
    pub chat_template: Option<String>,
}

impl ModelText {
    pub fn read(dir: &Path) -> Result<Self, TextError> {
        let [tokenizer, tokenizer_config, config, generation_config, special_tokens_map, chat_template] =
            TEXT_FILES;
        let limit = |file: &str| if file == TEXT_FILES[0] { TOKENIZER_LIMIT } else { SIZE_LIMIT };
        let optional = |file: &str| match input_file::read(&dir.join(file), limit(file)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(TextError::File { file: dir.join(file).display().to_string(), what: error.to_string() })
            }
        };
        let json = |file: &str| match optional(file)? {
            None => Ok(Value::Null),
            Some(bytes) => input_file::json(&bytes).map_err(|error| TextError::File {
                file: dir.join(file).display().to_string(),
                what: format!("not JSON: {error}"),
            }),
        };
        let Some(tokenizer) = optional(tokenizer)? else {
            return Err(TextError::File {
                file: dir.join(tokenizer).display().to_string(),
                what: "is missing; a model directory needs the tokenizer in this form (save_pretrained of a fast tokenizer writes it)"
                    .to_owned(),
            });
        };
        let text = ModelText {
            name: dir.display().to_string(),
            tokenizer,
            tokenizer_config: json(tokenizer_config)?,
            config: json(config)?,
            generation_config: json(generation_config)?,
            special_tokens_map: json(special_tokens_map)?,
            chat_template: optional(chat_template)?
                .map(|bytes| {
                    if input_file::is_lfs_pointer(&bytes) {
                        let file = dir.join(chat_template).display().to_string();
                        return Err(TextError::File { file, what: format!("it is {LFS_POINTER}") });
                    }
                    String::from_utf8(bytes).map_err(|error| TextError::File {
                        file: dir.join(chat_template).display().to_string(),
                        what: format!("not UTF-8: {error}"),
                    })
                })
                .transpose()?,
        };
        match optional(ADDED_TOKENS)? {
            Some(bytes) if !text.describes_tokens() => text.require_added_tokens(&bytes)?,
            _ => {}
        }
        Ok(text)
    }

    pub(super) fn file(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    /// A special token's text, for example of `eos_token`.
    pub fn token(&self, name: &str) -> Option<&str> {
        self.named_tokens().into_iter().find_map(|map| {
            let value = map.get(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str())
        })
    }

    /// The files that name special tokens, by precedence: as in transformers, special_tokens_map.json is
    /// first, unless tokenizer_config.json has the newer form that describes all tokens.
    pub(super) fn named_tokens(&self) -> [&Value; 2] {
        match self.describes_tokens() {
            true => [&self.tokenizer_config, &self.special_tokens_map],
            false => [&self.special_tokens_map, &self.tokenizer_config],
        }
    }

    /// Whether tokenizer_config.json describes the added tokens, so that older files are ignored.
    pub(super) fn describes_tokens(&self) -> bool {
        self.tokenizer_config.get("added_tokens_decoder").is_some()
    }

    /// Refuses tokens that only added_tokens.json names: versions of transformers add them in different ways.
    fn require_added_tokens(&self, bytes: &[u8]) -> Result<(), TextError> {
        let fail = |what: String| TextError::File { file: self.file(ADDED_TOKENS), what };
        let added: Value = input_file::json(bytes).map_err(|error| fail(format!("not JSON: {error}")))?;
        let tokenizer: Value = input_file::json(&self.tokenizer).unwrap_or_default();
        let is_known = |token: &str| {
            tokenizer["model"]["vocab"].get(token).is_some()
                || tokenizer["added_tokens"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|known| known["content"] == token)
        };
        let unknown =
            added.as_object().into_iter().flatten().map(|(token, _)| token).find(|token| !is_known(token));
        match unknown {
            None => Ok(()),
            Some(token) => Err(fail(format!(
                "names the token {token:?}, which tokenizer.json does not have; load the tokenizer with transformers and \
                 save it again, which writes all tokens into tokenizer.json"
            ))),
        }
    }

    /// The ids under `name` (a number or a list of them) in config.json, then in generation_config.json.
    pub(super) fn ids(&self, name: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for map in [&self.config, &self.generation_config] {
            let values = match map.get(name) {
                Some(Value::Array(list)) => list.as_slice(),
                Some(value) => std::slice::from_ref(value),
                None => &[],
            };
            for id in values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        ids
    }

    /// The model's own chat template; if there are several, the one named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        if let Some(template) = &self.chat_template {
            return Some(template);
        }
        match self.tokenizer_config.get("chat_template")? {
            Value::String(template) => Some(template),
            Value::Array(list) => list
                .iter()
                .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
                .and_then(|entry| entry.get("template")?.as_str()),
            Value::Object(named) => named.get("default")?.as_str(),
            _ => None,
        }
    }

    /// The file of the model's own chat template, for messages.
    pub(super) fn chat_template_file(&self) -> String {
        self.file(if self.chat_template.is_some() { "chat_template.jinja" } else { "tokenizer_config.json" })
    }

    /// The names of the model's chat templates, if it has several but no default.
    pub(super) fn templates_without_default(&self) -> Option<Vec<&str>> {
        if self.chat_template().is_some() {
            return None;
        }
        let names: Vec<&str> = match self.tokenizer_config.get("chat_template")? {
            Value::Array(list) => list.iter().filter_map(|entry| entry.get("name")?.as_str()).collect(),
            Value::Object(named) => named.keys().map(String::as_str).collect(),
            _ => return None,
        };
        Some(names)
    }
}

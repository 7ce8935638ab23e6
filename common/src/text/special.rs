//! The special tokens that begin, end and pad a sequence.

use super::{ModelText, TextError};
use crate::spec::{Bos, Template, Text};
use serde_json::Value;
use std::collections::BTreeMap;
use tokenizers::Tokenizer;

/// The ids that begin, end and pad the sequences a model was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIds {
    pub bos: Option<u32>,
    /// All tokens that end a completion; responses were trained to end with the first.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct Special {
    pub(super) bos: Option<u32>,
    /// The token appended to finished responses.
    pub(super) eos: u32,
    /// All tokens that end a completion; `eos` is the first.
    pub(super) eos_ids: Vec<u32>,
    pub(super) pad: Result<u32, TextError>,
    /// All special tokens by id.
    pub(super) names: BTreeMap<u32, String>,
}

impl Special {
    pub(super) fn find(files: &ModelText, text: &Text, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let bos =
            named(files, tokenizer, "bos_token")?.or_else(|| files.ids("bos_token_id").first().copied());
        let eos_ids = eos_ids(files, text, tokenizer)?;
        let mut names: BTreeMap<u32, String> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        for id in eos_ids.iter().copied().chain(bos) {
            let name = tokenizer.id_to_token(id).ok_or_else(|| unknown_id(files, id))?;
            names.insert(id, name);
        }
        let pad = pad(files, text, tokenizer, bos, &eos_ids, &names);
        Ok(Special { bos, eos: eos_ids[0], eos_ids, pad, names })
    }

    /// The first special token that occurs in a text, and its position.
    pub(super) fn written_in<'a>(&'a self, text: &str) -> Option<(&'a str, usize)> {
        let places = self.names.values().filter(|name| !name.is_empty());
        places.filter_map(|name| Some((name.as_str(), text.find(name.as_str())?))).min_by_key(|(_, at)| *at)
    }

    /// The values of `bos_token` and the like in templates: the tokenizer's own, or the job's if it names
    /// one.
    pub(super) fn template_variables(&self, files: &ModelText, text: &Text) -> Vec<(&'static str, String)> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        NAMES
            .into_iter()
            .filter_map(|name| {
                let own = files.token(name).map(str::to_owned);
                let value = match name {
                    "eos_token" => Some(self.name(Some(self.eos)).to_owned()),
                    // Without a tokenizer config, config.json names the token.
                    "bos_token" if files.tokenizer_config.is_null() && own.is_none() => {
                        self.bos.map(|id| self.name(Some(id)).to_owned())
                    }
                    "pad_token" => text.pad_token.clone().or(own),
                    _ => own,
                };
                Some((name, value?))
            })
            .collect()
    }

    pub(super) fn name(&self, id: Option<u32>) -> &str {
        id.and_then(|id| self.names.get(&id)).map_or("", String::as_str)
    }
}

/// The error of a setting that names no token.
fn setting(field: &'static str, what: String, advice: &'static str) -> TextError {
    TextError::Setting { field, what, advice }
}

fn unknown_id(files: &ModelText, id: u32) -> TextError {
    let names_it = |map: &Value| {
        ["bos_token_id", "eos_token_id"].iter().any(|name| match map.get(name) {
            Some(Value::Array(list)) => list.contains(&Value::from(id)),
            value => value == Some(&Value::from(id)),
        })
    };
    let file = if names_it(&files.config) { "config.json" } else { "generation_config.json" };
    TextError::File {
        file: files.file(file),
        what: format!(
            "names the token id {id}, which the tokenizer does not have; the two files do not belong together"
        ),
    }
}

/// The id of the special token that the tokenizer's config gives under `name`.
fn named(files: &ModelText, tokenizer: &Tokenizer, name: &str) -> Result<Option<u32>, TextError> {
    let Some(token) = files.token(name) else {
        return Ok(None);
    };
    tokenizer.token_to_id(token).map(Some).ok_or_else(|| TextError::File {
        file: files.file("tokenizer_config.json"),
        what: format!(
            "{name} is {token:?}, which is not in tokenizer.json; the two files do not belong together"
        ),
    })
}

/// A job's own token, then the tokenizer's eos_token, then config.json's. If the last two differ, config.json
/// wins: it says what the weights were trained with.
fn eos_ids(files: &ModelText, text: &Text, tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
    let of_model = files.ids("eos_token_id");
    let of_tokenizer = named(files, tokenizer, "eos_token")?;
    let first = match &text.eos_token {
        Some(token) => Some(tokenizer.token_to_id(token).ok_or_else(|| {
            setting(
                "text.eos_token",
                format!("{token:?} is not a token of the model"),
                "name one of its tokens",
            )
        })?),
        None => of_tokenizer
            .filter(|id| of_model.is_empty() || of_model.contains(id))
            .or_else(|| of_model.first().copied()),
    };
    let Some(first) = first else {
        return Err(setting(
            "text.eos_token",
            "neither tokenizer_config.json nor config.json names a token that ends a response".to_owned(),
            "set text.eos_token to one of the model's tokens",
        ));
    };
    let mut ids = vec![first];
    ids.extend(of_model.into_iter().filter(|id| *id != first));
    Ok(ids)
}

/// The pad token. transformers uses it to find the last token of a row, so it must not be EOS or BOS or occur
/// in texts.
fn pad(
    files: &ModelText,
    text: &Text,
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    eos_ids: &[u32],
    names: &BTreeMap<u32, String>,
) -> Result<u32, TextError> {
    let fault = |id: u32, token: &str| {
        if eos_ids.contains(&id) {
            Some("ends responses (EOS)")
        } else if bos == Some(id) {
            Some("begins sequences (BOS)")
        } else if is_written(tokenizer, id, token) {
            Some("is an ordinary token, which texts yield")
        } else if files.token("unk_token") == Some(token) && !never_unknown(files) {
            Some("stands for what the tokenizer cannot spell, which texts may hold")
        } else {
            None
        }
    };
    if let Some(token) = &text.pad_token {
        let advice = "name a token that no text yields";
        let Some(id) = tokenizer.token_to_id(token) else {
            return Err(setting("text.pad_token", format!("{token:?} is not a token of the model"), advice));
        };
        return match fault(id, token) {
            Some(fault) => Err(setting("text.pad_token", format!("{token:?} {fault}"), advice)),
            None => Ok(id),
        };
    }
    let template = match &text.template {
        Template::Jinja(source) => source.as_str(),
        _ => files.chat_template().unwrap_or_default(),
    };
    let taken = |id: &u32| eos_ids.contains(id) || bos == Some(*id);
    let own = [named(files, tokenizer, "pad_token")?, files.ids("pad_token_id").first().copied()];
    let is_fit = |id: &u32| tokenizer.id_to_token(*id).is_some_and(|token| fault(*id, &token).is_none());
    if let Some(id) = own.into_iter().flatten().find(is_fit) {
        return Ok(id);
    }
    let unused = |id: &u32, name: &str| {
        !taken(id) && !template.contains(name) && files.token("unk_token") != Some(name)
    };
    let spare = ["pad", "reserved", "unused", "extra"].into_iter().find_map(|word| {
        names.iter().find(|(id, name)| name.to_lowercase().contains(word) && unused(id, name))
    });
    if let Some((id, _)) = spare {
        return Ok(*id);
    }
    let unknown = files.token("unk_token").unwrap_or("<unk>");
    if let Some(id) = tokenizer.token_to_id(unknown).filter(|id| !taken(id) && never_unknown(files)) {
        return Ok(id);
    }
    names.iter().find(|(id, name)| unused(id, name)).map(|(id, _)| *id).ok_or_else(|| {
        setting(
            "text.pad_token",
            "the model has no pad token but EOS or BOS, and no spare special token".to_owned(),
            "name a token that no text yields: a reward model is read at the last token that is not padding",
        )
    })
}

/// Whether encoding the text of a token yields that token.
fn is_written(tokenizer: &Tokenizer, id: u32, token: &str) -> bool {
    !tokenizer.get_added_tokens_decoder().contains_key(&id)
        && tokenizer.encode_fast(token, false).is_ok_and(|encoding| encoding.get_ids().contains(&id))
}

/// Whether the tokenizer falls back to bytes, so that the unknown token never occurs.
fn never_unknown(files: &ModelText) -> bool {
    let tokenizer: Value = serde_json::from_slice(&files.tokenizer).unwrap_or_default();
    let bytes = tokenizer["model"]["byte_fallback"].as_bool() == Some(true);
    bytes || tokenizer["pre_tokenizer"].to_string().contains("\"ByteLevel\"")
}

/// Whether a sequence that no chat template writes starts with BOS.
pub(super) fn starts_with_bos(
    files: &ModelText,
    bos: Bos,
    special: &Special,
    tokenizer: &Tokenizer,
) -> Result<bool, TextError> {
    match bos {
        Bos::Never => Ok(false),
        Bos::Always if special.bos.is_none() => Err(setting(
            "text.bos",
            "always, but the model names no BOS token".to_owned(),
            "set text.bos: never, or give bos_token in tokenizer_config.json",
        )),
        Bos::Always => Ok(true),
        Bos::Auto => Ok(special.bos.is_some_and(|id| configured_bos(files, id, tokenizer))),
    }
}

/// Whether the tokenizer's config adds BOS: by add_bos_token, else by its post-processor. Without a config,
/// the BOS of config.json counts.
fn configured_bos(files: &ModelText, bos: u32, tokenizer: &Tokenizer) -> bool {
    if let Some(add) = files.tokenizer_config.get("add_bos_token").and_then(Value::as_bool) {
        return add;
    }
    // Naming one of the two settings sets both, and disables the post-processor.
    if files.tokenizer_config.get("add_eos_token").is_some_and(|add| !add.is_null()) {
        return false;
    }
    if tokenizer.get_post_processor().is_some() {
        return tokenizer
            .encode_fast("a", true)
            .is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos));
    }
    files.tokenizer_config.is_null()
}

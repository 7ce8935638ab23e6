//! Reads tokenizer.json as transformers does, including the tokens that only tokenizer_config.json names.

use super::{ModelText, TextError};
use crate::{contain, input_file};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use tokenizers::{AddedToken, Tokenizer};

/// Maximum growth of a text by a normalizer or a decoder. Those of known models replace a space with a
/// character of three bytes, a few times over.
const MAX_GROWTH: u64 = 1000;

/// The parts of a tokenizer that change texts; the vocabulary is not parsed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parts {
    normalizer: Value,
    decoder: Value,
    pre_tokenizer: Value,
}

pub(super) fn read(files: &ModelText) -> Result<Tokenizer, TextError> {
    let name = files.file("tokenizer.json");
    let fail = |what: String| TextError::File { file: name.clone(), what };
    let parts: Parts =
        input_file::json(&files.tokenizer).map_err(|error| fail(format!("unreadable: {error}")))?;
    for (part, settings) in [
        ("normalizer", &parts.normalizer),
        ("decoder", &parts.decoder),
        ("pre_tokenizer", &parts.pre_tokenizer),
    ] {
        let growth = growth(settings);
        if growth > MAX_GROWTH {
            return Err(fail(format!(
                "its {part} may make a text {growth} times longer; at most {MAX_GROWTH} times is read"
            )));
        }
    }
    let mut tokenizer = guarded(&name, || Tokenizer::from_bytes(&files.tokenizer))?
        .map_err(|error| fail(format!("unreadable: {error}")))?;
    tokenizer.with_truncation(None).map_err(|error| fail(error.to_string()))?;
    tokenizer.with_padding(None);
    guarded(&name, || add_tokens(files, &mut tokenizer))??;
    // A tokenizer that fails on every text is reported here rather than for a row.
    guarded(&name, || {
        let ids = tokenizer.encode_fast("a bé", false).map(|encoding| encoding.get_ids().to_vec());
        ids.map(|ids| tokenizer.decode(&ids, false).is_ok()).is_ok()
    })?;
    Ok(tokenizer)
}

/// Calls the tokenizers library, which panics on some files.
pub(super) fn guarded<T>(name: &str, run: impl FnOnce() -> T) -> Result<T, TextError> {
    contain::panics(run).map_err(|message| TextError::File {
        file: name.to_owned(),
        what: format!("is malformed, the tokenizers library fails on it: {message}"),
    })
}

/// Maximum growth of one byte by replacements.
fn growth(part: &Value) -> u64 {
    let length = |value: &Value| value.as_str().map_or(0, |text| text.len() as u64);
    match part {
        Value::Array(parts) => parts.iter().map(growth).fold(1, u64::saturating_mul),
        Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
            Some("Replace") => {
                let pattern = fields.get("pattern").and_then(|pattern| pattern.get("String"));
                let content = fields.get("content").map_or(0, length);
                match pattern.map_or(0, length) {
                    // A regular expression may match at every place.
                    0 => 1 + content,
                    matched => content.div_ceil(matched).max(1),
                }
            }
            Some("Prepend") => 1 + fields.get("prepend").map_or(0, length) / 8,
            _ => fields.values().map(growth).fold(1, u64::saturating_mul),
        },
        _ => 1,
    }
}

/// Adds the tokens of tokenizer_config.json: added tokens in the order of their ids, then special tokens not
/// added yet.
fn add_tokens(files: &ModelText, tokenizer: &mut Tokenizer) -> Result<(), TextError> {
    let config = &files.tokenizer_config;
    let fail = |what: String| TextError::File { file: files.file("tokenizer_config.json"), what };
    let mut named: BTreeMap<u32, AddedToken> = BTreeMap::new();
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let parsed = id.parse().ok().zip(added_token(token));
        let (id, token) =
            parsed.ok_or_else(|| fail(format!("added_tokens_decoder has no token at {id:?}")))?;
        named.insert(id, token);
    }
    let known = tokenizer.get_added_tokens_decoder();
    for (id, token) in named {
        if known.get(&id).is_some_and(|known| same(known, &token)) {
            continue;
        }
        let content = token.content.clone();
        add(tokenizer, token);
        let got = tokenizer.token_to_id(&content);
        if got != Some(id) {
            return Err(fail(format!(
                "added_tokens_decoder puts {content:?} at id {id}, but tokenizer.json gives it {}; the two files do not belong together",
                got.map_or("none".to_owned(), |got| got.to_string())
            )));
        }
    }
    let mut known: HashSet<String> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    for token in special_tokens(files) {
        // A token that is not in the vocabulary is reported when it is used.
        if tokenizer.token_to_id(&token.content).is_some() && known.insert(token.content.clone()) {
            add(tokenizer, token);
        }
    }
    for token in extra_tokens(files) {
        if known.insert(token.content.clone()) {
            add(tokenizer, token);
        }
    }
    Ok(())
}

fn add(tokenizer: &mut Tokenizer, token: AddedToken) {
    let _ = if token.special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) };
}

/// Equality of all settings; the library compares only the content.
fn same(one: &AddedToken, other: &AddedToken) -> bool {
    let flags =
        |token: &AddedToken| (token.single_word, token.lstrip, token.rstrip, token.normalized, token.special);
    one.content == other.content && flags(one) == flags(other)
}

/// A token: an object, or a text, which means a special token.
fn added_token(value: &Value) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, true));
    }
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(
        AddedToken::from(value.get("content")?.as_str()?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

fn special_tokens(files: &ModelText) -> impl Iterator<Item = AddedToken> {
    // Not the pad token: whether it is suitable depends on whether texts contain it.
    const NAMES: [&str; 6] = ["bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"];
    NAMES.into_iter().filter_map(|name| {
        let found =
            files.named_tokens().into_iter().find_map(|map| map.get(name).filter(|value| !value.is_null()));
        added_token(found?).map(|token| AddedToken { special: true, ..token })
    })
}

/// Special tokens of this model only, under other names or in lists.
fn extra_tokens(files: &ModelText) -> impl Iterator<Item = AddedToken> {
    const STANDARD: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let older = if files.describes_tokens() { &Value::Null } else { &files.special_tokens_map };
    let mut tokens: Vec<&Value> = Vec::new();
    for map in [&files.tokenizer_config, older] {
        let named = map.as_object().into_iter().flatten();
        let named = named.filter(|(name, _)| name.ends_with("_token") && !STANDARD.contains(&name.as_str()));
        tokens.extend(named.map(|(_, token)| token).filter(|token| token.is_string()));
        // If both notations are given, the newer one applies.
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        match lists.into_iter().find_map(|name| map.get(name).filter(|list| !list.is_null())) {
            Some(Value::Array(list)) => tokens.extend(list),
            Some(Value::Object(named)) => tokens.extend(named.values()),
            _ => {}
        }
    }
    let special = |token: AddedToken| AddedToken { special: true, ..token };
    tokens.into_iter().filter_map(added_token).map(special).collect::<Vec<_>>().into_iter()
}

/// Tokens and their text to put before others when decoding, if decoding drops the first space of a text.
pub(super) fn anchor(tokenizer: &Tokenizer) -> Option<(Vec<u32>, String)> {
    let encode = |text: &str| {
        let encoding = guarded("", || tokenizer.encode_fast(text, false)).ok()?.ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let decode = |ids: &[u32]| guarded("", || tokenizer.decode(ids, false)).ok()?.ok();
    ["a", "x", "the"].into_iter().find_map(|word| {
        let (alone, twice) = (encode(word)?, format!("{word} {word}"));
        let ids = encode(&twice)?;
        let rest = ids.strip_prefix(&alone[..])?;
        // The token itself has the space; a decoder that joins words by spaces does not lose one.
        let spaced = tokenizer.id_to_token(*rest.first()?)?.starts_with(['\u{2581}', ' ', '\u{120}']);
        let whole = spaced && decode(&ids)? == twice && decode(&alone)? == word;
        (whole && !decode(rest)?.starts_with(' ')).then(|| (alone, word.to_owned()))
    })
}

/// BLAKE3 of everything that encoding and decoding depend on, in hex.
pub(super) fn fingerprint(tokenizer: &Tokenizer) -> String {
    let text = tokenizer.to_string(false).unwrap_or_default();
    let mut content: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(content) = content.as_object_mut() {
        // Not used: the encoder adds BOS and EOS.
        content.remove("version");
        content.remove("post_processor");
    }
    blake3::hash(content.to_string().as_bytes()).to_hex().to_string()
}

//! The text files of a trained model: the template and special tokens of its training, where transformers and
//! others look for them.

use super::encoder::BosPolicy;
use super::{Encoder, ModelText, TextError, TokenIds};
use crate::data::rows::Prompt;
use crate::spec::{Template, Text};
use serde_json::{Map, Value, json};
use std::path::Path;

/// [`Template::Hh`] in Jinja. The response that ends a dialogue is followed by EOS, as in training.
const HH: &str = "{% for message in messages %}\
    {% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}\
    {% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] }}\
    {% if loop.last %}{{ eos_token }}{% endif %}\
    {% else %}{{ message['content'] }}{% endif %}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}";

/// [`Template::Plain`] in Jinja: an empty line between turns, none before the response.
const PLAIN: &str = "{% for message in messages %}\
    {% set is_answer = loop.last and message['role'] == 'assistant' %}\
    {% if not (loop.first or is_answer) %}{{ '\\n\\n' }}{% endif %}\
    {{ message['content'] }}\
    {% if is_answer %}{{ eos_token }}{% endif %}\
    {% endfor %}";

/// Replaces the start model's template file if no template renders the tokens that were trained on.
const UNRENDERED: &str = "{{ raise_exception('no chat template renders the tokens that this model was trained on: \
    its tokenizer reads the start of a text differently after BOS') }}\n";

/// Larger integers are not exact for readers that parse them as floats. transformers writes such a
/// `model_max_length` for a tokenizer without a limit, and assumes it if the field is absent.
const LARGEST_EXACT: f64 = (1_u64 << 53) as f64;

/// The text files of a trained model.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedText {
    pub ids: TokenIds,
    /// Name and content of each file that may differ from the start model's.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl TrainedText {
    /// The files of a model that was trained with `encoder`, which was built from the start model's `files`
    /// and the job's `text`. Exporting an exported model changes nothing.
    ///
    /// # Errors
    /// The job's template cannot be rendered.
    pub fn of(encoder: &Encoder, files: &ModelText, text: &Text) -> Result<Self, TextError> {
        let ids = encoder.token_ids();
        let template = template(encoder, files, text)?;
        let config = tokenizer_config(encoder, files, text, &ids, template.as_deref());
        let mut written = vec![
            ("tokenizer_config.json", pretty(&config)),
            ("generation_config.json", pretty(&generation_config(files, &ids))),
        ];
        if let Value::Object(map) = &files.special_tokens_map {
            let mut map = map.clone();
            name_tokens(&mut map, encoder, &ids, BosPolicy::AsWritten);
            written.push(("special_tokens_map.json", pretty(&Value::Object(map))));
        }
        // The file has precedence over the tokenizer's config: if there is one, both have the same template.
        if files.chat_template.is_some() {
            let template = template.unwrap_or_else(|| UNRENDERED.to_owned());
            written.push(("chat_template.jinja", template.into_bytes()));
        }
        Ok(Self { ids, files: written })
    }

    /// Writes the files into `dir`.
    ///
    /// # Errors
    /// The file that cannot be written, and why.
    pub fn write(&self, dir: &Path) -> Result<(), TextError> {
        for (name, content) in &self.files {
            let path = dir.join(name);
            std::fs::write(&path, content).map_err(|error| TextError::File {
                file: path.display().to_string(),
                what: error.to_string(),
            })?;
        }
        Ok(())
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The chat template that renders the tokens that were trained on: the job's or the model's own, with BOS
/// added or removed by the job's `text.bos`. `None` if no template gives the same tokens.
fn template(encoder: &Encoder, files: &ModelText, text: &Text) -> Result<Option<String>, TextError> {
    let policy = encoder.bos_policy();
    let source = match (&text.template, files.chat_template()) {
        (Template::Hh, _) | (Template::Auto, None) => return Ok(own_template(encoder, HH)),
        (Template::Plain, _) => return Ok(own_template(encoder, PLAIN)),
        (Template::Jinja(source), _) => source.as_str(),
        (Template::Auto | Template::Chat, source) => source.unwrap_or_default(),
    };
    let bos = encoder.token_name(encoder.bos_id());
    let starts = !bos.is_empty() && encoder.render(&Prompt::user("a"))?.starts_with(&bos);
    Ok(Some(match policy {
        BosPolicy::Put if !starts => format!("{{{{ bos_token }}}}{source}"),
        BosPolicy::Remove if starts => format!("{{% set bos_token = '' %}}\n{source}"),
        BosPolicy::Put | BosPolicy::Remove | BosPolicy::AsWritten => source.to_owned(),
    }))
}

/// One of Foil's own templates, with BOS before it if training put one there. Some tokenizers encode the
/// start of a text differently after BOS, so that no template gives the tokens that were trained on.
fn own_template(encoder: &Encoder, source: &str) -> Option<String> {
    if encoder.bos_policy() != BosPolicy::Put {
        return Some(source.to_owned());
    }
    let bos = encoder.token_name(encoder.bos_id());
    let same = ["\n\nHuman: a", "a"].into_iter().all(|text| {
        // A text that the tokenizer refuses is refused in both cases.
        let alone = encoder.encode(text).ok();
        let behind = encoder.encode(&format!("{bos}{text}")).ok();
        alone == behind.map(|ids| ids[1..].to_vec())
    });
    same.then(|| format!("{{{{ bos_token }}}}{source}"))
}

fn tokenizer_config(
    encoder: &Encoder,
    files: &ModelText,
    text: &Text,
    ids: &TokenIds,
    template: Option<&str>,
) -> Value {
    let mut config = files.tokenizer_config.as_object().cloned().unwrap_or_default();
    // The class that uses tokenizer.json unchanged, as training did. Other classes build a tokenizer from its
    // vocabulary (transformers 5: LlamaTokenizer and others, with other tokens for some texts), or run code
    // that is not exported.
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.remove("auto_map");
    name_tokens(&mut config, encoder, ids, encoder.bos_policy());
    match template {
        // A model's own list of templates stays as it is.
        Some(template) if files.chat_template.is_none() && files.chat_template() == Some(template) => {}
        Some(template) => drop(config.insert("chat_template".to_owned(), json!(template))),
        None => drop(config.remove("chat_template")),
    }
    match encoder.bos_policy() {
        BosPolicy::Put => drop(config.insert("add_bos_token".to_owned(), json!(true))),
        BosPolicy::Remove => drop(config.insert("add_bos_token".to_owned(), json!(false))),
        // Without the file, BOS would be put before any text that no template renders.
        BosPolicy::AsWritten if files.tokenizer_config.is_null() => {
            config.insert("add_bos_token".to_owned(), json!(ids.bos.is_some()));
        }
        BosPolicy::AsWritten => {}
    }
    config.insert("truncation_side".to_owned(), json!(text.truncation_side.to_string()));
    if config.get("model_max_length").and_then(Value::as_f64).is_some_and(|length| length > LARGEST_EXACT) {
        config.remove("model_max_length");
    }
    Value::Object(config)
}

/// Names the special tokens in a map. A BOS that the map lacks is added only if it is put before texts:
/// templates that use `bos_token` would write it.
fn name_tokens(map: &mut Map<String, Value>, encoder: &Encoder, ids: &TokenIds, policy: BosPolicy) {
    let names_bos = policy == BosPolicy::Put || map.get("bos_token").is_some_and(|bos| !bos.is_null());
    let bos = ids.bos.filter(|_| names_bos);
    for (field, id) in [("bos_token", bos), ("eos_token", ids.eos.first().copied()), ("pad_token", ids.pad)] {
        let Some(id) = id else { continue };
        let name = encoder.token_name(Some(id));
        let found =
            map.get(field).and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        // A full description of the token stays.
        if found != Some(name.as_str()) {
            map.insert(field.to_owned(), json!(name));
        }
    }
}

fn generation_config(files: &ModelText, ids: &TokenIds) -> Value {
    let mut config = files.generation_config.as_object().cloned().unwrap_or_default();
    let eos = match ids.eos.as_slice() {
        [one] => json!(one),
        several => json!(several),
    };
    for (field, id) in
        [("bos_token_id", json!(ids.bos)), ("eos_token_id", eos), ("pad_token_id", json!(ids.pad))]
    {
        match id {
            Value::Null => drop(config.remove(field)),
            id => drop(config.insert(field.to_owned(), id)),
        }
    }
    Value::Object(config)
}

//! Fuzz targets for files of a model directory.

use std::path::Path;

use foil_common::data::rows::{Message, Prompt, Role};
use foil_common::input_file;
use foil_common::model::{DecoderConfig, HeadKind, ModelFilesError, WeightFiles, header_length, shards};
use foil_common::spec::{Bos, SaveDtype, Side, Template, Text};
use foil_common::text::{Encoder, Limits, ModelText, Response};
use serde_json::{Value, json};

use super::Verdict;

const LETTERS: &[u8] = include_bytes!("../../../deploy/jobs/letters/tokenizer.json");
/// Maximum number of ids of a tokenizer with which the encoder is tried.
const MAX_IDS: u32 = 1 << 20;

/// A safetensors file, whose header must describe it to the byte.
pub(super) fn safetensors(input: &[u8]) -> Verdict {
    let path = Path::new("model.safetensors");
    let read = || -> Result<WeightFiles, ModelFilesError> {
        let length = header_length(path, input, input.len() as u64)?;
        let header = input.get(8..8 + usize::try_from(length).unwrap_or(usize::MAX));
        let mut files = WeightFiles::default();
        files.add(path.to_owned(), header.expect("a header lies within its file"), input.len() as u64)?;
        Ok(files)
    };
    let Ok(files) = read() else { return Verdict::Refused };
    for (name, entry) in files.iter() {
        let end = entry.start + entry.bytes;
        assert!(end <= input.len() as u64, "tensor {name} lies beyond the file");
        assert!(entry.shape.iter().all(|&size| size >= 0), "tensor {name} has a negative size");
    }
    if let Ok(config) = DecoderConfig::from_hf(&small_config()) {
        let _ = files.check(&config, HeadKind::LanguageModel);
        let _ = files.check(&config, HeadKind::Reward);
    }
    Verdict::Accepted
}

/// `model.safetensors.index.json`, which may only name files in its own directory.
pub(super) fn shard_index(input: &[u8]) -> Verdict {
    let read = shards(Path::new("model.safetensors.index.json"), input);
    for file in read.iter().flat_map(|map| map.values()) {
        assert!(
            !file.contains('/') && file != ".." && file != ".",
            "a shard outside of the directory: {file}"
        );
    }
    read.into()
}

/// `config.json`: an accepted one, written back, means the same model.
pub(super) fn config(input: &[u8]) -> Verdict {
    if input.len() as u64 > DecoderConfig::SIZE_LIMIT {
        return Verdict::Refused;
    }
    let Ok(value) = input_file::json::<Value>(input) else { return Verdict::Refused };
    let Ok(config) = DecoderConfig::from_hf(&value) else { return Verdict::Refused };
    let written = config.to_hf(HeadKind::LanguageModel, SaveDtype::default());
    let again = DecoderConfig::from_hf(&written);
    let again =
        again.unwrap_or_else(|error| panic!("a written config.json is refused: {error}\n{written:#}"));
    assert!(again == config, "a config.json changes as it is written\n{again:?}\n{config:?}");
    Verdict::Accepted
}

/// `tokenizer.json`. With a first byte of 1, 2 or 3, `tokenizer_config.json`, `config.json` or
/// `special_tokens_map.json` instead, next to a valid tokenizer.
pub(super) fn tokenizer(input: &[u8]) -> Verdict {
    let mut files = letters();
    let value = |bytes| input_file::json(bytes).unwrap_or(Value::Null);
    match input {
        [1, rest @ ..] => files.tokenizer_config = value(rest),
        [2, rest @ ..] => files.config = value(rest),
        [3, rest @ ..] => files.special_tokens_map = value(rest),
        whole => files.tokenizer = whole.to_vec(),
    }
    use_encoder(&files, Template::Hh)
}

/// A chat template, with the tokens and dialogues with which templates are rendered.
pub(super) fn chat_template(input: &[u8]) -> Verdict {
    let Ok(template) = std::str::from_utf8(input) else { return Verdict::Refused };
    use_encoder(&letters(), Template::Jinja(template.to_owned()))
}

fn letters() -> ModelText {
    ModelText {
        name: "model".to_owned(),
        tokenizer: LETTERS.to_vec(),
        tokenizer_config: json!({ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" }),
        config: json!({ "model_type": "llama", "bos_token_id": 1, "eos_token_id": 3 }),
        ..ModelText::default()
    }
}

fn small_config() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// Encodes and decodes dialogues. Limits must hold whatever the files contain.
fn use_encoder(files: &ModelText, template: Template) -> Verdict {
    let text = Text {
        template,
        max_length: 64,
        truncation_side: Side::Left,
        bos: Bos::Auto,
        eos_token: None,
        pad_token: None,
    };
    let Ok(encoder) = Encoder::new(files, &text) else { return Verdict::Refused };
    let limits = Limits::new(64, 16);
    for prompt in prompts() {
        if let Ok(encoded) = encoder.prompt(&prompt, limits.prompt) {
            assert!(encoded.ids.len() <= limits.prompt, "a prompt beyond its limit");
            let _ = encoder.decode(&encoded.ids);
        }
        let Ok(encoded) = encoder.dialogue(&prompt, Response::finished("abc"), limits) else { continue };
        assert!(encoded.ids.len() <= limits.total, "a dialogue beyond its limit");
        assert!(encoded.response_start <= encoded.ids.len(), "a response that starts beyond its end");
        let _ = encoder.response_text(encoded.response());
    }
    let mut stream = encoder.stream();
    for id in [0, 1, encoder.eos_id(), u32::MAX] {
        let _ = stream.push(id);
    }
    if encoder.vocabulary() <= MAX_IDS as usize {
        let _ = (encoder.warnings(), encoder.pad_id(), encoder.token_ids(), encoder.fingerprint().len());
    }
    Verdict::Accepted
}

fn prompts() -> [Prompt; 3] {
    let dialogue = vec![
        Message::new(Role::System, "be brief"),
        Message::new(Role::User, "cab {{ 1 }} </s>"),
        Message::new(Role::Assistant, "abc"),
        Message::new(Role::User, "\u{1f600}\u{0}"),
    ];
    [Prompt::user("abcde"), Prompt::user(""), Prompt { messages: dialogue }]
}

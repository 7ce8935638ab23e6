//! Mutations of a file's bytes, of its structure if it is JSON, and of its words.

use serde_json::{Map, Value, json};

/// Maximum size of mutated files.
const SIZE_LIMIT: usize = 4 << 20;

/// Mutates a file depending on its kind.
pub fn file(name: &str, bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let structural = random.u8(..) < 170;
    match name.rsplit('.').next() {
        Some("json") if structural => text(bytes, |text| json_text(text, random)),
        Some("jsonl") if structural => text(bytes, |text| json_line(text, random)),
        Some("yaml") if structural => text(bytes, |text| words(text, random, JOB_WORDS)),
        Some("jinja") if structural => text(bytes, |text| words(text, random, TEMPLATE_WORDS)),
        Some("safetensors") if structural => header(bytes, random),
        _ => raw(bytes, random),
    }
    bytes.truncate(SIZE_LIMIT);
}

/// Mutates text. Bytes that are not valid UTF-8 are mutated as bytes instead.
fn text(bytes: &mut Vec<u8>, change: impl FnOnce(&str) -> Option<String>) {
    if let Some(changed) = std::str::from_utf8(bytes).ok().and_then(change) {
        *bytes = changed.into_bytes();
    }
}

fn json_text(text: &str, random: &mut fastrand::Rng) -> Option<String> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    node(&mut value, random);
    Some(value.to_string())
}

fn json_line(text: &str, random: &mut fastrand::Rng) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let index = random.usize(..lines.len().max(1));
    let line = lines.get_mut(index)?;
    match random.u8(..8) {
        0 => line.insert(0, '\u{feff}'),
        1 => line.push('\r'),
        2 => *line = line.repeat(2),
        _ => *line = json_text(line, random)?,
    }
    Some(lines.join("\n"))
}

/// Mutates a length-prefixed JSON header.
fn header(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let Some(size) = bytes.first_chunk::<8>().map(|size| u64::from_le_bytes(*size) as usize) else { return };
    let Some(text) = bytes.get(8..size.saturating_add(8)).and_then(|text| std::str::from_utf8(text).ok())
    else {
        return;
    };
    let Some(changed) = json_text(text, random) else { return };
    let mut size = changed.len() as u64;
    if random.u8(..) < 16 {
        size = *random.choice(&[0, 1, u64::MAX, 1 << 62, 100 << 20]).unwrap_or(&0);
    }
    let data = bytes.split_off(8 + text.len());
    *bytes = [&size.to_le_bytes()[..], changed.as_bytes(), &data].concat();
}

/// Changes one value anywhere in `value`.
fn node(value: &mut Value, random: &mut fastrand::Rng) {
    let deeper = random.u8(..) < 200;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let index = random.usize(..fields.len());
            match random.u8(..10) {
                0 => rename(fields, index, random),
                1 => {
                    let name = fields.keys().nth(index).cloned().unwrap_or_default();
                    fields.remove(&name);
                }
                2 => {
                    fields.insert(pick(KEYS, random).to_owned(), strange(random));
                }
                _ => {
                    if let Some(field) = fields.values_mut().nth(index) {
                        node(field, random);
                    }
                }
            }
        }
        Value::Array(list) if deeper && !list.is_empty() => {
            let index = random.usize(..list.len());
            match random.u8(..8) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                2 => {
                    // Repeated repetitions would take all memory.
                    let room = SIZE_LIMIT / list[index].to_string().len().max(1);
                    list.resize(room.clamp(1, 10_000).max(list.len()), list[index].clone());
                }
                _ => node(&mut list[index], random),
            }
        }
        Value::Number(number) if deeper => {
            let near =
                number.as_f64().unwrap_or(0.0) * *random.choice(&[-1.0, 0.5, 2.0, 1e3, 1e9]).unwrap_or(&1.0);
            *value = if near.fract() == 0.0 && near.abs() < 1e15 { json!(near as i64) } else { json!(near) };
        }
        other => *other = strange(random),
    }
}

fn rename(fields: &mut Map<String, Value>, index: usize, random: &mut fastrand::Rng) {
    let Some(name) = fields.keys().nth(index).cloned() else { return };
    if let Some(value) = fields.remove(&name) {
        fields.insert(pick(KEYS, random).to_owned(), value);
    }
}

/// Returns an unexpected value.
fn strange(random: &mut fastrand::Rng) -> Value {
    match random.u8(..20) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(u64::MAX),
        5 => json!(i64::MIN),
        6 => json!(1u64 << 40),
        7 => json!(4_294_967_296u64),
        8 => json!(1e308),
        9 => json!(-1e-300),
        10 => json!(""),
        11 => json!("a".repeat(1 << random.u32(4..20))),
        12 => json!("\u{0}\u{feff}\u{2028}\u{1f600}\u{10ffff}"),
        13 => json!([]),
        14 => json!({}),
        15 => (0..random.usize(2..120)).fold(Value::Null, |inner, _| json!([inner])),
        16 => (0..random.usize(2..60))
            .fold(Value::Null, |inner, _| json!({ "type": "Sequence", "normalizers": [inner] })),
        17 => json!(pick(TEMPLATE_WORDS, random)),
        18 => json!({ "type": pick(TYPES, random), "pattern": { "Regex": "(a*)*$" }, "content": "" }),
        _ => json!(pick(KEYS, random)),
    }
}

/// Inserts words of a dictionary into a text, or removes or repeats parts of it.
fn words(text: &str, random: &mut fastrand::Rng, dictionary: &[&str]) -> Option<String> {
    let at = |random: &mut fastrand::Rng| {
        let boundaries: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        random.choice(&boundaries).copied().unwrap_or(0)
    };
    let (one, two) = (at(random), at(random));
    let (start, end) = (one.min(two), one.max(two));
    Some(match random.u8(..8) {
        0 => format!("{}{}", &text[..start], &text[end..]),
        1 => format!("{}{}{}", &text[..end], &text[start..end], &text[end..]),
        // A number.
        2 | 3 => {
            let digits = text.find(|c: char| c.is_ascii_digit() && random.u8(..) < 20)?;
            let length = text[digits..].find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len() - digits);
            format!("{}{}{}", &text[..digits], strange(random), &text[digits + length..])
        }
        _ => format!("{}{}{}", &text[..start], pick(dictionary, random), &text[start..]),
    })
}

fn raw(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    if bytes.is_empty() {
        return;
    }
    let (one, two) = (random.usize(..bytes.len()), random.usize(..bytes.len()));
    let (start, end) = (one.min(two), one.max(two));
    match random.u8(..7) {
        0 => bytes[start] ^= 1 << random.u8(..8),
        1 => bytes[start] = random.u8(..),
        2 => drop(bytes.drain(start..end)),
        3 => bytes.truncate(start),
        4 => {
            let copy = bytes[start..end].to_vec();
            bytes.splice(start..start, copy);
        }
        5 => {
            let length = random.usize(1..64);
            bytes.splice(
                start..start,
                std::iter::repeat_with(|| random.u8(..)).take(length).collect::<Vec<_>>(),
            );
        }
        _ => {
            let bracket = *random.choice(b"[{\"\\(<%").unwrap_or(&b'[');
            bytes.splice(start..start, vec![bracket; random.usize(1..100_000)]);
        }
    }
}

fn pick<'a>(words: &[&'a str], random: &mut fastrand::Rng) -> &'a str {
    random.choice(words).copied().unwrap_or_default()
}

const KEYS: &[&str] = &[
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "system",
    "history",
    "label",
    "tools",
    "images",
    "margin",
    "score",
    "text",
    "completions",
    "answers",
    "input",
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "weight",
    "type",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "quantization_config",
    "architectures",
    "model_type",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "added_tokens",
    "added_tokens_decoder",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "merges",
    "vocab",
    "unk_token",
    "chat_template",
    "eos_token_id",
    "__metadata__",
    "data_offsets",
    "shape",
    "dtype",
    "llama",
    "yarn",
    "F99",
    "BF16",
];

const TYPES: &[&str] = &[
    "Replace",
    "Prepend",
    "Precompiled",
    "Split",
    "FixedLength",
    "Metaspace",
    "ByteLevel",
    "WordLevel",
    "BPE",
    "Unigram",
    "WordPiece",
    "TemplateProcessing",
    "Strip",
    "Fuse",
    "CTC",
    "Sequence",
    "NFKC",
    "BertNormalizer",
];

const TEMPLATE_WORDS: &[&str] = &[
    "{{ 'a' | indent(100000000000) }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 'a' * 1000000000000 }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ messages[9].content }}",
    "{{ messages[-1]['content'][::-1] }}",
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "{% include 'chat' %}",
    "{% extends 'chat' %}",
    "{% generation %}",
    "{% endfor %}",
    "{% if",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Q') }}",
    "{{ range(10000000000) | list | length }}",
    "{{ (0 // 0) }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ '%s' % 1 }}",
    "{{ messages | map(attribute='x') | join }}",
    "{{ '<s></s><pad>' }}",
    "{{ '{' * 10 }}",
];

const JOB_WORDS: &[&str] = &[
    "rounds: 4294967295\n",
    "preset: apo\n",
    "data: { generator: { name: letters, prompts: 4294967295 } }\n",
    "&a [*a, *a]",
    "!!binary aaaa",
    "{ ? [a]: b }",
    ".nan",
    ".inf",
    "-1",
    "1e400",
    "0x7fffffffffffffff",
    "\"\\u0000\"",
    "text: { template: \"{{ 'a' | indent(100000000000) }}\" }\n",
    "/dev/zero",
    "[pairs.jsonl, pairs.jsonl, golden.json]",
    "model/config.json",
    "policy_step: { method: grpo, lora: { rank: 4294967295 } }\n",
    "resources: { ranks: 4294967295 }\n",
    "reward: { model: model }\n",
    "evaluation: { gold: letters }\n",
    "\t",
    "---\n",
    "<<: *x",
];

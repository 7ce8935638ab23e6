//! Templates and tokenizers of published models against transformers. scripts/fixtures/corpus.py fetches
//! them, and corpus_expectations.py wrote the expectations: a hash of each text and of its ids.

use super::*;
use crate::text::jinja;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Marks a rendering that transformers refuses.
const REFUSED: &str = "-";

/// Models whose files contradict each other, which are refused by name.
const CONTRADICTORY: [(&str, &str); 2] =
    [("chatglm3", "do not belong together"), ("internlm2", "do not belong together")];

/// Texts that no template renders.
const PLAIN: [&str; 10] = [
    "Hello, world",
    " leading",
    "a\n\nb  c",
    "Zoë 🐈 日本語 ﬁ",
    "12345.67 don't",
    "",
    "<s>x</s>",
    "\tprint('é')",
    "x\r\ny\u{a0}z  ",
    "\u{130}I\u{307} e\u{301}",
];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/corpus")
}

/// A file of expectations: of the tests, or of a folder that corpus_expectations.py --fuzz wrote.
fn expectations(file: &str) -> Value {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/tests/corpus");
    let folder = std::env::var_os("FOIL_CORPUS_EXPECTATIONS").map_or(own, PathBuf::from);
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

fn hash(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

/// The hashes under a name.
fn hashes<'a>(expected: &'a Value, name: &str) -> Vec<&'a str> {
    expected[name].as_str().unwrap().split_whitespace().collect()
}

/// A template's renderings of all dialogues, without and with the generation prompt.
fn renderings(template: &str, tokens: &Map<String, Value>) -> Vec<Result<String, jinja::Error>> {
    let dialogues = expectations("dialogues.json");
    let template = match jinja::Template::parse(template) {
        Ok(template) => template,
        Err(error) => return vec![Err(error)],
    };
    let cases =
        dialogues.as_array().unwrap().iter().flat_map(|dialogue| [(dialogue, false), (dialogue, true)]);
    let render = |(dialogue, asks): (&Value, bool)| {
        let (asks, none) = (Value::Bool(asks), Value::Null);
        let mut variables = vec![
            ("messages", &dialogue["messages"]),
            ("tools", dialogue.get("tools").unwrap_or(&none)),
            ("documents", &none),
            ("add_generation_prompt", &asks),
        ];
        variables.extend(tokens.iter().map(|(name, text)| (name.as_str(), text)));
        template.render(&variables)
    };
    cases.map(render).collect()
}

/// The renderings that differ from the expected ones, and those that only this engine refuses.
fn compare(
    name: &str,
    found: &[Result<String, jinja::Error>],
    expected: &[&str],
) -> (Vec<String>, Vec<String>) {
    let (mut different, mut refused) = (Vec::new(), Vec::new());
    if let [Err(error)] = found {
        if expected.iter().any(|expected| *expected != REFUSED) {
            refused.push(format!("{name}: {error}"));
        }
        return (different, refused);
    }
    assert_eq!(found.len(), expected.len(), "{name}: corpus_expectations.py has different dialogues");
    for (case, (found, expected)) in found.iter().zip(expected).enumerate() {
        match found {
            Ok(text) if hash(text) == *expected => {}
            Ok(text) => different.push(format!("{name}, case {case} is rendered {text:?}")),
            Err(_) if *expected == REFUSED => {}
            Err(error) => refused.push(format!("{name}, case {case}: {error}")),
        }
    }
    (different, refused)
}

#[test]
fn published_templates_render_as_in_transformers() {
    let expected = expectations("templates.json");
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"});
    let templates = corpus().join("templates");
    if !templates.exists() {
        println!("skipped: scripts/fixtures/corpus.py fetches the templates");
        return;
    }
    let (mut different, mut refused) = (Vec::new(), Vec::new());
    for (name, expected) in expected.as_object().unwrap() {
        let template = std::fs::read_to_string(templates.join(format!("{name}.jinja"))).unwrap();
        let expected: Vec<&str> = expected.as_str().unwrap().split_whitespace().collect();
        let found = compare(name, &renderings(&template, tokens.as_object().unwrap()), &expected);
        different.extend(found.0);
        refused.extend(found.1);
    }
    // This engine supports all published templates.
    different.extend(refused);
    assert!(
        different.is_empty(),
        "{} differ (corpus_expectations.py --show NAME CASE prints what transformers renders):\n{}",
        different.len(),
        different.join("\n")
    );
}

/// Differences of one tokenizer, one per line.
fn differences(name: &str, folder: &Path, expected: &Value) -> Vec<String> {
    let files = ModelText::read(folder).unwrap();
    if let Some((_, why)) = CONTRADICTORY.iter().find(|(other, _)| *other == name) {
        let refusal = crate::text::tokenizer::read(&files).map(drop).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
        return Vec::new();
    }
    let tokenizer = crate::text::tokenizer::read(&files).unwrap();
    let ids = |text: &str| {
        let ids = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    };
    let mut different = Vec::new();
    for (text, expected) in PLAIN.iter().zip(hashes(expected, "plain")) {
        if hash(&ids(text)) != expected {
            different.push(format!("{name}: {text:?} has the ids {}", ids(text)));
        }
    }
    let (texts, expected_ids) = (hashes(expected, "texts"), hashes(expected, "ids"));
    assert_eq!(texts.is_empty(), files.chat_template().is_none(), "{name}");
    if !texts.is_empty() {
        let template = files.chat_template().unwrap();
        let found = renderings(template, expected["tokens"].as_object().unwrap());
        let (others, refused) = compare(name, &found, &texts);
        different.extend(others.into_iter().chain(refused));
        for (case, (text, expected)) in found.iter().zip(expected_ids).enumerate() {
            let Ok(text) = text else { continue };
            if hash(&ids(text)) != expected {
                different.push(format!("{name}, case {case}: {text:?} has the ids {}", ids(text)));
            }
        }
    }
    different
}

#[test]
fn published_tokenizers_give_the_ids_that_they_give_in_transformers() {
    let expected = expectations("tokenizers.json");
    let mut different = Vec::new();
    for (name, expected) in expected.as_object().unwrap() {
        let folder = corpus().join("tokenizers").join(name);
        if folder.exists() {
            different.extend(differences(name, &folder, expected));
        } else {
            println!("{name} skipped: scripts/fixtures/corpus.py fetches it");
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

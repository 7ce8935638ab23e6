//! Real tokenizers against transformers. scripts/fixtures/corpus.py fetches them and writes what is expected.

use super::*;
use crate::text::jinja;
use serde_json::Value;
use std::path::PathBuf;

/// The folders of models/corpus.
fn folders() -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/corpus");
    let Ok(entries) = std::fs::read_dir(corpus) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("expected.json").exists());
    folders.sort();
    folders
}

/// Packages whose own files contradict each other: they are refused by name, never read in one way or another.
const CONTRADICTORY: [(&str, &str); 2] =
    [("chatglm3", "do not belong together"), ("internlm2", "do not belong together")];

/// Differences of one tokenizer, a line each.
fn differences(folder: &Path) -> Vec<String> {
    let files = ModelText::read(folder).unwrap();
    if let Some((_, why)) = CONTRADICTORY.iter().find(|(name, _)| folder.ends_with(name)) {
        let refusal = crate::text::tokenizer::read(&files).map(drop).unwrap_err().to_string();
        assert!(refusal.contains(why), "{refusal}");
        return Vec::new();
    }
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let tokenizer = crate::text::tokenizer::read(&files).unwrap();
    let ids = |text: &str| json!(tokenizer.encode_fast(text, false).unwrap().get_ids());
    let mut different = Vec::new();
    let mut check = |case: &Value, text: &str| {
        if ids(text) != case["ids"] {
            different.push(format!("{text:?} has the ids {} not {}", ids(text), case["ids"]));
        }
    };
    for case in expected["texts"].as_array().unwrap() {
        check(case, case["text"].as_str().unwrap());
    }
    let dialogues = expected["dialogues"].as_array().unwrap();
    for case in dialogues.iter().filter(|case| case["text"].is_string()) {
        check(case, case["text"].as_str().unwrap());
    }
    let Some(template) = files.chat_template().filter(|_| !dialogues.is_empty()) else { return different };
    let template = jinja::Template::parse(template).unwrap();
    for case in dialogues {
        let none = Value::Null;
        let tools = case.get("tools").unwrap_or(&none);
        let mut variables = vec![
            ("messages", &case["messages"]),
            ("tools", tools),
            ("documents", &none),
            ("add_generation_prompt", &case["add_generation_prompt"]),
        ];
        let special = expected["variables"].as_object().unwrap();
        variables.extend(special.iter().map(|(name, text)| (name.as_str(), text)));
        match (template.render(&variables), case["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            (Err(_), None) => {}
            (found, expected) => {
                let expected = expected.map_or_else(|| case["error"].to_string(), |text| format!("{text:?}"));
                different
                    .push(format!("{} is rendered\n    {found:?}, not\n    {expected}", case["messages"]));
            }
        }
    }
    different
}

#[test]
fn real_tokenizers_read_and_render_as_in_transformers() {
    let folders = folders();
    if folders.is_empty() {
        println!("skipped: .venv-peers/bin/python scripts/fixtures/corpus.py fetches the tokenizers");
    }
    let mut different = Vec::new();
    for folder in &folders {
        let found = differences(folder);
        different.extend(found.into_iter().map(|difference| format!("{}: {difference}", folder.display())));
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

//! The completions that a round's policy was trained on, from the files of a run.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::Run;

/// A completion with its rewards.
#[derive(Clone, Debug)]
pub struct Completion {
    pub text: String,
    /// Number of tokens, including EOS.
    pub tokens: usize,
    pub reward: f64,
    /// Log-probability under the policy that generated it, summed over its tokens.
    pub log_prob: f64,
}

impl Completion {
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// All completions of a round by prompt.
pub fn completions_by_prompt(run: &Run, round: u32) -> Vec<Vec<Completion>> {
    let mut prompts: BTreeMap<u64, Vec<Completion>> = BTreeMap::new();
    for row in rows(&run.out().join(format!("samples/round-{round:02}.jsonl"))) {
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} is missing in {row}"));
        prompts.entry(row["prompt_id"].as_u64().expect("a prompt's id")).or_default().push(Completion {
            text: row["text"].as_str().expect("a text").to_owned(),
            tokens: row["token_ids"].as_array().expect("token ids").len(),
            reward: number("reward"),
            log_prob: number("log_prob"),
        });
    }
    prompts.into_values().collect()
}

/// The metrics of a phase's training steps, in order.
pub fn steps(run: &Run, phase: &str) -> Vec<Value> {
    let mut rows = rows(&run.out().join("metrics.jsonl"));
    rows.retain(|row| row["phase"] == phase);
    rows
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a row is a JSON object")).collect()
}

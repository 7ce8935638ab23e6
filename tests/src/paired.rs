//! Compares two runs prompt by prompt.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Estimate, Run};

/// The gold reward of a round's policy on each evaluation prompt, by the prompt's id.
pub fn gold_by_prompt(run: &Run, round: u32) -> BTreeMap<u64, f64> {
    let path = run.out().join(format!("samples/round-{round:02}.evaluation.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("a sample is a JSON object");
        (row["prompt_id"].as_u64().expect("a prompt's id"), row["gold"].as_f64().expect("a gold reward"))
    };
    text.lines().map(row).collect()
}

/// The mean of a − b over the same prompts.
pub fn difference(a: &BTreeMap<u64, f64>, b: &BTreeMap<u64, f64>) -> Estimate {
    assert!(a.len() > 1 && a.keys().eq(b.keys()), "the runs were measured on different prompts");
    let differences: Vec<f64> = a.values().zip(b.values()).map(|(a, b)| a - b).collect();
    let rows = differences.len() as f64;
    let value = differences.iter().sum::<f64>() / rows;
    let scatter: f64 = differences.iter().map(|difference| (difference - value).powi(2)).sum();
    Estimate { value, se: (scatter / (rows - 1.0) / rows).sqrt() }
}

//! Completions joined with their prompts and scores, as JSON lines.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use foil_common::data::rows::{Prompt, PromptRow, Role};
use foil_common::rpc::{LeaderChannel, artifacts};
use foil_proto::v1;
use prost::Message;
use serde_json::{Value, json};

use super::local_file::write_atomic;

/// Scores by (prompt, index of the completion).
type Scores = HashMap<(u64, u32), f64>;

/// Writes `round-NN.jsonl` (completions that the policy was trained on) and `round-NN.evaluation.jsonl` for
/// each round that has them.
pub(crate) async fn write_all(line: &LeaderChannel, job: &v1::Job, dir: &Path) -> Result<()> {
    let mut prompts = Prompts { line, job: &job.id, read: HashMap::new() };
    for artifact in &job.artifacts {
        let round = artifact.round;
        let (set, name, scores) = match artifact.name.split_once('.') {
            Some((_, "policy.generate")) => {
                let scores = format!("scores/r{round:02}.policy.score");
                let scores = job.artifacts.iter().find(|artifact| artifact.name == scores);
                ("prompts", format!("round-{round:02}.jsonl"), scores)
            }
            Some((_, "policy.evaluate")) => {
                ("evaluation_prompts", format!("round-{round:02}.evaluation.jsonl"), None)
            }
            _ => continue,
        };
        let scores = match scores {
            Some(scores) => read_scores(line, scores).await?,
            None => Scores::new(),
        };
        let mut lines = Vec::new();
        for object in &artifact.objects {
            let bytes = artifacts::download_bytes(line, object).await?;
            let batch =
                v1::SampleBatch::decode(bytes).with_context(|| format!("{} is not a batch", object.key))?;
            let prompts = prompts.of(set).await?;
            for sample in &batch.samples {
                let row = row(round, sample, prompts.get(&sample.prompt_id), &scores);
                lines.extend_from_slice(format!("{row}\n").as_bytes());
            }
        }
        write_atomic(&dir.join(name), &lines)?;
    }
    Ok(())
}

async fn read_scores(line: &LeaderChannel, artifact: &v1::Artifact) -> Result<Scores> {
    let mut scores = Scores::new();
    for object in &artifact.objects {
        let bytes = artifacts::download_bytes(line, object).await?;
        let batch =
            v1::RewardScores::decode(bytes).with_context(|| format!("{} is not a batch", object.key))?;
        scores.extend(batch.scores.iter().map(|score| ((score.prompt_id, score.index), score.reward)));
    }
    Ok(scores)
}

/// The prompts of the job's data sets, each set read once.
struct Prompts<'a> {
    line: &'a LeaderChannel,
    job: &'a str,
    read: HashMap<&'static str, HashMap<u64, Value>>,
}

impl Prompts<'_> {
    async fn of(&mut self, set: &'static str) -> Result<&HashMap<u64, Value>> {
        if !self.read.contains_key(set) {
            let key = format!("jobs/{}/data/{set}.jsonl", self.job);
            let object = artifacts::stat(self.line, &key).await?;
            let object = object.with_context(|| format!("{key} is missing from the store"))?;
            let bytes = artifacts::download_bytes(self.line, &object).await?;
            self.read.insert(set, parse(&bytes).with_context(|| format!("{key} is damaged"))?);
        }
        Ok(&self.read[set])
    }
}

fn parse(bytes: &[u8]) -> Result<HashMap<u64, Value>> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let row: PromptRow = serde_json::from_slice(line)?;
            Ok((row.id, prompt(&row.prompt)))
        })
        .collect()
}

/// A single user message as its text, a conversation as its messages.
fn prompt(prompt: &Prompt) -> Value {
    match prompt.messages.as_slice() {
        [only] if only.role == Role::User => json!(only.content),
        messages => json!(messages),
    }
}

fn row(round: u32, sample: &v1::Sample, prompt: Option<&Value>, scores: &Scores) -> Value {
    let mut line = json!({
        "round": round,
        "prompt_id": sample.prompt_id,
        "prompt": prompt,
        "sample": sample.index,
        "text": sample.text,
        "tokens": sample.tokens.len(),
        // The text may encode to other tokens than those sampled, which are scored and trained on.
        "token_ids": sample.tokens,
        "finished": sample.finished,
    });
    let score = scores.get(&(sample.prompt_id, sample.index)).copied();
    let log_prob = || sample.log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum();
    let figures = [
        ("reward", score.or(sample.reward)),
        ("gold", sample.gold),
        ("kl", sample.kl),
        // Log-probability of the completion under the policy that generated it.
        ("log_prob", (!sample.log_probs.is_empty()).then(log_prob)),
    ];
    for (name, value) in figures {
        if let Some(value) = value {
            line[name] = json!(value);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_prompt_text_and_scores() {
        let prompt_row = PromptRow { id: 7, prompt: Prompt::user("abcde") };
        let prompts = parse(format!("{}\n", serde_json::to_string(&prompt_row).unwrap()).as_bytes()).unwrap();
        let sample = v1::Sample {
            prompt_id: 7,
            index: 1,
            tokens: vec![4, 5, 3],
            text: "ab".into(),
            finished: true,
            gold: Some(2.0),
            log_probs: vec![-0.5, -1.0, -0.25],
            ..Default::default()
        };
        let scores = Scores::from([((7, 1), 0.5)]);
        let expected = json!({
            "round": 2, "prompt_id": 7, "prompt": "abcde", "sample": 1, "text": "ab", "tokens": 3,
            "token_ids": [4, 5, 3], "finished": true, "reward": 0.5, "gold": 2.0, "log_prob": -1.75
        });
        assert_eq!(row(2, &sample, prompts.get(&7), &scores), expected);
    }
}

//! Made-up results of chunks, in the messages that ranks write: numbers derived from row, index and round.

use foil_common::storage::Store;
use foil_proto::v1::{self, pair_source::Source, task::Work};
use prost::Message;

/// The id of a data set's row.
pub(in crate::rpc) fn prompt_id(row: u64) -> u64 {
    7 * row + 3
}

pub(in crate::rpc) fn row_of(prompt_id: u64) -> u64 {
    (prompt_id - 3) / 7
}

pub(in crate::rpc) fn reward(round: u32, row: u64, index: u32) -> f64 {
    ((row * 31 + u64::from(index) * 17 + u64::from(round) * 101) % 97) as f64 / 8.0
}

pub(in crate::rpc) fn text(round: u32, row: u64, index: u32) -> String {
    format!("Answer {index} to row {row} in round {round} <script>alert(1)</script>")
}

pub(in crate::rpc) fn tokens(row: u64, index: u32) -> usize {
    1 + (row as usize + index as usize) % 5
}

/// A data set's line.
pub(in crate::rpc) fn line(set: &str, row: u64) -> String {
    let golden = match set {
        "golden" | "golden_holdout" => format!(",\"golden\":\"the golden answer to {row}\""),
        _ => String::new(),
    };
    let id = prompt_id(row);
    format!(
        "{{\"id\":{id},\"prompt\":{{\"messages\":[{{\"role\":\"user\",\"content\":\"Row {row} of {set}\"}}]}}{golden}}}\n"
    )
}

fn samples(task: &v1::Task, run: &v1::RunChunk, count: u32, is_evaluated: bool) -> v1::SampleBatch {
    let sample = |row: u64, index: u32| v1::Sample {
        prompt_id: prompt_id(row),
        index,
        tokens: (0..tokens(row, index)).map(|token| token as u32).collect(),
        text: text(task.round, row, index),
        finished: !row.is_multiple_of(3),
        reward: (is_evaluated && task.round > 0).then(|| reward(task.round, row, index)),
        gold: Some((row % 4) as f64),
        kl: is_evaluated.then_some(0.5),
        log_probs: vec![-0.25; tokens(row, index)],
    };
    let rows = run.first..run.first + run.count;
    let samples = rows.flat_map(|row| (0..count).map(move |index| sample(row, index))).collect();
    // A fingerprint of the tokenizer's content, which is not the hash of any file.
    let tokenizer_blake3 = blake3::hash(b"the tokenizer").to_hex().to_string();
    v1::SampleBatch { phase: task.phase.clone(), chunk: run.chunk, samples, tokenizer_blake3 }
}

/// The text of a token.
pub(super) fn piece(token: u32) -> String {
    format!("t{token}")
}

/// The tokenizer.json of a trained policy.
pub(super) fn tokenizer() -> String {
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..100).map(|token| (piece(token), token.into())).collect();
    serde_json::json!({ "model": { "type": "BPE", "vocab": vocabulary }, "decoder": { "type": "ByteLevel" } })
        .to_string()
}

async fn read(store: &Store, artifact: Option<&v1::Artifact>) -> Vec<v1::Sample> {
    let object = &artifact.unwrap().objects[0];
    v1::SampleBatch::decode(store.read_object(object).await.unwrap()).unwrap().samples
}

/// The bytes of a chunk's result.
pub(super) async fn chunk(store: &Store, run: &v1::RunChunk) -> Vec<u8> {
    let task = run.task.as_ref().unwrap();
    let (phase, chunk) = (task.phase.clone(), run.chunk);
    match task.work.as_ref().unwrap() {
        Work::Generate(work) => samples(task, run, work.samples, false).encode_to_vec(),
        Work::EvaluatePolicy(_) => samples(task, run, 1, true).encode_to_vec(),
        Work::Score(work) => {
            let score = |sample: &v1::Sample| v1::RewardScore {
                prompt_id: sample.prompt_id,
                index: sample.index,
                reward: reward(task.round, row_of(sample.prompt_id), sample.index),
            };
            let scores = read(store, work.samples.as_ref()).await.iter().map(score).collect();
            v1::RewardScores { phase, chunk, scores }.encode_to_vec()
        }
        Work::RefLogProbs(work) => {
            let log_probs = |sample: &v1::Sample| v1::SampleLogProbs {
                prompt_id: sample.prompt_id,
                index: sample.index,
                ref_log_probs: vec![-0.5; sample.tokens.len()],
                old_log_probs: Vec::new(),
            };
            let samples = read(store, work.samples.as_ref()).await.iter().map(log_probs).collect();
            v1::LogProbsBatch { phase, chunk, samples }.encode_to_vec()
        }
        Work::EvaluateReward(work) => {
            let pairs = match work.pairs.as_ref().unwrap().source.as_ref().unwrap() {
                Source::Golden(golden) => read(store, golden.samples.as_ref())
                    .await
                    .iter()
                    .map(|sample| v1::PairScore {
                        row_id: sample.prompt_id,
                        chosen: 20.0,
                        rejected: reward(task.round, row_of(sample.prompt_id), sample.index),
                    })
                    .collect(),
                Source::Pairs(_) | Source::GoldLabeled(_) => (run.first..run.first + run.count)
                    .map(|row| v1::PairScore { row_id: prompt_id(row), chosen: row as f64, rejected: 2.0 })
                    .collect(),
            };
            v1::PairScores { phase, chunk, pairs }.encode_to_vec()
        }
        Work::Sft(_) | Work::TrainReward(_) | Work::TrainPolicy(_) => unreachable!("they have no chunks"),
    }
}

/// Writes the data sets of a job the way the coordinator does.
pub(in crate::rpc) async fn write_datasets(store: &Store, datasets: &[v1::Dataset]) {
    for dataset in datasets {
        let lines: String = (0..dataset.rows).map(|row| line(&dataset.name, row)).collect();
        store.put_object(&dataset.object.as_ref().unwrap().key, lines.into()).await.unwrap();
    }
}

//! Properties of every model, tested on tiny random ones.

mod adapters;
mod cache;
mod checkpointing;
mod checkpoints;
mod overlap;
mod parameters;

use std::cell::RefCell;

use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::{DecoderConfig, LanguageModel, PackedBatch, Precision, RewardModel};

thread_local! {
    static MATMULS: RefCell<Option<Vec<(Kind, Kind)>>> = const { RefCell::new(None) };
}

/// Records the kinds of the inputs of matrix products while a test observes.
pub(super) fn observe_matmul(x: &Tensor, weight: &Tensor) {
    MATMULS.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            seen.push((x.kind(), weight.kind()));
        }
    });
}

fn observed(work: impl FnOnce()) -> Vec<(Kind, Kind)> {
    MATMULS.set(Some(Vec::new()));
    work();
    MATMULS.take().unwrap_or_default()
}

/// A Llama with grouped heads.
fn llama() -> DecoderConfig {
    DecoderConfig::from_hf(&json!({
        "model_type": "llama", "vocab_size": 41, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    }))
    .unwrap()
}

fn qwen3() -> DecoderConfig {
    DecoderConfig::from_hf(&json!({
        "model_type": "qwen3", "vocab_size": 41, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "tie_word_embeddings": false,
    }))
    .unwrap()
}

fn model(config: &DecoderConfig) -> LanguageModel {
    LanguageModel::from_config(config, 5, Device::Cpu)
}

fn rows() -> Vec<Vec<u32>> {
    vec![vec![1, 7, 9], (3..17).collect(), vec![40], (1..8).rev().collect()]
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    ((&a - &b).norm() / b.norm()).double_value(&[])
}

/// Hidden state of every row's last token, with each row in a separate batch.
fn forward_each(model: &LanguageModel, rows: &[Vec<u32>], precision: Precision) -> Tensor {
    let last = |row: &Vec<u32>| {
        let batch = PackedBatch::from_sequences(&[row], Device::Cpu).unwrap();
        model.forward(&batch, batch.last_rows(), precision).unwrap()
    };
    Tensor::cat(&rows.iter().map(last).collect::<Vec<_>>(), 0)
}

#[test]
fn packing_changes_nothing() {
    for config in [llama(), qwen3()] {
        let model = model(&config);
        let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
        let packed = model.forward(&batch, batch.last_rows(), Precision::Fp32).unwrap();
        assert!(distance(&packed, &forward_each(&model, &rows(), Precision::Fp32)) < 1e-6);
    }
}

/// Compares outputs at every token and all gradients between a shared prefix and separate sequences.
#[test]
fn a_shared_prefix_changes_nothing() {
    for config in [llama(), qwen3()] {
        let model = model(&config);
        model.parameters().set_requires_grad(true);
        let prompt: Vec<u32> = (2..14).collect();
        let completion = |tokens: &[u32]| [prompt.as_slice(), tokens].concat();
        let group =
            vec![completion(&[1, 30, 31]), prompt.clone(), completion(&[33]), completion(&[1, 2, 3, 4, 5])];
        let run = |batch: &PackedBatch| {
            let rows: Vec<i64> = (0..batch.sequences())
                .flat_map(|s| (0..batch.length(s)).map(move |token| (s, token)))
                .map(|(s, token)| batch.row(s, token))
                .collect();
            let hidden = model.forward(batch, &Tensor::from_slice(&rows), Precision::Fp32).unwrap();
            let logits = model.logits(&hidden).log_softmax(-1, Kind::Float);
            let loss = (&logits * logits.detach().sin()).sum(Kind::Float);
            let parameters = model.parameters().tensors();
            let gradients = Tensor::run_backward(&[&loss], parameters, false, false);
            let flat: Vec<Tensor> = gradients.iter().map(|gradient| gradient.flatten(0, -1)).collect();
            (logits, Tensor::cat(&flat, 0))
        };
        let shared = PackedBatch::from_groups(&[vec![vec![9, 8]], group.clone()], Device::Cpu).unwrap();
        let separate = [vec![vec![9, 8]], group].concat();
        let separate = PackedBatch::from_sequences(&separate, Device::Cpu).unwrap();
        assert!(shared.rows() < separate.rows());
        let (shared, separate) = (run(&shared), run(&separate));
        assert!(distance(&shared.0, &separate.0) < 1e-6);
        assert!(distance(&shared.1, &separate.1) < 1e-5);
    }
}

#[test]
fn cached_decoding_equals_the_whole_forward() {
    for config in [llama(), qwen3()] {
        let model = model(&config);
        let inference = model.inference(Precision::Fp32, 4).unwrap();
        for slots in [[0, 1, 2, 3], [2, 0, 3, 1]] {
            let mut cache = inference.new_cache(6, 24);
            let mut rows = rows();
            let batch = PackedBatch::from_sequences(&rows, Device::Cpu).unwrap();
            let hidden = inference.prefill(&batch, &mut cache, &slots).unwrap();
            assert!(distance(&hidden, &forward_each(&model, &rows, Precision::Fp32)) < 1e-6);
            for step in 0..5 {
                let next = [step, step + 9, 30, 11];
                let mut ids = next;
                for ((row, token), slot) in rows.iter_mut().zip(next).zip(slots) {
                    row.push(token);
                    ids[slot] = token;
                }
                let hidden = inference.decode(&ids, &mut cache).unwrap();
                let hidden = hidden.index_select(0, &Tensor::from_slice(&slots.map(|slot| slot as i64)));
                assert!(distance(&hidden, &forward_each(&model, &rows, Precision::Fp32)) < 1e-6);
            }
            assert_eq!(cache.length(slots[1]), 19);
        }
    }
}

#[test]
fn bf16_multiplies_in_bf16_and_gives_fp32_gradients() {
    let reward = RewardModel::with_fresh_head(model(&qwen3()), 3);
    let batch = PackedBatch::from_sequences(&rows(), Device::Cpu).unwrap();
    reward.parameters().set_requires_grad(true);
    let mut scores = Tensor::new();
    let seen = observed(|| scores = reward.scores(&batch, Precision::Bf16).unwrap());
    let (head, body) = seen.split_last().unwrap();
    assert_eq!(body.len(), 2 * 7);
    assert!(body.iter().all(|kinds| *kinds == (Kind::BFloat16, Kind::BFloat16)));
    assert_eq!(*head, (Kind::Float, Kind::Float), "the reward head stays in fp32");
    assert_eq!(scores.kind(), Kind::Float);
    scores.sum(Kind::Float).backward();
    for (name, tensor) in reward.parameters().iter() {
        assert_eq!((tensor.kind(), tensor.grad().kind()), (Kind::Float, Kind::Float), "{name}");
        assert!(tensor.grad().abs().sum(Kind::Double).double_value(&[]) > 0.0, "{name}");
    }
    assert!(distance(&scores, &reward.scores(&batch, Precision::Fp32).unwrap()) < 0.05);
}

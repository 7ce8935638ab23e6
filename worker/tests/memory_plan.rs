//! Checks that libtorch allocates the memory that a plan estimates.

// A failed setup fails the test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod model_support;

use foil_common::memory::{
    Adapters, Batch, Compute, Decoding, Estimate, Head, Model, ModelShape, Pass, Training, generation,
    inference, training,
};
use foil_common::spec::{self, DeviceKind, Lora, LoraTarget, Normalization, Sharding};
use foil_torch::CpuMemory;
use foil_torch::autograd::backward;
use foil_worker::model::{
    DecoderConfig, HeadKind, KvCache, LanguageModel, PackedBatch, Precision, RewardModel,
};
use foil_worker::train::{Comparison, Demonstration, Demonstrations, Objective, PairRanking};
use serde_json::{Value, json};
use tch::Device;

use crate::model_support::Fixture;

const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::Bf16];
/// Number of sequences, their length, and the length of their prompts.
const SEQUENCES: u64 = 24;
const LENGTH: u64 = 50;
const PROMPT: u64 = 15;

fn config(family: &str) -> Value {
    json!({
        "model_type": family, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "max_position_embeddings": 64,
        "tie_word_embeddings": false,
    })
}

fn language_model(config: &Value) -> LanguageModel {
    LanguageModel::from_config(&DecoderConfig::from_hf(config).unwrap(), 3, Device::Cpu)
}

fn compute(precision: Precision) -> Compute {
    let precision = match precision {
        Precision::Fp32 => spec::Precision::Fp32,
        Precision::Bf16 => spec::Precision::Bf16,
    };
    Compute { device: DeviceKind::Cpu, precision, threads: 1, masters: true }
}

fn batch(outputs: u64) -> Batch {
    let tokens = SEQUENCES * LENGTH;
    Batch { tokens, outputs, keys: tokens, longest: LENGTH }
}

fn sequence(number: u64) -> Vec<u32> {
    (0..LENGTH).map(|token| ((number * 31 + token * 7) % 101) as u32).collect()
}

fn demonstrations() -> Vec<Demonstration> {
    let row = |id| Demonstration { id, ids: sequence(id), response_start: PROMPT as usize };
    (0..SEQUENCES).map(row).collect()
}

/// Pairs without a shared prefix.
fn comparisons() -> Vec<Comparison> {
    let pair = |id| Comparison {
        id,
        chosen: sequence(2 * id),
        rejected: vec![sequence(2 * id + 1)],
        weight: 1.0,
        margin: 0.0,
    };
    (0..SEQUENCES / 2).map(pair).collect()
}

/// Bytes held after a forward pass, and the peak of the forward and backward pass.
fn measured(objective: &dyn Objective, rows: usize) -> (u64, u64) {
    let rows: Vec<usize> = (0..rows).collect();
    // Excludes tensors that are created only once, such as rotary tables.
    drop(objective.loss(&rows).unwrap());
    let memory = CpuMemory::count().unwrap();
    let part = objective.loss(&rows).unwrap();
    let held = memory.current();
    backward(&part.loss).unwrap();
    (held, memory.peak())
}

/// Asserts that `found` is at most `bound`, and at most `slack` below it.
fn close_below(found: u64, bound: u64, slack: f64, what: &str) {
    let ratio = found as f64 / bound as f64;
    assert!(ratio <= 1.0 && ratio >= 1.0 - slack, "{what}: {found} of {bound} estimated bytes");
}

fn untrained(estimate: Estimate) -> u64 {
    estimate.total() - estimate.weights - estimate.optimizer
}

const DEFAULTS: Training =
    Training { ranks: 1, sharding: Sharding::Ddp, checkpointing: false, adapters: None, snapshots: false };

/// Compares a step's memory with the estimate: the bytes held after the forward pass, unless activations are
/// recomputed, and the peak.
fn compare(objective: &dyn Objective, rows: usize, estimated: (Pass<'_>, Head, Training), what: &str) {
    let (pass, head, settings) = estimated;
    let (held, peak) = measured(objective, rows);
    let estimate = training(Model { shape: pass.shape, head }, settings, pass.batch, pass.compute);
    if !settings.checkpointing && settings.adapters.is_none() {
        let loss = if head == Head::Language { pass.loss(true).gradients } else { 0 };
        close_below(held, pass.kept() + estimate.copies + loss, 0.03, what);
    }
    // The scratch memory of products depends on the CPU's kernels.
    close_below(peak, untrained(estimate), 0.35, &format!("{what}, peak"));
}

#[test]
fn the_memory_of_a_policy_step_is_as_estimated() {
    tch::set_num_threads(1);
    for (family, checkpointing) in [("llama", false), ("llama", true), ("qwen2", false), ("qwen3", false)] {
        let (config, rows) = (config(family), demonstrations());
        let shape = ModelShape::from_config(&config).unwrap();
        for precision in PRECISIONS {
            let model = language_model(&config).with_checkpointing(checkpointing);
            model.parameters().set_requires_grad(true);
            let objective = Demonstrations::new(&model, &rows, precision);
            let batch = batch(SEQUENCES * (LENGTH - PROMPT));
            let pass = Pass { shape: &shape, compute: compute(precision), batch };
            let settings = Training { checkpointing, ..DEFAULTS };
            let what = format!("{family} in {precision:?}, checkpointing: {checkpointing}");
            compare(&objective, rows.len(), (pass, Head::Language, settings), &what);
        }
    }
}

#[test]
fn the_memory_of_a_lora_step_is_as_estimated() {
    tch::set_num_threads(1);
    let (config, rows) = (config("llama"), demonstrations());
    let shape = ModelShape::from_config(&config).unwrap();
    let lora = Lora { rank: 4, alpha: 8.0, target_modules: vec![LoraTarget::QProj, LoraTarget::UpProj] };
    for precision in PRECISIONS {
        let mut model = language_model(&config);
        model.add_lora(&lora, (1, 1)).unwrap();
        model.trainable().set_requires_grad(true);
        let objective = Demonstrations::new(&model, &rows, precision);
        let batch = batch(SEQUENCES * (LENGTH - PROMPT));
        let pass = Pass { shape: &shape, compute: compute(precision), batch };
        let numbers = shape.adapters(4, &lora.target_modules);
        assert_eq!(numbers, model.trainable().count() as u64);
        let adapters = Adapters { parameters: numbers, rank: 4, targets: 2 };
        let settings = Training { adapters: Some(adapters), ..DEFAULTS };
        compare(&objective, rows.len(), (pass, Head::Language, settings), &format!("{precision:?}"));
    }
}

#[test]
fn the_memory_of_a_reward_step_is_as_estimated() {
    tch::set_num_threads(1);
    let (config, pairs) = (config("llama"), comparisons());
    let shape = ModelShape::from_config(&config).unwrap();
    for precision in PRECISIONS {
        let model = RewardModel::with_fresh_head(language_model(&config), 4);
        model.parameters().set_requires_grad(true);
        let objective = PairRanking::new(&model, &pairs, &[], precision, Normalization::Global);
        let pass = Pass { shape: &shape, compute: compute(precision), batch: batch(SEQUENCES) };
        compare(&objective, pairs.len(), (pass, Head::Reward, DEFAULTS), &format!("{precision:?}"));
    }
}

#[test]
fn the_memory_of_scoring_is_as_estimated() {
    tch::set_num_threads(1);
    let config = config("llama");
    let shape = ModelShape::from_config(&config).unwrap();
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(sequence).collect();
    for precision in PRECISIONS {
        let model = RewardModel::with_fresh_head(language_model(&config), 4);
        let packed = PackedBatch::from_sequences(&sequences, Device::Cpu).unwrap();
        let memory = CpuMemory::count().unwrap();
        tch::no_grad(|| drop(model.scores(&packed, precision).unwrap()));
        let reward_model = Model { shape: &shape, head: Head::Reward };
        let estimate = inference(reward_model, 1, batch(SEQUENCES), compute(precision));
        close_below(memory.peak(), estimate.total() - estimate.weights, 0.3, &format!("{precision:?}"));
    }
}

#[test]
fn the_memory_of_a_kv_cache_is_as_estimated() {
    let config = config("llama");
    let shape = ModelShape::from_config(&config).unwrap();
    let decoding = Decoding { max_num_seqs: 7, prompt: 20, completion: 12 };
    for precision in PRECISIONS {
        let estimate = generation(&shape, decoding, compute(precision)).kv_cache;
        let decoder = DecoderConfig::from_hf(&config).unwrap();
        let memory = CpuMemory::count().unwrap();
        let cache = KvCache::new(&decoder, 8, 32, precision, Device::Cpu);
        // The plan leaves out the numbers of the slots, int64.
        assert_eq!(memory.current(), estimate + 8 * 8);
        drop(cache);
    }
}

#[test]
fn shapes_have_as_many_parameters_as_checkpoints() {
    for fixture in Fixture::all() {
        let text = std::fs::read(fixture.dir.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        let (head, kind) = match fixture.is_reward() {
            true => (Head::Reward, HeadKind::Reward),
            false => (Head::Language, HeadKind::LanguageModel),
        };
        let tensors = DecoderConfig::from_hf(&config).unwrap().tensors(kind);
        let numbers: i64 = tensors.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum();
        let shape = ModelShape::from_config(&config).unwrap();
        assert_eq!(shape.parameters(head), numbers as u64, "{}", fixture.name);
    }
}

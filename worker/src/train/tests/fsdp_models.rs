//! Tests of sharded models: what a rank holds of them, and how they are read and written.

use std::path::Path;

use foil_common::memory::{Batch, Compute, Head, Model, ModelShape, Training, training};
use foil_common::spec::{self, DeviceKind, Sharding};
use foil_torch::CpuMemory;
use serde_json::{Value, json};
use tch::{Device, Kind};

use super::super::{Demonstration, Demonstrations};
use super::fsdp::{How, case, holding, train_all};
use crate::collective::Gang;
use crate::collective::testing::in_threads;
use crate::model::{
    DecoderConfig, Holding, LanguageModel, PackedBatch, Precision, SaveDtype, ShardPlacement,
};

/// A model with a head whose parameters take most of the memory.
fn heavy() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 401, "max_position_embeddings": 64,
        "tie_word_embeddings": false,
    })
}

/// The peak memory of a rank that loads the model and takes two steps.
fn peak(gang: &Gang, dir: &Path, rows: &[Demonstration], how: How) -> u64 {
    let memory = CpuMemory::count().unwrap();
    let how = How { checkpointing: true, budget: 1000, batch: rows.len(), ..how };
    let model = LanguageModel::load_held(dir, Device::Cpu, holding(gang, how)).unwrap();
    let model = model.with_checkpointing(true);
    // Excludes temporary buffers of loading from the memory of the steps.
    memory.reset_peak();
    train_all(gang, how, &Demonstrations::new(&model, rows, how.precision()), model.trainable());
    memory.peak()
}

#[test]
fn memory_falls_with_the_number_of_ranks_as_planned() {
    const LENGTH: u64 = 24;
    let dir = tempfile::tempdir().unwrap();
    let config = DecoderConfig::from_hf(&heavy()).unwrap();
    LanguageModel::from_config(&config, 3, Device::Cpu).save(dir.path(), SaveDtype::Fp32).unwrap();
    let shape = ModelShape::from_config(&heavy()).unwrap();
    let mut before = u64::MAX;
    for (bf16, zero1) in [(false, false), (true, false), (false, true), (true, true)] {
        let how = How { bf16, zero1, ..How::default() };
        let precision = if bf16 { spec::Precision::Bf16 } else { spec::Precision::Fp32 };
        let sharding = if zero1 { Sharding::Zero1 } else { Sharding::Fsdp };
        for world in [1, 2, 4] {
            // Each rank has the same number of rows.
            let row = |id: u64| Demonstration {
                id,
                ids: (0..LENGTH).map(|token| ((id * 31 + token * 7) % 401) as u32).collect(),
                response_start: 1,
            };
            let rows: Vec<Demonstration> = (0..4 * world as u64).map(row).collect();
            let peaks = in_threads(world, |gang| peak(gang, dir.path(), &rows, how));
            let tokens = 4 * LENGTH;
            let batch = Batch { tokens, outputs: tokens, keys: tokens, longest: LENGTH };
            let compute = Compute { device: DeviceKind::Cpu, precision, threads: 1, masters: zero1 };
            let settings = Training {
                ranks: world as u64,
                sharding,
                checkpointing: true,
                adapters: None,
                snapshots: false,
            };
            let model = Model { shape: &shape, head: Head::Language };
            let planned = training(model, settings, batch, compute).total();
            for &peak in &peaks {
                let part = peak as f64 / planned as f64;
                println!("{how:?}, {world} ranks: {peak} bytes of {planned} planned, {part:.3}");
                assert!((0.75..=1.0).contains(&part), "{world} ranks: {peak} of {planned} bytes planned");
                assert!(
                    world == 1 || peak < before,
                    "{world} ranks: {peak} bytes, with half of them {before}"
                );
            }
            before = peaks.into_iter().max().unwrap();
        }
        before = u64::MAX;
    }
}

#[test]
fn a_model_loaded_in_shards_is_saved_as_it_was() {
    let case = case();
    for dtype in [SaveDtype::Fp32, SaveDtype::Bf16] {
        let whole = tempfile::tempdir().unwrap();
        let model = LanguageModel::load(case.dir.path(), Device::Cpu).unwrap();
        model.save(whole.path(), dtype).unwrap();
        let expected = std::fs::read(whole.path().join("model.safetensors")).unwrap();
        let digest = model.parameters().blake3().unwrap();
        for world in [2, 3] {
            let found: Vec<(Vec<u8>, String)> = in_threads(world, |gang| {
                let dir = tempfile::tempdir().unwrap();
                let holding = holding(gang, How { bf16: true, ..How::default() });
                let model = LanguageModel::load_held(case.dir.path(), Device::Cpu, holding).unwrap();
                let shards = model.parameters().shards().unwrap();
                gang.connect(shards.store());
                let held: i64 = shards.units().map(|unit| unit.shard().numel() as i64).sum();
                let all = model.parameters().count() as i64;
                // Up to the padding of units.
                assert!(held < all / world as i64 + 64 * 20, "{held} of {all} on one of {world} ranks");
                model.save(dir.path(), dtype).unwrap();
                let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
                (bytes, model.parameters().blake3().unwrap())
            });
            for (bytes, blake3) in found {
                assert!(bytes == expected, "{world} ranks, {dtype:?}, seed {}", case.seed);
                assert_eq!(blake3, digest);
            }
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_found_by_the_rank_that_holds_the_damage() {
    let case = case();
    let model = LanguageModel::load(case.dir.path(), Device::Cpu).unwrap();
    let norm = model.parameters().get("model.norm.weight").unwrap();
    tch::no_grad(|| {
        let _ = norm.get(0).fill_(f64::NAN);
    });
    model.save(case.dir.path(), SaveDtype::Fp32).unwrap();
    let errors: Vec<Option<String>> = (0..3)
        .map(|rank| {
            let placement = ShardPlacement { rank, world: 3, precision: Precision::Fp32 };
            let loaded = LanguageModel::load_held(case.dir.path(), Device::Cpu, Holding::Shards(placement));
            loaded.err().map(|error| error.to_string())
        })
        .collect();
    assert_eq!(errors.iter().flatten().count(), 1, "{errors:?}");
    let error = errors.iter().flatten().next().unwrap();
    assert!(error.contains("model.norm.weight") && error.contains("NaN"), "{error}");
}

#[test]
fn phases_that_do_not_train_hold_the_compute_precision() {
    let case = case();
    let whole = LanguageModel::load(case.dir.path(), Device::Cpu).unwrap();
    let held = Holding::Inference(Precision::Bf16);
    let model = LanguageModel::load_held(case.dir.path(), Device::Cpu, held).unwrap();
    for (name, tensor) in model.parameters().iter() {
        let expected = if name.ends_with("norm.weight") { Kind::Float } else { Kind::BFloat16 };
        assert_eq!(tensor.kind(), expected, "{name}");
    }
    let rows: Vec<&[u32]> = case.demonstrations.iter().map(|row| row.ids.as_slice()).collect();
    let batch = PackedBatch::from_sequences(&rows, Device::Cpu).unwrap();
    let logits = |model: &LanguageModel| {
        let hidden = model.forward(&batch, batch.last_rows(), Precision::Bf16).unwrap();
        model.logits(&hidden).to_kind(Kind::Float)
    };
    let (found, expected) = tch::no_grad(|| (logits(&model), logits(&whole)));
    let distance = ((&found - &expected).norm() / expected.norm()).double_value(&[]);
    // Embeddings are rounded too.
    assert!(distance < 5e-2, "seed {}: {distance}", case.seed);
}

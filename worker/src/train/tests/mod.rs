//! Tests of training: against PyTorch, with different splits of a batch, from checkpoints, and with
//! non-finite losses.

mod completions;
mod fsdp;
mod fsdp_models;
mod loops;
mod memory_probe;
mod optimizer;
mod ranks;
mod resume;
mod steps;
mod zero1;

use std::path::{Path, PathBuf};

use foil_common::spec::{Decay, OnNonfinite, Optimizer, Schedule, ScheduleKind, Sharding};
use serde_json::Value;

use super::{Comparison, Demonstration, OrderKey, TrainConfig};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A file of `tests/fixtures/train`, made by scripts/fixtures/train.py.
fn fixture(name: &str) -> Value {
    let path = fixtures().join("train").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// The settings of scripts/fixtures/train.py.
fn optimizer(max_grad_norm: Option<f64>, micro_batch_tokens: usize) -> Optimizer {
    Optimizer {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        decay: Decay::Matrices,
        max_grad_norm,
        micro_batch_tokens,
        on_nonfinite: OnNonfinite::Fail,
    }
}

fn linear(warmup: u32) -> Schedule {
    Schedule { kind: ScheduleKind::Linear, warmup_steps: warmup, min_lr_ratio: 0.0 }
}

/// Settings for tests that plan batches themselves.
fn config(optimizer: Optimizer) -> TrainConfig {
    TrainConfig {
        order: OrderKey { seed: 0, round: 0 },
        epochs: 1,
        batch_size: 4,
        peak_learning_rate: 1e-3,
        optimizer,
        schedule: linear(0),
        sharding: Sharding::Ddp,
    }
}

/// The demonstrations and pairs of loops.json.
fn demonstrations(case: &Value) -> Vec<Demonstration> {
    let rows = case["rows"].as_array().unwrap().iter().zip(tokens(&case["answer_starts"]));
    rows.enumerate()
        .map(|(id, (row, start))| Demonstration {
            id: id as u64,
            ids: tokens(row),
            response_start: start as usize,
        })
        .collect()
}

fn pairs(case: &Value) -> Vec<Comparison> {
    let responses = case["chosen"].as_array().unwrap().iter().zip(case["rejected"].as_array().unwrap());
    let rows = responses.zip(numbers(&case["weights"])).enumerate();
    rows.map(|(id, ((chosen, rejected), weight))| Comparison {
        id: id as u64,
        chosen: tokens(chosen),
        rejected: vec![tokens(rejected)],
        weight,
        margin: 0.0,
    })
    .collect()
}

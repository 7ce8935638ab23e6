//! Training and decoding of a model of 1.2 billion parameters with random weights.

#![expect(clippy::disallowed_methods, reason = "work is timed")]

use std::time::Instant;

use anyhow::{Result, ensure};
use foil_common::memory::{self, Batch, Compute, Estimate, ModelShape, Training, training};
use foil_common::spec::{
    self, Decay, Normalization, OnNonfinite, Optimizer, Sampling, Schedule, ScheduleKind, Sharding,
};
use foil_torch::device_memory;
use foil_worker::collective::Gang;
use foil_worker::generate::{GenerateRequest, GenerationConfig, NoiseKey, generate};
use foil_worker::model::{DecoderConfig, Inference, LanguageModel, Parameters, Precision, RewardModel};
use foil_worker::train::{
    Comparison, Demonstration, Demonstrations, Objective, OrderKey, PairRanking, RowShape, StepPlan,
    StepRequests, TrainConfig, Trainer,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::finding::{Bound, Finding, report};

/// Length of the sequences, and number of them in a step.
const LENGTH: usize = 1024;
const SEQUENCES: usize = 4;
/// Steps before the measurement and during it.
const WARM_UP: usize = 1;
const MEASURED: usize = 3;
/// Numbers of new tokens whose times are compared.
const DECODED: [usize; 2] = [12, 44];
const PROMPT: usize = 16;

pub(super) fn run(device: Device, is_small: bool) -> Result<()> {
    let config = config(is_small)?;
    let length = if is_small { 64 } else { LENGTH };
    let planned = [memory::Head::Language, memory::Head::Reward].map(|head| planned(&config, head, length));
    let largest = planned.iter().map(Estimate::total).max().unwrap_or_default();
    let limits = Limits::measure(device, is_small)?;
    let model = LanguageModel::from_config(&config, 1, device).with_checkpointing(true);
    decode(&model, &limits, is_small)?;
    let total = device_memory::total()?;
    if total > 0 && total < largest {
        let check = format!("memory of a step of {}, more than there is", limits.model);
        report(&Finding::note(check, largest as f64 / 1e9, "GB"))?;
        return Ok(());
    }
    let rows: Vec<_> = (0..SEQUENCES).map(|id| demonstration(id, length)).collect();
    let objective = Demonstrations::new(&model, &rows, Precision::Bf16);
    train("policy", &objective, (model.parameters(), 0), &limits, length)?;
    let embeddings = (config.vocab_size * config.hidden_size) as usize;
    let reward = RewardModel::with_fresh_head(model, 2);
    let pairs: Vec<_> = (0..SEQUENCES / 2).map(|id| comparison(id, length)).collect();
    let objective = PairRanking::new(&reward, &pairs, &[], Precision::Bf16, Normalization::Global);
    train("reward", &objective, (reward.parameters(), embeddings), &limits, length)?;
    // A tiny model takes less than the measurements of limits.
    if device.is_cuda() && !is_small {
        let check = "peak memory of both against the plan's";
        // The reserve is for what is not a tensor.
        let tensors = planned.iter().map(|estimate| estimate.total() - estimate.reserve).max();
        let share = device_memory::peak()? as f64 / tensors.unwrap_or_default() as f64;
        report(&Finding::must(check, share, "", Bound::AtMost(1.0)))?;
    }
    Ok(())
}

/// The shape of Llama 3.2 1B, or one for trying this program.
fn config(is_small: bool) -> Result<DecoderConfig> {
    let [hidden, intermediate, layers, heads, keys, vocab] =
        if is_small { [128, 256, 2, 4, 2, 1000] } else { [2048, 8192, 16, 32, 8, 128_256] };
    Ok(DecoderConfig::from_hf(&json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocab,
        "max_position_embeddings": 2048, "tie_word_embeddings": true,
    }))?)
}

/// The plan's estimate of a training step.
fn planned(config: &DecoderConfig, head: memory::Head, length: usize) -> Estimate {
    let shape = ModelShape::from(config);
    let tokens = (SEQUENCES * length) as u64;
    let outputs = if head == memory::Head::Reward { SEQUENCES as u64 } else { tokens };
    let batch = Batch { tokens, outputs, keys: tokens, longest: length as u64 };
    let (device, precision) = (spec::DeviceKind::Cuda, spec::Precision::Bf16);
    let compute = Compute { device, precision, threads: 1, masters: true };
    let settings =
        Training { ranks: 1, sharding: Sharding::Ddp, checkpointing: true, adapters: None, snapshots: false };
    training(memory::Model { shape: &shape, head }, settings, batch, compute)
}

/// Measured limits of the device.
struct Limits {
    /// Short name of the model that is measured.
    model: &'static str,
    /// Floating-point operations per second of a product of bf16 matrices.
    flops: f64,
    /// Bytes per second, read and written by a copy.
    bandwidth: f64,
}

impl Limits {
    fn measure(device: Device, is_small: bool) -> Result<Self> {
        let size: i64 = if is_small { 256 } else { 8192 };
        let matrix = Tensor::rand([size, size], (Kind::Float, device)).to_kind(Kind::BFloat16);
        let product = seconds(
            10,
            || {
                let _ = matrix.matmul(&matrix);
            },
            &matrix,
        );
        let elements: i64 = if is_small { 1 << 20 } else { 1 << 28 };
        let (from, mut to) = (
            Tensor::ones([elements], (Kind::Float, device)),
            Tensor::zeros([elements], (Kind::Float, device)),
        );
        let copied = from.shallow_clone();
        let copy = seconds(10, || to.copy_(&from), &copied);
        let model = if is_small { "tiny model" } else { "1.2B" };
        let limits = Self {
            model,
            flops: 2.0 * (size as f64).powi(3) / product,
            bandwidth: 8.0 * elements as f64 / copy,
        };
        report(&Finding::note("product of bf16 matrices", limits.flops / 1e12, "TFLOP/s"))?;
        report(&Finding::note("memory bandwidth of a copy", limits.bandwidth / 1e9, "GB/s"))?;
        Ok(limits)
    }
}

/// The mean time of `work`, repeated on the device of `tensor`.
fn seconds(times: u32, mut work: impl FnMut(), tensor: &Tensor) -> f64 {
    // Reading a number waits for the device.
    let wait = || tensor.reshape([-1]).narrow(0, 0, 1).to_kind(Kind::Float).double_value(&[0]);
    work();
    let _ = wait();
    let started = Instant::now();
    (0..times).for_each(|_| work());
    let _ = wait();
    started.elapsed().as_secs_f64() / f64::from(times)
}

fn sequence(number: usize, length: usize) -> Vec<u32> {
    (0..length).map(|token| ((number * 131 + token * 17 + token * token) % 997) as u32).collect()
}

fn demonstration(id: usize, length: usize) -> Demonstration {
    Demonstration { id: id as u64, ids: sequence(id, length), response_start: 1 }
}

fn comparison(id: usize, length: usize) -> Comparison {
    Comparison {
        id: id as u64,
        chosen: sequence(2 * id, length),
        rejected: vec![sequence(2 * id + 1, length)],
        weight: 1.0,
        margin: 0.0,
    }
}

/// Trains parameters, a number of which are in no matrix product.
fn train(
    name: &str,
    objective: &dyn Objective,
    (parameters, unused): (&Parameters, usize),
    limits: &Limits,
    length: usize,
) -> Result<()> {
    let tokens = SEQUENCES * length;
    let config = TrainConfig {
        order: OrderKey { seed: 0, round: 1 },
        epochs: 1,
        batch_size: 1,
        peak_learning_rate: 1e-5,
        optimizer: Optimizer {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            decay: Decay::Matrices,
            max_grad_norm: Some(1.0),
            micro_batch_tokens: tokens,
            on_nonfinite: OnNonfinite::Fail,
        },
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0, min_lr_ratio: 1.0 },
        sharding: Sharding::Ddp,
    };
    let gang = Gang::single();
    let rows: Vec<usize> = (0..objective.sets().iter().sum()).collect();
    let shapes: Vec<RowShape> = rows.iter().map(|&row| objective.shape(row)).collect();
    let mut trainer = Trainer::new(parameters, &config, (WARM_UP + MEASURED) as u64, &gang)?;
    let plan = StepPlan::new(&rows, &shapes, trainer.rank_info(), tokens);
    let mut started = Instant::now();
    for step in 0..WARM_UP + MEASURED {
        if step == WARM_UP {
            started = Instant::now();
        }
        let loss = trainer.step(objective, &plan, StepRequests::default())?.0.loss;
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}");
    }
    let per_second = (MEASURED * tokens) as f64 / started.elapsed().as_secs_f64();
    // Six operations per multiplied parameter and token; those of recomputation do not count.
    let multiplied = (parameters.count() - unused) as f64;
    let share = 6.0 * multiplied * per_second / limits.flops;
    report(&Finding::note(format!("{name} step of {}, bf16", limits.model), per_second, "tokens/s"))?;
    let check = format!("{name} step of {}, share of the bf16 limit", limits.model);
    report(&Finding::may(check, share, "", Bound::AtLeast(0.45)))?;
    Ok(())
}

fn decode(model: &LanguageModel, limits: &Limits, is_small: bool) -> Result<()> {
    let shape = ModelShape::from(model.config());
    for rows in if is_small { [4, 8] } else { [64, 128] } {
        let inference = model.inference(Precision::Bf16, rows)?;
        let [short, long] = DECODED;
        generation(&inference, rows, long)?;
        let times = [short, long].map(|tokens| generation(&inference, rows, tokens));
        let [fewer, more] = times;
        let (fewer, more) = (fewer?, more?);
        let step = (more - fewer) / (long - short) as f64;
        let cached = (PROMPT + (short + long) / 2) as u64;
        let per_token = 2 * 2 * shape.layers * shape.kv_width();
        let bytes = 2 * shape.parameters(memory::Head::Language) + rows as u64 * cached * per_token;
        let floor = bytes as f64 / limits.bandwidth;
        let check = format!("decoding step of {}, {rows} rows", limits.model);
        let found = Finding::note(check.clone(), 1e3 * step, "ms");
        let found = match model.device().is_cuda() && !is_small && rows == 64 {
            // A slower step means that cuDNN's attention compiles a plan at each step.
            true => Finding { bound: Some(Bound::AtMost(20.0)), must: true, ..found },
            false => found,
        };
        report(&found)?;
        report(&Finding::may(
            format!("{check}, times its memory floor"),
            step / floor,
            "",
            Bound::AtMost(1.3),
        ))?;
    }
    Ok(())
}

/// The time of a generation of this many tokens in each row.
fn generation(inference: &Inference<'_>, rows: usize, max_new_tokens: usize) -> Result<f64> {
    let request =
        |id: usize| GenerateRequest { prompt_id: id as u64, prompt: sequence(id, PROMPT), samples: 1 };
    let requests: Vec<_> = (0..rows).map(request).collect();
    let sampling = Sampling { max_new_tokens, ..Sampling::default() };
    let noise = NoiseKey { seed: 1, round: 1, purpose: "check".to_owned() };
    let config = GenerationConfig {
        sampling: &sampling,
        // No completion ends early.
        eos: &[],
        vocab_size: usize::MAX,
        noise: &noise,
        max_num_seqs: rows,
        detokenize: &|_| String::new(),
    };
    let started = Instant::now();
    let completions = generate(inference, &requests, &config, &mut |_, _| ())?.completions;
    let is_whole =
        completions.len() == rows && completions.iter().all(|done| done.tokens.len() == max_new_tokens);
    ensure!(is_whole, "a generation of {rows} rows and {max_new_tokens} tokens is not complete");
    Ok(started.elapsed().as_secs_f64())
}

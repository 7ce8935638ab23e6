//! The operations of a model on a device against those on the CPU.

use anyhow::Result;
use foil_torch::autograd::backward;
use foil_torch::ops::{exponential_race, log_prob_gradient, sample_tokens, target_log_probs};
use foil_worker::model::{DecoderConfig, LanguageModel, Precision};
use foil_worker::objective::metrics::MetricSums;
use foil_worker::objective::policy::{GroupLoss, LossOutput};
use foil_worker::train::{CompletionGroup, Demonstration, Demonstrations, Objective, PolicyGroups};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::finding::{Bound, Finding, log, report};

/// Query heads, key-value heads and their width, as in current models.
const HEADS: [[usize; 3]; 3] = [[8, 2, 64], [4, 4, 96], [8, 1, 128]];
const VOCAB: i64 = 32_000;

pub(super) fn run(device: Device, is_small: bool) -> Result<()> {
    for &heads in if is_small { &HEADS[..1] } else { &HEADS[..] } {
        for shared in [false, true] {
            layers(heads, shared, device)?;
        }
    }
    confident_tokens(device)?;
    if device.is_cuda() { sampling(device) } else { Ok(()) }
}

/// The loss of a batch and the gradients of all parameters, on the host.
struct Gradients {
    loss: f64,
    all: Vec<Tensor>,
}

impl Gradients {
    /// The relative difference of the losses, and of all gradients together.
    fn differences(&self, exact: &Self) -> (f64, f64) {
        let norm = |tensors: &mut dyn Iterator<Item = Tensor>| {
            tensors.map(|tensor| tensor.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt()
        };
        let differences = norm(&mut self.all.iter().zip(&exact.all).map(|(a, b)| a - b));
        let size = norm(&mut exact.all.iter().map(Tensor::shallow_clone));
        ((self.loss - exact.loss).abs() / exact.loss.abs(), differences / size)
    }

    fn equals(&self, other: &Self) -> bool {
        self.loss.to_bits() == other.loss.to_bits()
            && self.all.iter().zip(&other.all).all(|(a, b)| a.equal(b))
    }
}

fn layers(heads: [usize; 3], shared: bool, device: Device) -> Result<()> {
    let exact = gradients(heads, shared, Device::Cpu, Precision::Fp32)?;
    let [queries, keys, width] = heads;
    let shared_prompts = if shared { ", shared prompts" } else { "" };
    let name = format!("{queries}/{keys} heads of {width}{shared_prompts}");
    for (precision, named, [of_loss, of_gradients]) in
        [(Precision::Fp32, "fp32", [1e-5, 1e-4]), (Precision::Bf16, "bf16", [0.02, 0.05])]
    {
        let [found, again] = [(); 2].map(|()| gradients(heads, shared, device, precision));
        let (found, again) = (found?, again?);
        let (loss, gradient) = found.differences(&exact);
        report(&Finding::must(format!("loss, {named}, {name}"), loss, "", Bound::AtMost(of_loss)))?;
        report(&Finding::must(
            format!("gradient, {named}, {name}"),
            gradient,
            "",
            Bound::AtMost(of_gradients),
        ))?;
        report(&Finding::must_hold(format!("same bits twice, {named}, {name}"), found.equals(&again)))?;
    }
    Ok(())
}

fn sequence(number: usize, length: usize) -> Vec<u32> {
    (0..length).map(|token| ((number * 31 + token * 7 + token * token) % 1000) as u32).collect()
}

fn gradients(heads: [usize; 3], shared: bool, device: Device, precision: Precision) -> Result<Gradients> {
    let [queries, keys, width] = heads;
    let config = DecoderConfig::from_hf(&json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "head_dim": width, "num_attention_heads": queries, "num_key_value_heads": keys, "vocab_size": 1000,
        "max_position_embeddings": 256, "tie_word_embeddings": false,
    }))?;
    let model = LanguageModel::from_config(&config, 3, device);
    model.parameters().set_requires_grad(true);
    let loss = if shared { shared_loss(&model, precision)? } else { plain_loss(&model, precision)? };
    backward(&loss)?;
    let all = model.parameters().iter().map(|(_, tensor)| tensor.grad().to_device(Device::Cpu)).collect();
    Ok(Gradients { loss: loss.double_value(&[]), all })
}

fn plain_loss(model: &LanguageModel, precision: Precision) -> Result<Tensor> {
    let row = |id: usize| Demonstration { id: id as u64, ids: sequence(id, 40 + 9 * id), response_start: 12 };
    let rows: Vec<_> = (0..8).map(row).collect();
    let all: Vec<usize> = (0..rows.len()).collect();
    Ok(Demonstrations::new(model, &rows, precision).loss(&all)?.loss)
}

fn shared_loss(model: &LanguageModel, precision: Precision) -> Result<Tensor> {
    let device = model.device();
    let group = |id: usize| CompletionGroup {
        id: id as u64,
        prompt: sequence(id, 30),
        completions: (0..4).map(|answer| sequence(10 * id + answer, 20 + 7 * answer)).collect(),
    };
    let groups: Vec<_> = (0..4).map(group).collect();
    let loss = |_: &CompletionGroup| {
        GroupLoss::new(1.0, move |log_probs| LossOutput {
            loss: -Tensor::cat(log_probs, 0).mean(Kind::Float),
            metrics: MetricSums::from_scalars([], device),
        })
    };
    let losses: Vec<_> = groups.iter().map(loss).collect();
    let objective = PolicyGroups { model, groups: &groups, losses: &losses, metrics: &[], precision };
    let all: Vec<usize> = (0..groups.len()).collect();
    Ok(objective.loss(&all)?.loss)
}

/// The gradient of a token that is nearly certain is a small difference of numbers near 1.
fn confident_tokens(device: Device) -> Result<()> {
    let targets = Tensor::zeros([1], (Kind::Int64, device));
    let upstream = Tensor::from_slice(&[-0.37_f32]).to_device(device);
    for probability in [0.5, 0.98, 0.998_f64] {
        let rest = Tensor::arange(VOCAB - 1, (Kind::Double, Device::Cpu)).sin() * 2.0;
        let first = rest.logsumexp([0], true) + (probability / (1.0 - probability)).ln();
        let mut logits = Tensor::cat(&[first, rest], 0).unsqueeze(0).to_kind(Kind::BFloat16);
        let exact = logits.to_kind(Kind::Double).softmax(-1, Kind::Double) * 0.37;
        let mut at_target = exact.narrow(1, 0, 1);
        at_target.copy_(&(&at_target - 0.37));
        logits = logits.to_device(device);
        let (_, normalizer) = target_log_probs(&logits, &targets)?;
        log_prob_gradient(&mut logits, &normalizer, &targets, &upstream)?;
        let found = logits.to_device(Device::Cpu).to_kind(Kind::Double);
        let error = ((found - &exact).norm() / exact.norm()).double_value(&[]);
        let check = format!("gradient of a token of probability {probability}, bf16");
        report(&Finding::must(check, error, "", Bound::AtMost(0.01)))?;
    }
    Ok(())
}

/// The kernel that samples tokens against the host's sampler.
fn sampling(device: Device) -> Result<()> {
    const ROWS: i64 = 64;
    const TEMPERATURE: f64 = 0.9;
    let logits = Tensor::arange(ROWS * VOCAB, (Kind::Double, Device::Cpu)).square().sin() * 6.0;
    let logits = logits.to_kind(Kind::Float).view([ROWS, VOCAB]);
    let keys: Vec<u64> = (0..ROWS as u64).map(|row| (row + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    let expected = sample_tokens(&logits.tr().contiguous(), &keys, TEMPERATURE)?;
    let on_device = logits.to_device(device);
    let keys: Vec<i64> = keys.iter().map(|key| key.cast_signed()).collect();
    let keys = Tensor::from_slice(&keys).to_device(device);
    let tokens = Tensor::arange(VOCAB, (Kind::Double, device));
    let race = exponential_race(&on_device, &on_device.amax([1], true), &keys, &tokens, TEMPERATURE);
    report(&Finding::may_hold("kernel of sampling compiles", race.is_ok()))?;
    let race = match race {
        Ok(race) => race,
        Err(error) => return Ok(log(&error)?),
    };
    let found = Vec::<i64>::try_from(race.argmax(1, false).to_device(Device::Cpu))?;
    let equal =
        found.iter().zip(&expected).filter(|(found, expected)| **found == i64::from(expected.token)).count();
    report(&Finding::must(
        "tokens sampled as on the host",
        equal as f64,
        "of 64",
        Bound::AtLeast(ROWS as f64),
    ))?;
    Ok(())
}

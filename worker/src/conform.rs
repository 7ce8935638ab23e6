//! The worker's side of `foil conform`: runs Foil's own model on a result directory.

use std::path::Path;

use foil_common::conform::{Finding, Kind, Measured, Probe, check};
use foil_common::spec::Sampling;
use tch::{Device, Kind as Number, Tensor};

use crate::generate::{GenerateRequest, GenerationConfig, NoiseKey, generate};
use crate::model::{LanguageModel, PackedBatch, Precision, RewardModel};

/// Loads the probe's directory and computes the requested logits, completions or scores, in fp32 on the CPU.
/// An error becomes a finding.
pub fn measure(probe: &Probe) -> Measured {
    let computed = tch::no_grad(|| match probe.kind {
        Kind::Policy => policy(probe),
        Kind::Reward => reward(probe),
    });
    match computed {
        Ok(measured) => measured,
        Err(error) => Measured {
            findings: vec![Finding::failed(check::FORWARD, format!("{error:#}"))],
            ..Measured::default()
        },
    }
}

fn policy(probe: &Probe) -> anyhow::Result<Measured> {
    let model = LanguageModel::load(Path::new(&probe.directory), Device::Cpu)?;
    let rows = &probe.rows[..probe.rows.len().min(probe.logit_rows)];
    let batch = PackedBatch::from_sequences(rows, Device::Cpu)?;
    let hidden = model.forward(&batch, batch.last_rows(), Precision::Fp32)?;
    let logits = model.logits(&hidden).to_kind(Number::Float); // [rows, vocab]
    let logits = (0..rows.len() as i64).map(|row| Vec::try_from(logits.get(row)));
    let logits: Vec<Vec<f32>> = logits.collect::<Result<_, _>>()?;
    let finite = logits.iter().flatten().all(|logit| logit.is_finite());
    let greedy = greedy(&model, probe)?;
    let ended = greedy.iter().filter(|ids| ids.last().is_some_and(|id| probe.eos.contains(id))).count();
    let summary =
        format!("logits of {} rows; {ended} of {} continuations end by themselves", rows.len(), greedy.len());
    let findings = vec![forward(finite, model.parameters().count(), &summary)];
    Ok(Measured { findings, logits, greedy, scores: Vec::new() })
}

fn greedy(model: &LanguageModel, probe: &Probe) -> anyhow::Result<Vec<Vec<u32>>> {
    let prompts = probe.greedy_prompts.iter().zip(0..);
    let requests: Vec<GenerateRequest> = prompts
        .map(|(prompt, prompt_id)| GenerateRequest { prompt_id, prompt: prompt.clone(), samples: 1 })
        .collect();
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let sampling = Sampling {
        temperature: 0.0,
        max_new_tokens: probe.new_tokens,
        min_new_tokens: 0,
        ..Sampling::default()
    };
    // Greedy decoding uses no noise.
    let noise = NoiseKey { seed: 0, round: 0, purpose: "conform".to_owned() };
    let config = GenerationConfig {
        sampling: &sampling,
        eos: &probe.eos,
        vocab_size: probe.vocabulary,
        noise: &noise,
        max_num_seqs: requests.len(),
        detokenize: &|_| String::new(),
    };
    let inference = model.inference(Precision::Fp32, requests.len())?;
    let generation = generate(&inference, &requests, &config, &mut |_, _| {})?;
    Ok(generation.completions.into_iter().map(|completion| completion.tokens).collect())
}

fn reward(probe: &Probe) -> anyhow::Result<Measured> {
    let model = RewardModel::load(Path::new(&probe.directory), Device::Cpu)?;
    let batch = PackedBatch::from_sequences(&probe.rows, Device::Cpu)?;
    let scores: Tensor = model.scores(&batch, Precision::Fp32)?;
    let scores: Vec<f64> = Vec::try_from(scores.to_kind(Number::Double))?;
    let finite = scores.iter().all(|score| score.is_finite());
    let summary = format!("scores of {} rows", scores.len());
    let findings = vec![forward(finite, model.parameters().count(), &summary)];
    Ok(Measured { findings, scores, ..Measured::default() })
}

fn forward(finite: bool, parameters: usize, summary: &str) -> Finding {
    if finite {
        Finding::passed(check::FORWARD, format!("{parameters} parameters; {summary}"))
    } else {
        Finding::failed(check::FORWARD, "a result is NaN or infinite, though no weight is")
    }
}

//! Measures generation.

use std::time::Instant;

use foil_common::spec::Sampling;
use foil_worker::generate::{GenerateRequest, GenerationConfig, NoiseKey, generate};
use foil_worker::model::{LanguageModel, Precision};
use serde_json::{Value, json};

use crate::Bench;
use crate::workload::Workload;

pub(crate) struct Generation {
    model: LanguageModel,
    precision: Precision,
    sampling: Sampling,
    requests: Vec<GenerateRequest>,
    eos: Vec<u32>,
    seed: u32,
    slots: usize,
}

impl Generation {
    pub(crate) fn new(workload: &Workload) -> anyhow::Result<Self> {
        let request = |(id, prompt): (usize, &Vec<u32>)| GenerateRequest {
            prompt_id: id as u64,
            prompt: prompt.clone(),
            samples: workload.samples,
        };
        let sampling = Sampling {
            temperature: workload.temperature,
            max_new_tokens: workload.max_new,
            min_new_tokens: workload.min_new,
            ..Sampling::default()
        };
        Ok(Self {
            model: LanguageModel::load(&workload.model, workload.device()?)?,
            precision: workload.precision()?,
            sampling,
            requests: workload.prompts.iter().enumerate().map(request).collect(),
            eos: workload.eos.clone(),
            seed: workload.seed,
            slots: workload.slots,
        })
    }
}

impl Bench for Generation {
    fn run(&mut self) -> anyhow::Result<Value> {
        let started = Instant::now();
        let model = self.model.inference(self.precision, self.slots)?;
        let noise = NoiseKey { seed: self.seed, round: 0, purpose: "bench".to_owned() };
        let config = GenerationConfig {
            sampling: &self.sampling,
            eos: &self.eos,
            noise: &noise,
            max_num_seqs: self.slots,
            // Samples all ids, including padding, as the peers do.
            vocab_size: usize::MAX,
            detokenize: &|_| String::new(),
        };
        let generation = generate(&model, &self.requests, &config, &mut |_, _| ())?;
        let seconds = started.elapsed().as_secs_f64();
        let tokens: usize = generation.completions.iter().map(|completion| completion.tokens.len()).sum();
        let mut figures = json!({ "seconds": seconds, "tokens": tokens, "steps": generation.stats.steps });
        if self.sampling.temperature == 0.0 {
            let first = generation.completions.iter().filter(|completion| completion.index == 0);
            figures["tokens_out"] = first.map(|completion| json!(completion.tokens)).collect();
        }
        Ok(figures)
    }
}

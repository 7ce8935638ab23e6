//! Decoding on the CPU: each step's tokens are known before the next step begins.

use tch::{Kind, Tensor};

use super::noise::StepNoise;
use super::runner::Runner;
use super::sampler::{Context, Sampler};
use super::sequence::Active;
use super::{GenerateError, GenerationConfig, Token};
use crate::model::{Inference, KvCache};

pub(super) struct HostRunner<'a> {
    model: &'a Inference<'a>,
    sampler: Sampler<'a>,
    eos: &'a [u32],
}

impl<'a> HostRunner<'a> {
    pub(super) fn new(model: &'a Inference<'a>, config: &'a GenerationConfig<'a>) -> Self {
        let sampler = Sampler::new(config.sampling).with_vocab_size(config.vocab_size);
        Self { model, sampler, eos: config.eos }
    }

    /// Samples the next token of each sequence. `hidden`: `[sequences, hidden]`.
    ///
    /// A fused kernel samples all rows together unless a filter is set; with filters, rows are sampled one by
    /// one. The tokens are the same either way.
    fn sample(&mut self, sequences: &[Active<'_>], hidden: &Tensor) -> Result<Vec<Token>, GenerateError> {
        let contexts: Vec<Context<'_>> = sequences.iter().map(|active| active.context(self.eos)).collect();
        let noise: Vec<StepNoise> =
            sequences.iter().map(|active| active.noise.step(active.tokens.len())).collect();
        if self.sampler.is_unfiltered(self.model.config().vocab_size as usize) {
            return sample_fused(&self.model.logits_by_token(hidden)?, &self.sampler, &contexts, &noise);
        }
        sample_each(&self.model.logits(hidden).contiguous(), &mut self.sampler, &contexts, &noise)
    }
}

impl Runner for HostRunner<'_> {
    fn start(&mut self, new: &[Active<'_>], hidden: &Tensor) -> Result<Vec<Token>, GenerateError> {
        self.sample(new, hidden)
    }

    fn step(&mut self, active: &[Active<'_>], cache: &mut KvCache) -> Result<Vec<Token>, GenerateError> {
        let ids: Vec<u32> = active.iter().filter_map(|active| active.tokens.last().copied()).collect();
        let hidden = self.model.decode(&ids, cache)?;
        self.sample(active, &hidden)
    }

    fn keep(&mut self, _kept: &[usize]) -> Result<(), GenerateError> {
        Ok(())
    }
}

/// Samples all rows with one kernel. `logits`: `[vocab, rows]`, overwritten at masked tokens.
fn sample_fused(
    logits: &Tensor,
    sampler: &Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let (rows, candidates) = (logits.size()[0], sampler.candidates(logits.size()[0] as usize) as i64);
    let mut masked = mask_eos(logits, sampler, contexts)?;
    if candidates < rows {
        let padding = logits.narrow(0, candidates, rows - candidates).to_kind(Kind::Double);
        let padding = Vec::<f64>::try_from(padding.logsumexp([0], false))?;
        for (masked, padding) in masked.iter_mut().zip(padding) {
            *masked = log_add_exp(*masked, padding);
        }
    }
    let keys: Vec<u64> = noise.iter().map(|noise| noise.key()).collect();
    let sampled = foil_torch::ops::sample_tokens(
        &logits.narrow(0, 0, candidates),
        &keys,
        sampler.sampling().temperature,
    )?;
    let token = |(sampled, masked): (&foil_torch::SampledToken, &f64)| Token {
        id: sampled.token,
        log_prob: (f64::from(sampled.logit) - log_add_exp(sampled.log_sum_exp, *masked)) as f32,
    };
    Ok(sampled.iter().zip(&masked).map(token).collect())
}

/// Samples row by row. `logits`: `[rows, vocab]`, fp32, contiguous, in host memory.
pub(super) fn sample_each(
    logits: &Tensor,
    sampler: &mut Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let vocab_size = logits.size()[1].max(1) as usize;
    // A copy, because the sampler overwrites it.
    let mut rows = Vec::<f32>::try_from(logits.view(-1))?;
    let rows = rows.chunks_mut(vocab_size).zip(contexts).zip(noise);
    let ids: Vec<u32> = rows.map(|((row, context), noise)| sampler.sample(row, *context, *noise)).collect();
    let targets: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let (log_probs, _) = foil_torch::ops::target_log_probs(logits, &Tensor::from_slice(&targets))?;
    let log_probs = Vec::<f32>::try_from(log_probs)?;
    Ok(ids.into_iter().zip(log_probs).map(|(id, log_prob)| Token { id, log_prob }).collect())
}

/// Masks EOS in rows that have fewer than `min_new_tokens` tokens, and returns log Σ exp of the masked logits
/// of each row, −∞ if none. `logits`: `[vocab, rows]`.
fn mask_eos(
    logits: &Tensor,
    sampler: &Sampler<'_>,
    contexts: &[Context<'_>],
) -> Result<Vec<f64>, GenerateError> {
    let too_short: Vec<bool> =
        contexts.iter().map(|context| sampler.forbids_eos(context.completion.len())).collect();
    let mut masked = vec![f64::NEG_INFINITY; contexts.len()];
    if !too_short.contains(&true) {
        return Ok(masked);
    }
    let penalties: Vec<f32> =
        too_short.iter().map(|too_short| if *too_short { f32::NEG_INFINITY } else { 0.0 }).collect();
    let penalties = Tensor::from_slice(&penalties);
    for &eos in contexts.first().map(|context| context.eos).unwrap_or_default() {
        if (eos as usize) < sampler.candidates(logits.size()[0] as usize) {
            let eos_logits = Vec::<f64>::try_from(logits.get(eos.into()))?;
            let rows = masked.iter_mut().zip(&too_short).zip(eos_logits);
            for ((masked, _), logit) in rows.filter(|((_, too_short), _)| **too_short) {
                *masked = log_add_exp(*masked, logit);
            }
            let _ = logits.get(eos.into()).g_add_(&penalties);
        }
    }
    Ok(masked)
}

/// ln(eᵃ + eᵇ); −∞ is the logarithm of 0.
fn log_add_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    if max == f64::NEG_INFINITY { max } else { max + (-(a - b).abs()).exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::noise::NoiseKey;
    use super::super::sampler::{Context, Sampler};
    use super::{sample_each, sample_fused};

    /// The kernel samples the same tokens as the row-by-row sampler at every temperature, with ties and
    /// masked tokens.
    #[test]
    fn fused_sampling_equals_sampling_row_by_row() {
        const VOCAB_SIZE: i64 = 5003;
        const ROWS: i64 = 37;
        tch::manual_seed(11);
        let logits = Tensor::randn([VOCAB_SIZE, ROWS], (Kind::Float, Device::Cpu)) * 3.0;
        let _ = logits.narrow(0, 100, 7).fill_(f64::NEG_INFINITY);
        logits.get(4000).copy_(&logits.get(17));
        let noise = NoiseKey { seed: 3, round: 1, purpose: "test".to_owned() };
        for temperature in [0.0, 0.2, 1.0, 1.7] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling);
            for step in 0..20 {
                let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.completion(9, row).step(step)).collect();
                let keys: Vec<u64> = noise.iter().map(|noise| noise.key()).collect();
                let fused = foil_torch::ops::sample_tokens(&logits, &keys, temperature).unwrap();
                for (row, noise) in noise.iter().enumerate() {
                    let column = logits.select(1, row as i64).contiguous();
                    let mut column = Vec::<f32>::try_from(column).unwrap();
                    let empty = Context { prompt: &[], completion: &[], eos: &[] };
                    let single = sampler.sample(&mut column, empty, *noise);
                    assert_eq!(single, fused[row].token, "at {temperature}");
                }
            }
        }
    }

    /// Covers fp32 and bf16, with temperatures, filters, penalties and EOS masked in some rows.
    #[test]
    fn the_log_probability_of_a_sampled_token_is_that_of_the_raw_logits() {
        const VOCAB_SIZE: i64 = 5003;
        const ROWS: i64 = 37;
        tch::manual_seed(12);
        let noise = NoiseKey { seed: 4, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.completion(9, row).step(0)).collect();
        let prompt: Vec<u32> = (0..400).map(|token| token * 7).collect();
        // Two of the last ids, which are padding of the embeddings, have much of the probability mass.
        const CANDIDATES: usize = 4998;
        let eos = [5, 4997, 4999];
        let context = |row| Context { prompt: &prompt, completion: &prompt[..row], eos: &eos };
        let contexts: Vec<_> = (0..ROWS as usize).map(context).collect();
        let plain = Sampling { min_new_tokens: 20, ..Sampling::default() };
        let filtered =
            Sampling { temperature: 1.3, top_p: 0.9, top_k: 900, repetition_penalty: 1.3, ..plain.clone() };
        for kind in [Kind::Float, Kind::BFloat16] {
            let logits = Tensor::randn([VOCAB_SIZE, ROWS], (Kind::Float, Device::Cpu)) * 3.0 + 40.0;
            let _ = logits.narrow(0, 100, 7).fill_(f64::NEG_INFINITY);
            // In some rows a masked EOS has nearly all of the probability mass.
            let _ = logits.get(5).narrow(0, 10, 20).fill_(70.0);
            let _ = logits.narrow(0, 4999, 2).fill_(52.0);
            let logits = logits.to_kind(kind);
            let expected = logits.log_softmax(0, Kind::Double);
            for temperature in [0.0, 0.7, 1.0, 1.7] {
                for sampling in [Sampling { temperature, ..plain.clone() }, filtered.clone()] {
                    let mut sampler = Sampler::new(&sampling).with_vocab_size(CANDIDATES);
                    let sampled = match sampler.is_unfiltered(VOCAB_SIZE as usize) {
                        true => sample_fused(&logits.copy(), &sampler, &contexts, &noise),
                        false => {
                            let rows = logits.to_kind(Kind::Float).tr().contiguous();
                            sample_each(&rows, &mut sampler, &contexts, &noise)
                        }
                    };
                    for (row, token) in sampled.unwrap().into_iter().enumerate() {
                        assert!(row >= 20 || !eos.contains(&token.id), "a completion of {row} tokens ends");
                        assert!((token.id as usize) < CANDIDATES, "padding is sampled");
                        let expected = expected.double_value(&[token.id.into(), row as i64]);
                        let distance = (f64::from(token.log_prob) - expected).abs();
                        assert!(distance < 2e-5, "{distance} at row {row} of {sampling:?}");
                    }
                }
            }
        }
    }
}

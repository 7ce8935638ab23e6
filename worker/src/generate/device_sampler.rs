//! The sampler of [`super::sampler`] as tensor operations on all rows together. With logits on an
//! accelerator, only the sampled tokens and their log-probabilities are copied to the host.

use foil_common::memory::MAX_SAMPLED_LOGITS;
use foil_common::spec::Sampling;
use foil_torch::Numbers;
use tch::{Kind, Tensor};

use super::noise::complements;
use super::sampler::Context;
use super::{GenerateError, Token};

/// Samples one token for each row, from the first `candidates` ids. `logits`: `[rows, vocab]`, fp32.
///
/// Samples the same tokens as the host's sampler, unless two candidates are within fp64 rounding of each
/// other.
pub(super) fn sample_on_device(
    logits: &Tensor,
    candidates: usize,
    sampling: &Sampling,
    contexts: &[Context<'_>],
    noise_keys: &Tensor,
) -> Result<Vec<Token>, GenerateError> {
    let vocab_size = logits.size()[1].max(1) as usize;
    let rows = (MAX_SAMPLED_LOGITS as usize / vocab_size).max(1);
    let mut pairs = Vec::new();
    for (part, contexts) in contexts.chunks(rows).enumerate() {
        let of_part = |tensor: &Tensor| tensor.narrow(0, (part * rows) as i64, contexts.len() as i64);
        let (logits, noise_keys) = (of_part(logits), of_part(noise_keys));
        let penalized = apply_penalties(&logits.narrow(1, 0, candidates as i64), sampling, contexts)?;
        let ids = choose(&penalized, sampling, &noise_keys).unsqueeze(1);
        let log_sum_exp = logits.to_kind(Kind::Double).logsumexp([1], true);
        let log_probs = logits.gather(1, &ids, false).to_kind(Kind::Double) - log_sum_exp;
        pairs.push(Tensor::cat(&[ids.to_kind(Kind::Double), log_probs], 1));
    }
    // One tensor, so that the host waits once; fp64 holds every token id.
    let pairs = Vec::<f64>::try_from(Tensor::cat(&pairs, 0).to_device(tch::Device::Cpu).view(-1))?;
    Ok(pairs.chunks(2).map(|token| Token { id: token[0] as u32, log_prob: token[1] as f32 }).collect())
}

/// The token of each row, `[rows]`: argmax of the logits at temperature 0, else argmin of −ln(u)/p, as in
/// [`super::sampler`].
fn choose(logits: &Tensor, sampling: &Sampling, noise_keys: &Tensor) -> Tensor {
    if sampling.temperature == 0.0 {
        // Takes the first of equal logits, as on the host.
        return logits.argmax(1, false);
    }
    let vocab_size = logits.size()[1];
    let logits = logits.to_kind(Kind::Double);
    let weights = ((&logits - logits.amax([1], true)) / sampling.temperature).exp();
    let weights = keep_top_p(keep_top_k(weights, &logits, sampling.top_k as i64), sampling.top_p);
    let times = -(-complements(noise_keys, vocab_size)).log1p() / weights;
    times.argmin(1, false)
}

/// The logits after repetition penalty and minimum length.
fn apply_penalties(
    logits: &Tensor,
    sampling: &Sampling,
    contexts: &[Context<'_>],
) -> foil_torch::Result<Tensor> {
    let penalty = sampling.repetition_penalty;
    let mut logits = logits.shallow_clone();
    if penalty != 1.0 {
        let seen = token_mask(&logits, contexts, |context| {
            context.prompt.iter().chain(context.completion).copied().collect()
        })?;
        let penalized = logits.where_self(&logits.ge(0.0), &(&logits * penalty));
        let penalized = penalized.where_self(&logits.lt(0.0), &(&logits / penalty));
        logits = penalized.where_self(&seen, &logits);
    }
    let forbids_eos = |context: &Context<'_>| context.completion.len() < sampling.min_new_tokens;
    if contexts.iter().any(forbids_eos) {
        let banned = token_mask(&logits, contexts, |context| match forbids_eos(context) {
            true => context.eos.to_vec(),
            false => Vec::new(),
        })?;
        logits = logits.masked_fill(&banned, f64::NEG_INFINITY);
    }
    Ok(logits)
}

/// A mask that is true at the token ids of each row, `[rows, vocab]`; ids outside the vocabulary are ignored.
fn token_mask(
    logits: &Tensor,
    contexts: &[Context<'_>],
    ids: impl Fn(&Context<'_>) -> Vec<u32>,
) -> foil_torch::Result<Tensor> {
    let (rows, vocab_size) = (contexts.len(), logits.size()[1]);
    let ids: Vec<Vec<u32>> = contexts.iter().map(ids).collect();
    let max_len = ids.iter().map(Vec::len).max().unwrap_or(0);
    // The extra column receives the padding.
    let padded = ids.iter().flat_map(|ids| {
        let own = ids.iter().map(|&id| i64::from(id).min(vocab_size));
        own.chain(std::iter::repeat(vocab_size)).take(max_len)
    });
    let padded = foil_torch::upload(&[Numbers::Int64(padded.collect())], logits.device())?.remove(0);
    let mask = Tensor::zeros([rows as i64, vocab_size + 1], (Kind::Bool, logits.device()));
    let padded = padded.view([rows as i64, max_len as i64]);
    Ok(mask.scatter_value(1, &padded, 1).narrow(1, 0, vocab_size))
}

/// Keeps the k largest logits of each row and any that equal the k-th.
fn keep_top_k(weights: Tensor, logits: &Tensor, k: i64) -> Tensor {
    if !(1..logits.size()[1]).contains(&k) {
        return weights;
    }
    let (top, _) = logits.topk(k, 1, true, true);
    weights.masked_fill(&logits.lt_tensor(&top.narrow(1, k - 1, 1)), 0.0)
}

/// Drops the least likely tokens while their sum stays within 1 − p; of equals, the lower ids go first. One
/// token always remains.
fn keep_top_p(weights: Tensor, p: f64) -> Tensor {
    if p >= 1.0 {
        return weights;
    }
    let vocab_size = weights.size()[1];
    let (ascending, order) = weights.sort_stable(true, 1, false);
    let sums = ascending.cumsum(1, Kind::Double);
    let spare = sums.narrow(1, vocab_size - 1, 1) * (1.0 - p);
    let dropped = sums.le_tensor(&spare);
    let _ = dropped.narrow(1, vocab_size - 1, 1).fill_(0);
    let dropped = dropped.zeros_like().scatter(1, &order, &dropped);
    weights.masked_fill(&dropped, 0.0)
}

#[cfg(test)]
mod tests {
    use foil_common::memory::sampling_memory;
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::noise::{NoiseKey, StepNoise, noise_keys};
    use super::super::sample::sample_each;
    use super::super::sampler::{Context, Sampler};
    use super::sample_on_device;

    const VOCAB_SIZE: i64 = 3001;
    /// The last ids are padding of the embeddings.
    const CANDIDATES: usize = 2990;
    const ROWS: usize = 23;

    fn sampler(sampling: &Sampling) -> Sampler<'_> {
        Sampler::new(sampling).with_vocab_size(CANDIDATES)
    }

    fn keys(noise: &[StepNoise]) -> Tensor {
        foil_torch::upload(&[noise_keys(noise)], Device::Cpu).unwrap().remove(0)
    }

    /// Logits with ties and tokens of probability 0.
    fn logits() -> Tensor {
        let logits = Tensor::randn([ROWS as i64, VOCAB_SIZE], (Kind::Float, Device::Cpu)) * 3.0;
        let _ = logits.narrow(1, 100, 7).fill_(f64::NEG_INFINITY);
        logits.narrow(1, 2000, 500).copy_(&logits.narrow(1, 500, 500));
        logits
    }

    #[test]
    fn the_device_sampler_gives_the_tokens_of_the_host_sampler() {
        tch::manual_seed(21);
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".to_owned() };
        let prompt: Vec<u32> = (0..400).map(|token| token * 11).collect();
        let eos = [5, 2999, 4000];
        let context = |row| Context { prompt: &prompt, completion: &prompt[..row], eos: &eos };
        let contexts: Vec<_> = (0..ROWS).map(context).collect();
        let plain = Sampling::default();
        let cases = [
            plain.clone(),
            Sampling { min_new_tokens: 12, ..plain.clone() },
            Sampling { repetition_penalty: 1.7, ..plain.clone() },
            Sampling { top_k: 1, ..plain.clone() },
            Sampling { top_k: 40, ..plain.clone() },
            Sampling { top_k: 90_000, ..plain.clone() },
            Sampling { top_p: 0.9, ..plain.clone() },
            Sampling { top_p: 1e-9, ..plain.clone() },
            Sampling { top_k: 900, top_p: 0.95, repetition_penalty: 0.8, min_new_tokens: 12, ..plain },
        ];
        for case in cases {
            for temperature in [0.0, 0.3, 1.0, 1.7] {
                let sampling = Sampling { temperature, ..case.clone() };
                for step in 0..5 {
                    let noise: Vec<_> =
                        (0..ROWS as u32).map(|row| noise.completion(2, row).step(step)).collect();
                    let logits = logits();
                    let expected = sample_each(&logits, &mut sampler(&sampling), &contexts, &noise).unwrap();
                    let sampled =
                        sample_on_device(&logits, CANDIDATES, &sampling, &contexts, &keys(&noise)).unwrap();
                    for (sampled, expected) in sampled.iter().zip(&expected) {
                        assert_eq!(sampled.id, expected.id, "{sampling:?}");
                        assert!((sampled.id as usize) < CANDIDATES, "{sampling:?}");
                        assert!((sampled.log_prob - expected.log_prob).abs() < 1e-5, "{sampling:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn sampling_takes_no_more_memory_than_is_estimated() {
        let sampling = Sampling { top_k: 900, top_p: 0.9, ..Sampling::default() };
        let logits = logits();
        let noise = NoiseKey { seed: 7, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.completion(2, row).step(0)).collect();
        let contexts = [Context { prompt: &[], completion: &[], eos: &[] }; ROWS];
        let memory = foil_torch::CpuMemory::count().unwrap();
        sample_on_device(&logits, VOCAB_SIZE as usize, &sampling, &contexts, &keys(&noise)).unwrap();
        let (peak, estimate) = (memory.peak(), sampling_memory(logits.numel() as u64));
        assert!(peak <= estimate && peak * 10 >= estimate * 7, "{peak} of {estimate} bytes");
    }

    #[test]
    fn rows_of_a_large_vocabulary_are_sampled_in_parts() {
        const LARGE: i64 = 1 << 21;
        tch::manual_seed(22);
        let sampling = Sampling::default();
        let logits = Tensor::randn([6, LARGE], (Kind::Float, Device::Cpu));
        let noise = NoiseKey { seed: 6, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..6).map(|row| noise.completion(2, row).step(0)).collect();
        let contexts = vec![Context { prompt: &[], completion: &[], eos: &[] }; 6];
        let expected = sample_each(&logits, &mut Sampler::new(&sampling), &contexts, &noise).unwrap();
        let sampled = sample_on_device(&logits, LARGE as usize, &sampling, &contexts, &keys(&noise)).unwrap();
        let ids = |tokens: &[super::Token]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(&sampled), ids(&expected));
    }
}

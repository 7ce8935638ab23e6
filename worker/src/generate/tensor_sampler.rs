//! The sampler of [`super::sampler`] in tensor operations, all rows at once: where logits lie on a device, nothing but
//! the drawn tokens and their log-probabilities crosses to the host.

use foil_common::memory::DRAWN_LOGITS;
use foil_common::spec::Sampling;
use tch::{Kind, Tensor};

use super::noise::{StepNoise, complements};
use super::sampler::Context;
use super::{GenerateError, Token};

/// Draws one token for each row, of the first `drawable` ids. `logits`: `[rows, vocab]`, fp32.
///
/// The same tokens as the host's sampler, but where two candidates lie within fp64 rounding of each other.
pub(super) fn draw_tensors(
    logits: &Tensor,
    drawable: usize,
    sampling: &Sampling,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let vocabulary = logits.size()[1].max(1) as usize;
    let rows = (DRAWN_LOGITS as usize / vocabulary).max(1);
    let mut drawn = Vec::with_capacity(contexts.len());
    for (part, (contexts, noise)) in contexts.chunks(rows).zip(noise.chunks(rows)).enumerate() {
        let logits = logits.narrow(0, (part * rows) as i64, contexts.len() as i64);
        let candidates = logits.narrow(1, 0, drawable as i64);
        let ids = choose(&penalised(&candidates, sampling, contexts), sampling, noise).unsqueeze(1);
        let log_sum_exp = logits.to_kind(Kind::Double).logsumexp([1], true);
        let log_probs = logits.gather(1, &ids, false).to_kind(Kind::Double) - log_sum_exp;
        // One tensor, so that the host waits once; fp64 holds every token id.
        let told = Tensor::cat(&[ids.to_kind(Kind::Double), log_probs], 1).to_device(tch::Device::Cpu);
        let told = Vec::<f64>::try_from(told.view(-1))?;
        drawn.extend(told.chunks(2).map(|token| Token { id: token[0] as u32, log_prob: token[1] as f32 }));
    }
    Ok(drawn)
}

/// The token of each row, `[rows]`: of the greatest logit at temperature 0, else the winner of the race of
/// `super::sampler`, of the least −ln(u)/p.
fn choose(logits: &Tensor, sampling: &Sampling, noise: &[StepNoise]) -> Tensor {
    if sampling.temperature == 0.0 {
        // Of equals the first, as on the host.
        return logits.argmax(1, false);
    }
    let vocabulary = logits.size()[1];
    let logits = logits.to_kind(Kind::Double);
    let weights = ((&logits - logits.amax([1], true)) / sampling.temperature).exp();
    let weights = keep_top_p(keep_top_k(weights, &logits, sampling.top_k as i64), sampling.top_p);
    let times = -(-complements(noise, vocabulary, logits.device())).log1p() / weights;
    times.argmin(1, false)
}

/// The logits after repetition penalty and least length.
fn penalised(logits: &Tensor, sampling: &Sampling, contexts: &[Context<'_>]) -> Tensor {
    let penalty = sampling.repetition_penalty;
    let mut logits = logits.shallow_clone();
    if penalty != 1.0 {
        let seen = marked(&logits, contexts, |context| {
            context.prompt.iter().chain(context.answer).copied().collect()
        });
        let changed = logits.where_self(&logits.ge(0.0), &(&logits * penalty));
        let changed = changed.where_self(&logits.lt(0.0), &(&logits / penalty));
        logits = changed.where_self(&seen, &logits);
    }
    let must_go_on = |context: &Context<'_>| context.answer.len() < sampling.min_new_tokens;
    if contexts.iter().any(must_go_on) {
        let barred = marked(&logits, contexts, |context| match must_go_on(context) {
            true => context.eos.to_vec(),
            false => Vec::new(),
        });
        logits = logits.masked_fill(&barred, f64::NEG_INFINITY);
    }
    logits
}

/// True at the token ids of each row, `[rows, vocab]`; ids beyond the vocabulary are passed over.
fn marked(logits: &Tensor, contexts: &[Context<'_>], ids: impl Fn(&Context<'_>) -> Vec<u32>) -> Tensor {
    let (rows, vocabulary) = (contexts.len(), logits.size()[1]);
    let ids: Vec<Vec<u32>> = contexts.iter().map(ids).collect();
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    // One column more takes the padding.
    let padded = ids.iter().flat_map(|ids| {
        let own = ids.iter().map(|&id| i64::from(id).min(vocabulary));
        own.chain(std::iter::repeat(vocabulary)).take(longest)
    });
    let padded = Tensor::from_slice(&padded.collect::<Vec<i64>>()).to_device(logits.device());
    let mask = Tensor::zeros([rows as i64, vocabulary + 1], (Kind::Bool, logits.device()));
    mask.scatter_value(1, &padded.view([rows as i64, longest as i64]), 1).narrow(1, 0, vocabulary)
}

/// Keeps the k greatest of each row and what equals the k-th.
fn keep_top_k(weights: Tensor, logits: &Tensor, k: i64) -> Tensor {
    if !(1..logits.size()[1]).contains(&k) {
        return weights;
    }
    let (greatest, _) = logits.topk(k, 1, true, true);
    weights.masked_fill(&logits.lt_tensor(&greatest.narrow(1, k - 1, 1)), 0.0)
}

/// Drops the least likely tokens whose sum stays within 1 − p; of equals the lower ids go first. One always stays.
fn keep_top_p(weights: Tensor, p: f64) -> Tensor {
    if p >= 1.0 {
        return weights;
    }
    let vocabulary = weights.size()[1];
    let (ascending, order) = weights.sort_stable(true, 1, false);
    let sums = ascending.cumsum(1, Kind::Double);
    let spare = sums.narrow(1, vocabulary - 1, 1) * (1.0 - p);
    let dropped = sums.le_tensor(&spare);
    let _ = dropped.narrow(1, vocabulary - 1, 1).fill_(0);
    let dropped = dropped.zeros_like().scatter(1, &order, &dropped);
    weights.masked_fill(&dropped, 0.0)
}

#[cfg(test)]
mod tests {
    use foil_common::memory::drawing;
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::draw::draw_each;
    use super::super::noise::NoiseKey;
    use super::super::sampler::{Context, Sampler};
    use super::draw_tensors;

    const VOCABULARY: i64 = 3001;
    /// The last ids are padding of the embeddings.
    const DRAWABLE: usize = 2990;
    const ROWS: usize = 23;

    fn sampler(sampling: &Sampling) -> Sampler<'_> {
        Sampler::new(sampling).within(DRAWABLE)
    }

    /// Logits with ties and tokens of no probability.
    fn logits() -> Tensor {
        let logits = Tensor::randn([ROWS as i64, VOCABULARY], (Kind::Float, Device::Cpu)) * 3.0;
        let _ = logits.narrow(1, 100, 7).fill_(f64::NEG_INFINITY);
        logits.narrow(1, 2000, 500).copy_(&logits.narrow(1, 500, 500));
        logits
    }

    #[test]
    fn tensors_draw_the_tokens_that_the_sampler_draws_row_by_row() {
        tch::manual_seed(21);
        let noise = NoiseKey { seed: 5, round: 1, purpose: "test".to_owned() };
        let prompt: Vec<u32> = (0..400).map(|token| token * 11).collect();
        let eos = [5, 2999, 4000];
        let context = |row| Context { prompt: &prompt, answer: &prompt[..row], eos: &eos };
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
                    let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.sample(2, row).step(step)).collect();
                    let logits = logits();
                    let expected = draw_each(&logits, &mut sampler(&sampling), &contexts, &noise).unwrap();
                    let drawn = draw_tensors(&logits, DRAWABLE, &sampling, &contexts, &noise).unwrap();
                    for (drawn, expected) in drawn.iter().zip(&expected) {
                        assert_eq!(drawn.id, expected.id, "{sampling:?}");
                        assert!((drawn.id as usize) < DRAWABLE, "{sampling:?}");
                        assert!((drawn.log_prob - expected.log_prob).abs() < 1e-5, "{sampling:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_draw_takes_no_more_memory_than_is_foretold() {
        let sampling = Sampling { top_k: 900, top_p: 0.9, ..Sampling::default() };
        let logits = logits();
        let noise = NoiseKey { seed: 7, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.sample(2, row).step(0)).collect();
        let contexts = [Context { prompt: &[], answer: &[], eos: &[] }; ROWS];
        let memory = foil_torch::CpuMemory::count().unwrap();
        draw_tensors(&logits, VOCABULARY as usize, &sampling, &contexts, &noise).unwrap();
        let (peak, foretold) = (memory.peak(), drawing(logits.numel() as u64));
        assert!(peak <= foretold && peak * 10 >= foretold * 7, "{peak} of {foretold} bytes");
    }

    #[test]
    fn rows_of_a_large_vocabulary_are_drawn_part_by_part() {
        const LARGE: i64 = 1 << 21;
        tch::manual_seed(22);
        let sampling = Sampling::default();
        let logits = Tensor::randn([6, LARGE], (Kind::Float, Device::Cpu));
        let noise = NoiseKey { seed: 6, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..6).map(|row| noise.sample(2, row).step(0)).collect();
        let contexts = vec![Context { prompt: &[], answer: &[], eos: &[] }; 6];
        let expected = draw_each(&logits, &mut Sampler::new(&sampling), &contexts, &noise).unwrap();
        let drawn = draw_tensors(&logits, LARGE as usize, &sampling, &contexts, &noise).unwrap();
        let ids = |tokens: &[super::Token]| tokens.iter().map(|token| token.id).collect::<Vec<_>>();
        assert_eq!(ids(&drawn), ids(&expected));
    }
}

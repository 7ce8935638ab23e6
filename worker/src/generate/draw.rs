//! The next token of many sequences at once, and its log-probability.

use tch::{Device, Kind, Tensor};

use super::noise::StepNoise;
use super::sampler::{Context, Sampler};
use super::tensor_sampler::draw_tensors;
use super::{GenerateError, Token};
use crate::model::Inference;

/// Draws one token for each row of `hidden`, `[rows, hidden]`.
///
/// On a device, all rows are drawn there together. On the CPU, draws that no filter touches are made for all rows together
/// by a kernel; others one row after the other. A row's token is the same either way.
pub(super) fn draw(
    model: &Inference<'_>,
    hidden: &Tensor,
    sampler: &mut Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let vocabulary = model.config().vocab_size as usize;
    if model.device() != Device::Cpu {
        let drawable = sampler.drawable(vocabulary);
        return draw_tensors(&model.logits(hidden), drawable, sampler.sampling(), contexts, noise);
    }
    if sampler.is_plain(vocabulary) {
        return draw_together(&model.logits_by_token(hidden)?, sampler, contexts, noise);
    }
    draw_each(&model.logits(hidden).contiguous(), sampler, contexts, noise)
}

/// `logits`: `[vocab, rows]`, which are changed.
fn draw_together(
    logits: &Tensor,
    sampler: &Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let (rows, drawable) = (logits.size()[0], sampler.drawable(logits.size()[0] as usize) as i64);
    let mut forbidden = forbid_ends(logits, sampler, contexts)?;
    if drawable < rows {
        let padding = logits.narrow(0, drawable, rows - drawable).to_kind(Kind::Double);
        let padding = Vec::<f64>::try_from(padding.logsumexp([0], false))?;
        for (forbidden, padding) in forbidden.iter_mut().zip(padding) {
            *forbidden = log_add_exp(*forbidden, padding);
        }
    }
    let keys: Vec<u64> = noise.iter().map(|noise| noise.key()).collect();
    let candidates = logits.narrow(0, 0, drawable);
    let drawn = foil_torch::ops::sample_tokens(&candidates, &keys, sampler.sampling().temperature)?;
    let token = |(drawn, forbidden): (&foil_torch::SampledToken, &f64)| Token {
        id: drawn.token,
        log_prob: (f64::from(drawn.logit) - log_add_exp(drawn.log_sum_exp, *forbidden)) as f32,
    };
    Ok(drawn.iter().zip(&forbidden).map(token).collect())
}

/// `logits`: `[rows, vocab]`, fp32, contiguous, in host memory.
pub(super) fn draw_each(
    logits: &Tensor,
    sampler: &mut Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<Token>, GenerateError> {
    let vocabulary = logits.size()[1].max(1) as usize;
    // The sampler changes a copy.
    let mut rows = Vec::<f32>::try_from(logits.view(-1))?;
    let rows = rows.chunks_mut(vocabulary).zip(contexts).zip(noise);
    let ids: Vec<u32> = rows.map(|((row, context), noise)| sampler.draw(row, *context, *noise)).collect();
    let targets: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let (log_probs, _) = foil_torch::ops::target_log_probs(logits, &Tensor::from_slice(&targets))?;
    let log_probs = Vec::<f32>::try_from(log_probs)?;
    Ok(ids.into_iter().zip(log_probs).map(|(id, log_prob)| Token { id, log_prob }).collect())
}

/// Rules out the end of answers that are too short yet; gives log Σ exp of what it has taken from each row's candidates, −∞
/// for nothing. `logits`: `[vocab, rows]`.
fn forbid_ends(
    logits: &Tensor,
    sampler: &Sampler<'_>,
    contexts: &[Context<'_>],
) -> Result<Vec<f64>, GenerateError> {
    let barred: Vec<bool> = contexts.iter().map(|context| sampler.must_go_on(context.answer.len())).collect();
    let mut taken = vec![f64::NEG_INFINITY; contexts.len()];
    if !barred.contains(&true) {
        return Ok(taken);
    }
    let penalties: Vec<f32> =
        barred.iter().map(|barred| if *barred { f32::NEG_INFINITY } else { 0.0 }).collect();
    let penalties = Tensor::from_slice(&penalties);
    for &end in contexts.first().map(|context| context.eos).unwrap_or_default() {
        if (end as usize) < sampler.drawable(logits.size()[0] as usize) {
            let of_end = Vec::<f64>::try_from(logits.get(end.into()))?;
            let rows = taken.iter_mut().zip(&barred).zip(of_end);
            for ((taken, _), logit) in rows.filter(|((_, barred), _)| **barred) {
                *taken = log_add_exp(*taken, logit);
            }
            let _ = logits.get(end.into()).g_add_(&penalties);
        }
    }
    Ok(taken)
}

/// ln(eᵃ + eᵇ), where −∞ stands for nothing.
fn log_add_exp(a: f64, b: f64) -> f64 {
    let greatest = a.max(b);
    if greatest == f64::NEG_INFINITY { greatest } else { greatest + (-(a - b).abs()).exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::noise::NoiseKey;
    use super::super::sampler::{Context, Sampler};
    use super::{draw_each, draw_together};

    /// The kernel draws for all rows what the sampler draws for each: every temperature, ties, forbidden tokens.
    #[test]
    fn rows_drawn_together_are_those_drawn_alone() {
        const VOCABULARY: i64 = 5003;
        const ROWS: i64 = 37;
        tch::manual_seed(11);
        let logits = Tensor::randn([VOCABULARY, ROWS], (Kind::Float, Device::Cpu)) * 3.0;
        let _ = logits.narrow(0, 100, 7).fill_(f64::NEG_INFINITY);
        logits.get(4000).copy_(&logits.get(17));
        let noise = NoiseKey { seed: 3, round: 1, purpose: "test".to_owned() };
        for temperature in [0.0, 0.2, 1.0, 1.7] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling);
            for step in 0..20 {
                let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.sample(9, row).step(step)).collect();
                let keys: Vec<u64> = noise.iter().map(|noise| noise.key()).collect();
                let together = foil_torch::ops::sample_tokens(&logits, &keys, temperature).unwrap();
                for (row, noise) in noise.iter().enumerate() {
                    let column = logits.select(1, row as i64).contiguous();
                    let mut column = Vec::<f32>::try_from(column).unwrap();
                    let nothing = Context { prompt: &[], answer: &[], eos: &[] };
                    let alone = sampler.draw(&mut column, nothing, *noise);
                    assert_eq!(alone, together[row].token, "at {temperature}");
                }
            }
        }
    }

    /// In fp32 and bf16, whatever is drawn by: a temperature, filters, penalties, ends that are forbidden in some rows.
    #[test]
    fn a_drawn_token_has_the_log_probability_that_the_raw_logits_give_it() {
        const VOCABULARY: i64 = 5003;
        const ROWS: i64 = 37;
        tch::manual_seed(12);
        let noise = NoiseKey { seed: 4, round: 1, purpose: "test".to_owned() };
        let noise: Vec<_> = (0..ROWS as u32).map(|row| noise.sample(9, row).step(0)).collect();
        let prompt: Vec<u32> = (0..400).map(|token| token * 7).collect();
        // Of the last ids, padding of the embeddings, two have much of the probability.
        const DRAWABLE: usize = 4998;
        let eos = [5, 4997, 4999];
        let context = |row| Context { prompt: &prompt, answer: &prompt[..row], eos: &eos };
        let contexts: Vec<_> = (0..ROWS as usize).map(context).collect();
        let plain = Sampling { min_new_tokens: 20, ..Sampling::default() };
        let filtered =
            Sampling { temperature: 1.3, top_p: 0.9, top_k: 900, repetition_penalty: 1.3, ..plain.clone() };
        for kind in [Kind::Float, Kind::BFloat16] {
            let logits = Tensor::randn([VOCABULARY, ROWS], (Kind::Float, Device::Cpu)) * 3.0 + 40.0;
            let _ = logits.narrow(0, 100, 7).fill_(f64::NEG_INFINITY);
            // In some rows an end that is forbidden has nearly all the probability.
            let _ = logits.get(5).narrow(0, 10, 20).fill_(70.0);
            let _ = logits.narrow(0, 4999, 2).fill_(52.0);
            let logits = logits.to_kind(kind);
            let expected = logits.log_softmax(0, Kind::Double);
            for temperature in [0.0, 0.7, 1.0, 1.7] {
                for sampling in [Sampling { temperature, ..plain.clone() }, filtered.clone()] {
                    let mut sampler = Sampler::new(&sampling).within(DRAWABLE);
                    let drawn = match sampler.is_plain(VOCABULARY as usize) {
                        true => draw_together(&logits.copy(), &sampler, &contexts, &noise),
                        false => {
                            let rows = logits.to_kind(Kind::Float).tr().contiguous();
                            draw_each(&rows, &mut sampler, &contexts, &noise)
                        }
                    };
                    for (row, token) in drawn.unwrap().into_iter().enumerate() {
                        assert!(row >= 20 || !eos.contains(&token.id), "an answer of {row} tokens ends");
                        assert!((token.id as usize) < DRAWABLE, "padding is drawn");
                        let expected = expected.double_value(&[token.id.into(), row as i64]);
                        let distance = (f64::from(token.log_prob) - expected).abs();
                        assert!(distance < 2e-5, "{distance} at row {row} of {sampling:?}");
                    }
                }
            }
        }
    }
}

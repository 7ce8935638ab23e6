//! The next token of many sequences at once.

use tch::{Device, Tensor};

use super::GenerateError;
use super::noise::StepNoise;
use super::sampler::{Context, Sampler};
use crate::model::Inference;

/// Draws one token for each row of `hidden`, `[rows, hidden]`.
///
/// On the CPU, draws that no filter touches are made for all rows together; others one row after the other. A row's token
/// is the same either way.
pub(super) fn draw(
    model: &Inference<'_>,
    hidden: &Tensor,
    sampler: &mut Sampler<'_>,
    contexts: &[Context<'_>],
    noise: &[StepNoise],
) -> Result<Vec<u32>, GenerateError> {
    let vocabulary = model.config().vocab_size as usize;
    if model.device() == Device::Cpu && sampler.is_plain(vocabulary) {
        let logits = model.logits_by_token(hidden)?;
        forbid_ends(&logits, sampler, contexts);
        let keys: Vec<u64> = noise.iter().map(|noise| noise.key()).collect();
        return Ok(foil_c10d::draw_tokens(&logits, &keys, sampler.temperature())?);
    }
    let logits = model.logits(hidden).to_device(Device::Cpu).contiguous();
    let mut rows = Vec::<f32>::try_from(logits.view(-1))?;
    let rows = rows.chunks_mut(vocabulary.max(1)).zip(contexts).zip(noise);
    Ok(rows.map(|((row, context), noise)| sampler.draw(row, *context, *noise)).collect())
}

/// Rules out the end of answers that are too short yet. `logits`: `[vocab, rows]`.
fn forbid_ends(logits: &Tensor, sampler: &Sampler<'_>, contexts: &[Context<'_>]) {
    let barred = |context: &Context<'_>| sampler.must_go_on(context.answer.len());
    if !contexts.iter().any(barred) {
        return;
    }
    let penalties: Vec<f32> =
        contexts.iter().map(|context| if barred(context) { f32::NEG_INFINITY } else { 0.0 }).collect();
    let penalties = Tensor::from_slice(&penalties);
    for &end in contexts.first().map(|context| context.eos).unwrap_or_default() {
        if i64::from(end) < logits.size()[0] {
            let _ = logits.get(end.into()).g_add_(&penalties);
        }
    }
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Sampling;
    use tch::{Device, Kind, Tensor};

    use super::super::noise::NoiseKey;
    use super::super::sampler::{Context, Sampler};

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
                let together = foil_c10d::draw_tokens(&logits, &keys, temperature).unwrap();
                for (row, noise) in noise.iter().enumerate() {
                    let column = logits.select(1, row as i64).contiguous();
                    let mut column = Vec::<f32>::try_from(column).unwrap();
                    let nothing = Context { prompt: &[], answer: &[], eos: &[] };
                    assert_eq!(sampler.draw(&mut column, nothing, *noise), together[row], "at {temperature}");
                }
            }
        }
    }
}

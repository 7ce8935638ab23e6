//! Drawing answers from a policy.

use foil_common::data::rows::PromptRow;
use foil_common::letters;
use foil_common::spec::{self, Gold, Sampling};
use foil_proto::v1;

use super::dialogue::Reader;
use super::models::Policy;
use crate::generate::{self, Completion, GenerateError, GenerateRequest, GenerationConfig, NoiseKey};
use crate::phase::{Chunk, Figures, PhaseError, TaskContext};

/// What to draw.
pub(in crate::phase) struct Draw<'a> {
    pub(in crate::phase) rows: &'a [PromptRow],
    pub(in crate::phase) samples: u32,
    pub(in crate::phase) sampling: &'a Sampling,
    /// Sets its noise apart from all others of the round.
    pub(in crate::phase) purpose: &'a str,
}

/// `samples` answers for each row, in the order of rows and indices.
pub(in crate::phase) fn draw(
    context: &TaskContext,
    policy: &Policy,
    chunk: &Chunk,
    draw: &Draw<'_>,
) -> Result<Vec<v1::Sample>, PhaseError> {
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &context.job };
    let requests = draw.rows.iter().map(|row| {
        let prompt = reader.prompt(row.id, &row.prompt, draw.sampling.max_new_tokens)?;
        Ok(GenerateRequest { prompt_id: row.id, prompt, samples: draw.samples })
    });
    let requests = requests.collect::<Result<Vec<_>, PhaseError>>()?;
    let noise = NoiseKey { seed: context.job.seed, round: chunk.round, purpose: draw.purpose.to_owned() };
    let config = GenerationConfig {
        sampling: draw.sampling,
        eos: policy.encoder.eos_ids(),
        vocab_size: policy.encoder.vocabulary(),
        noise: &noise,
        max_num_seqs: context.job.generation.max_num_seqs,
        detokenize: &|ids| text_of(policy, ids),
    };
    let mut progress = |done, total| context.progress(done, total, "samples");
    let slots = context.job.generation.max_num_seqs;
    let model = policy.model.inference(context.precision(), slots).map_err(GenerateError::from)?;
    let drawn = generate::generate(&model, &requests, &config, &mut progress)?;
    drawn.completions.into_iter().map(|answer| sample(policy, answer)).collect()
}

fn sample(policy: &Policy, answer: Completion) -> Result<v1::Sample, PhaseError> {
    let Completion { prompt_id, index, tokens, log_probs, finished } = answer;
    if log_probs.iter().any(|log_prob| !log_prob.is_finite()) {
        return Err(PhaseError::NonFinite { what: "a sampled token's log-probability", row: prompt_id });
    }
    let text = text_of(policy, &tokens);
    Ok(v1::Sample { prompt_id, index, tokens, text, finished, log_probs, ..Default::default() })
}

/// Tokens that a tokenizer cannot put into text (half a character at the end) leave a blank answer, which never wins.
fn text_of(policy: &Policy, ids: &[u32]) -> String {
    policy.encoder.response_text(ids).unwrap_or_default()
}

/// Fills in the gold reward where the job has one. `samples` hold `per_row` answers to each row, in order.
pub(in crate::phase) fn fill_gold(
    job: &spec::Job,
    rows: &[PromptRow],
    samples: &mut [v1::Sample],
    per_row: u32,
) {
    if job.evaluation.gold == Gold::None {
        return;
    }
    for (row, of_row) in rows.iter().zip(samples.chunks_mut(per_row.max(1) as usize)) {
        for sample in of_row {
            sample.gold = Some(letters::gold(row.prompt.last_text(), &sample.text, sample.finished));
        }
    }
}

/// What can be said of any samples.
pub(in crate::phase) fn describe(samples: &[v1::Sample]) -> Figures {
    let mut figures = Figures::default();
    for sample in samples {
        figures.push("length_mean", sample.tokens.len() as f64);
        figures.push("truncated_rate", if sample.finished { 0.0 } else { 1.0 });
        if let Some(gold) = sample.gold {
            figures.push("gold_mean", gold);
        }
        if let Some(reward) = sample.reward {
            figures.push("reward_mean", reward);
        }
    }
    for distinct in samples.iter().filter_map(|s| crate::evaluate::completion_distinct_n(&s.tokens, 2)) {
        figures.push("answer_distinct_2", distinct);
    }
    figures
}

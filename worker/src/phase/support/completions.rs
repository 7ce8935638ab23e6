//! Generation of completions, and their metrics.

use foil_common::data::rows::PromptRow;
use foil_common::letters;
use foil_common::spec::{self, Gold, Sampling};

use super::dialogue::DialogueEncoder;
use super::models::Policy;
use super::records::Sample;
use crate::evaluate::completion_distinct_n;
use crate::generate::{self, Completion, GenerateError, GenerateRequest, GenerationConfig, NoiseKey};
use crate::phase::{Metrics, PhaseError, TaskContext};

/// Completions to generate.
pub(in crate::phase) struct GenerationRequest<'a> {
    pub(in crate::phase) rows: &'a [PromptRow],
    /// Number of completions per row.
    pub(in crate::phase) samples: u32,
    pub(in crate::phase) sampling: &'a Sampling,
    pub(in crate::phase) round: u32,
    /// Separates its random numbers from others in the round.
    pub(in crate::phase) purpose: &'a str,
}

/// Generates the requested completions, in the order of rows and indices.
pub(in crate::phase) fn generate(
    context: &TaskContext,
    policy: &Policy,
    request: &GenerationRequest<'_>,
) -> Result<Vec<Sample>, PhaseError> {
    let encoder = DialogueEncoder::new(policy, &context.job);
    let requests = request.rows.iter().map(|row| {
        let prompt = encoder.encode_prompt(row.id, &row.prompt, request.sampling.max_new_tokens)?;
        Ok(GenerateRequest { prompt_id: row.id, prompt, samples: request.samples })
    });
    let requests = requests.collect::<Result<Vec<_>, PhaseError>>()?;
    let noise =
        NoiseKey { seed: context.job.seed, round: request.round, purpose: request.purpose.to_owned() };
    let config = GenerationConfig {
        sampling: request.sampling,
        eos: policy.encoder.eos_ids(),
        vocab_size: policy.encoder.vocabulary(),
        noise: &noise,
        max_num_seqs: context.job.generation.max_num_seqs,
        detokenize: &|ids| detokenize(policy, ids),
    };
    let mut progress = |done, total| context.progress(done, total, "samples");
    let max_num_seqs = context.job.generation.max_num_seqs;
    let model = policy.model.inference(context.precision(), max_num_seqs).map_err(GenerateError::from)?;
    let _span = context.reports.span("generate").with("foil.prompts", request.rows.len() as u64);
    let generation = generate::generate(&model, &requests, &config, &mut progress)?;
    generation.completions.into_iter().map(|completion| to_sample(policy, completion)).collect()
}

fn to_sample(policy: &Policy, completion: Completion) -> Result<Sample, PhaseError> {
    let Completion { prompt_id, index, tokens, log_probs, finished } = completion;
    if log_probs.iter().any(|log_prob| !log_prob.is_finite()) {
        return Err(PhaseError::NonFinite { what: "a sampled token's log-probability", row: prompt_id });
    }
    let text = detokenize(policy, &tokens);
    Ok(Sample { prompt_id, index, tokens, text, finished, log_probs, ..Default::default() })
}

/// The text of tokens; blank if they cannot be decoded (for example, if they end within a character). Blank
/// completions never win.
fn detokenize(policy: &Policy, ids: &[u32]) -> String {
    policy.encoder.response_text(ids).unwrap_or_default()
}

/// Fills in the gold reward, if the job has one. `samples` holds `per_row` completions of each row, in order.
pub(in crate::phase) fn fill_gold(job: &spec::Job, rows: &[PromptRow], samples: &mut [Sample], per_row: u32) {
    if job.evaluation.gold == Gold::None {
        return;
    }
    for (row, completions) in rows.iter().zip(samples.chunks_mut(per_row.max(1) as usize)) {
        for sample in completions {
            sample.gold = Some(letters::gold(row.prompt.last_text(), &sample.text, sample.finished));
        }
    }
}

/// Metrics of completions from any source.
pub(in crate::phase) fn metrics(samples: &[Sample]) -> Metrics {
    let mut metrics = Metrics::default();
    for sample in samples {
        metrics.push("length_mean", sample.tokens.len() as f64);
        metrics.push("truncated_rate", if sample.finished { 0.0 } else { 1.0 });
        if let Some(gold) = sample.gold {
            metrics.push("gold_mean", gold);
        }
        if let Some(reward) = sample.reward {
            metrics.push("reward_mean", reward);
        }
    }
    for distinct in samples.iter().filter_map(|s| completion_distinct_n(&s.tokens, 2)) {
        metrics.push("completion_distinct_2", distinct);
    }
    metrics
}

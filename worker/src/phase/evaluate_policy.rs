//! Evaluate a policy: its reward, its gold reward, and its divergence from the start policy.

use foil_common::data::rows::{Prompt, PromptRow};
use foil_common::failpoint;
use foil_common::spec::Sampling;
use prost::Message;

use super::support::baseline::Baselines;
use super::support::completions::{self, GenerationRequest};
use super::support::dialogue::DialogueEncoder;
use super::support::models::Policy;
use super::support::records::{Sample, SampleBatch};
use super::support::rows::StoredCompletion;
use super::support::{drift, rows};
use super::{ChunkOutput, Metrics, PhaseError, TaskContext, score};
use crate::evaluate;
use crate::evaluate::{Divergence, Diversity};
use crate::task::{Artifact, ChunkTask, EvaluatePolicy};

pub(super) fn run(
    context: &mut TaskContext,
    task: &ChunkTask,
    work: &EvaluatePolicy,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, task.rows)?;
    let policy = context.policy(&work.policy)?;

    failpoint::hit("phase.evaluate")?;
    let request = GenerationRequest {
        rows: &prompts,
        samples: 1,
        sampling: &work.sampling,
        round: task.phase.round,
        purpose: task.phase.purpose(),
    };
    let mut samples = completions::generate(context, &policy, &request)?;
    completions::fill_gold(&context.job, &prompts, &mut samples, 1);
    let mut metrics = Metrics::default();
    if let Some(reference) = &work.reference {
        fill_kl(context, task, reference, &policy, &request, &mut samples, &mut metrics)?;
    }
    let tokenizer = policy.tokenizer.clone();
    // The reward model may need the policy's memory.
    drop(policy);
    let mut baselines = Baselines::read(context, work, &prompts)?;
    if let Some(reward_model) = &work.reward_model {
        fill_rewards(context, reward_model, &prompts, &tokenizer, &mut samples, &mut baselines)?;
    }
    metrics.extend(completions::metrics(&samples));
    baselines.compare(&samples, &mut metrics);
    let metric_for_best_model = context.job.evaluation.metric_for_best_model;
    baselines.compare_halves(metric_for_best_model, work.prompts.rows, &samples, &mut metrics);
    let mut diversity = Diversity::default();
    samples.iter().for_each(|sample| diversity.push(&sample.text, &sample.tokens));

    let batch = SampleBatch {
        phase: task.phase.name.clone(),
        chunk: task.chunk,
        samples,
        tokenizer_blake3: tokenizer,
    };
    let moments = metrics.records().into_iter().chain(diversity.moments()).collect();
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments, calibration: None })
}

/// Fills in the rewards of the policy's completions and of the baselines', all from the same reward model.
fn fill_rewards(
    context: &mut TaskContext,
    reward_model: &Artifact,
    prompts: &[PromptRow],
    tokenizer: &str,
    samples: &mut [Sample],
    baselines: &mut Baselines,
) -> Result<(), PhaseError> {
    let reward_model = context.reward_model(reward_model)?;
    let own = samples
        .iter()
        .map(|sample| StoredCompletion { tokenizer: tokenizer.to_owned(), sample: sample.clone() });
    let mut completions: Vec<Vec<StoredCompletion>> = vec![own.collect()];
    completions.extend(baselines.each().map(|others| others.clone()));
    // Grouped by prompt, so that a prompt is computed once for all its completions.
    let dialogues: Vec<(&Prompt, StoredCompletion)> = prompts
        .iter()
        .enumerate()
        .flat_map(|(row, prompt)| {
            completions.iter().map(move |of_policy| (&prompt.prompt, of_policy[row].clone()))
        })
        .collect();
    let rewards = score::score_completions(context, &reward_model, &dialogues)?;
    for (row, of_prompt) in rewards.chunks(completions.len()).enumerate() {
        let targets = std::iter::once(&mut samples[row]);
        let targets = targets.chain(baselines.each().map(|others| &mut others[row].sample));
        targets.zip(of_prompt).for_each(|(sample, reward)| sample.reward = Some(*reward));
    }
    Ok(())
}

/// The exact KL(π ‖ π_ref) along completions sampled at temperature 1 without filters, on the first
/// `evaluation.kl_prompts` rows of the data set. If evaluation itself samples that way, its completions are
/// reused.
fn fill_kl(
    context: &mut TaskContext,
    task: &ChunkTask,
    reference: &Artifact,
    policy: &Policy,
    evaluated: &GenerationRequest<'_>,
    samples: &mut [Sample],
    metrics: &mut Metrics,
) -> Result<(), PhaseError> {
    let measured = context
        .job
        .evaluation
        .kl_prompts
        .saturating_sub(usize::try_from(task.rows.first).unwrap_or(usize::MAX));
    let rows = &evaluated.rows[..measured.min(evaluated.rows.len())];
    if rows.is_empty() {
        return Ok(());
    }
    let reference = context.policy(reference)?;
    let reused = evaluated.sampling.is_plain();
    let plain = Sampling {
        max_new_tokens: evaluated.sampling.max_new_tokens,
        stop: evaluated.sampling.stop.clone(),
        ..Sampling::default()
    };
    let generated;
    let visited: &[Sample] = if reused {
        &samples[..rows.len()]
    } else {
        let purpose = format!("{}.kl", evaluated.purpose);
        let request = GenerationRequest { rows, sampling: &plain, purpose: &purpose, ..*evaluated };
        generated = completions::generate(context, policy, &request)?;
        &generated
    };
    let divergences = divergences(context, policy, &reference, rows, visited)?;
    drift::measure(metrics, visited.iter().zip(divergences.iter().map(|divergence| &divergence.log_probs)))?;
    for ((sample, row), Divergence { kl, log_probs }) in samples.iter_mut().zip(rows).zip(divergences) {
        if !kl.is_finite() {
            return Err(PhaseError::NonFinite { what: "the KL divergence", row: row.id });
        }
        metrics.push("kl", kl);
        metrics.push("kl_per_token", kl / log_probs.len().max(1) as f64);
        if reused {
            sample.kl = Some(kl);
        }
    }
    Ok(())
}

/// The divergence along the completion of each row.
fn divergences(
    context: &TaskContext,
    policy: &Policy,
    reference: &Policy,
    rows: &[PromptRow],
    samples: &[Sample],
) -> Result<Vec<Divergence>, PhaseError> {
    let encoder = DialogueEncoder::new(policy, &context.job);
    let dialogues = rows.iter().zip(samples).map(|(row, sample)| {
        let max_new_tokens = context.job.evaluation.sampling.max_new_tokens;
        let mut ids = encoder.encode_prompt(row.id, &row.prompt, max_new_tokens)?;
        let start = ids.len();
        ids.extend(&sample.tokens);
        Ok((ids, start))
    });
    let dialogues = dialogues.collect::<Result<Vec<_>, PhaseError>>()?;
    let borrowed: Vec<(&[u32], usize)> =
        dialogues.iter().map(|(ids, start)| (ids.as_slice(), *start)).collect();
    let budget = context.job.policy_step.optimizer.micro_batch_tokens;
    evaluate::completion_kl(&policy.model, &reference.model, &borrowed, context.precision(), budget)
        .map_err(PhaseError::Batch)
}

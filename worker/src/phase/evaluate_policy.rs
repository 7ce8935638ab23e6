//! Evaluate a policy: its reward, its gold reward, and its divergence from the start policy.

use foil_common::data::rows::{Prompt, PromptRow};
use foil_common::spec::Sampling;
use foil_proto::v1;
use prost::Message;

use super::support::answers::{self, Draw};
use super::support::baseline::Baselines;
use super::support::dialogue::Reader;
use super::support::error::need;
use super::support::models::Policy;
use super::support::rows::Sampled;
use super::support::{drift, rows};
use super::{Chunk, ChunkOutput, Figures, PhaseError, TaskContext, score};
use crate::evaluate;
use crate::evaluate::{Divergence, Diversity};
use foil_common::failpoint;

pub(super) fn run(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::EvaluatePolicy,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, chunk.span)?;
    let sampling = Sampling::try_from(need(&work.sampling, "its sampling")?)?;
    let policy = context.policy(&work.policy)?;

    failpoint::hit("phase.evaluate")?;
    let draw = Draw { rows: &prompts, samples: 1, sampling: &sampling, purpose: chunk.purpose() };
    let mut samples = answers::draw(context, &policy, chunk, &draw)?;
    answers::fill_gold(&context.job, &prompts, &mut samples, 1);
    let mut baselines = Baselines::read(context, work, &prompts)?;
    if work.reward.is_some() {
        fill_rewards(context, &work.reward, &prompts, &policy, &mut samples, &mut baselines)?;
    }
    let mut figures = answers::describe(&samples);
    baselines.compare(&samples, &mut figures);
    let rows = work.prompts.as_ref().map_or(0, |prompts| prompts.rows);
    baselines.compare_halves(context.job.evaluation.metric_for_best_model, rows, &samples, &mut figures);
    let mut diversity = Diversity::default();
    samples.iter().for_each(|sample| diversity.push(&sample.text, &sample.tokens));
    if work.reference.is_some() {
        fill_kl(context, chunk, work, &policy, &draw, &mut samples, &mut figures)?;
    }

    let batch = v1::SampleBatch {
        phase: chunk.phase.clone(),
        chunk: chunk.number,
        samples,
        tokenizer_blake3: policy.tokenizer.clone(),
    };
    let moments = figures.to_wire().into_iter().chain(diversity.moments()).collect();
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments, calibration: None })
}

/// Fills in the rewards of the policy's completions and of the baselines', all by the same reward model.
fn fill_rewards(
    context: &mut TaskContext,
    reward: &Option<v1::Artifact>,
    prompts: &[PromptRow],
    policy: &Policy,
    samples: &mut [v1::Sample],
    baselines: &mut Baselines,
) -> Result<(), PhaseError> {
    let judge = context.judge(reward)?;
    let own =
        samples.iter().map(|sample| Sampled { tokenizer: policy.tokenizer.clone(), sample: sample.clone() });
    let mut answers: Vec<Vec<Sampled>> = vec![own.collect()];
    answers.extend(baselines.each().map(|others| others.clone()));
    // Grouped by prompt, so that a prompt is computed once for all its completions.
    let dialogues: Vec<(&Prompt, Sampled)> = prompts
        .iter()
        .enumerate()
        .flat_map(|(row, prompt)| {
            answers.iter().map(move |of_policy| (&prompt.prompt, of_policy[row].clone()))
        })
        .collect();
    let rewards = score::judge_samples(context, &judge, &dialogues)?;
    for (row, of_prompt) in rewards.chunks(answers.len()).enumerate() {
        let targets = std::iter::once(&mut samples[row]);
        let targets = targets.chain(baselines.each().map(|others| &mut others[row].sample));
        targets.zip(of_prompt).for_each(|(sample, reward)| sample.reward = Some(*reward));
    }
    Ok(())
}

/// The exact KL(π ‖ π_ref) along completions sampled at temperature 1 without filters, on the data set's first
/// `evaluation.kl_prompts` rows. If evaluation itself samples that way, its completions are used.
fn fill_kl(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::EvaluatePolicy,
    policy: &Policy,
    evaluated: &Draw<'_>,
    samples: &mut [v1::Sample],
    figures: &mut Figures,
) -> Result<(), PhaseError> {
    let measured = context
        .job
        .evaluation
        .kl_prompts
        .saturating_sub(usize::try_from(chunk.span.first).unwrap_or(usize::MAX));
    let rows = &evaluated.rows[..measured.min(evaluated.rows.len())];
    if rows.is_empty() {
        return Ok(());
    }
    let reference = context.policy(&work.reference)?;
    let reused = evaluated.sampling.is_plain();
    let plain = Sampling {
        max_new_tokens: evaluated.sampling.max_new_tokens,
        stop: evaluated.sampling.stop.clone(),
        ..Sampling::default()
    };
    let drawn;
    let visited: &[v1::Sample] = if reused {
        &samples[..rows.len()]
    } else {
        let purpose = format!("{}.kl", evaluated.purpose);
        drawn = answers::draw(
            context,
            policy,
            chunk,
            &Draw { rows, samples: 1, sampling: &plain, purpose: &purpose },
        )?;
        &drawn
    };
    let divergences = divergences(context, policy, &reference, rows, visited)?;
    drift::measure(figures, visited.iter().zip(divergences.iter().map(|divergence| &divergence.log_probs)))?;
    for ((sample, row), Divergence { kl, log_probs }) in samples.iter_mut().zip(rows).zip(divergences) {
        if !kl.is_finite() {
            return Err(PhaseError::NonFinite { what: "the KL divergence", row: row.id });
        }
        figures.push("kl", kl);
        figures.push("kl_per_token", kl / log_probs.len().max(1) as f64);
        if reused {
            sample.kl = Some(kl);
        }
    }
    Ok(())
}

/// The divergence along each row's completion.
fn divergences(
    context: &TaskContext,
    policy: &Policy,
    reference: &Policy,
    rows: &[PromptRow],
    samples: &[v1::Sample],
) -> Result<Vec<Divergence>, PhaseError> {
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &context.job };
    let dialogues = rows.iter().zip(samples).map(|(row, sample)| {
        let mut ids = reader.prompt(row.id, &row.prompt, context.job.evaluation.sampling.max_new_tokens)?;
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

//! Log-probabilities of a chunk of scored completions under the reference and under the policy that generated
//! them. They are computed once per round, so that training need not compute them in every step.

use foil_common::failpoint;
use prost::Message;

use super::support::dialogue::DialogueEncoder;
use super::support::drift;
use super::support::policy_rows::{PolicyRows, ScoredGroup};
use super::support::records::{LogProbsBatch, SampleLogProbs};
use super::{ChunkOutput, Metrics, PhaseError, TaskContext};
use crate::evaluate;
use crate::task::{Artifact, ChunkTask, RefLogProbs};
use crate::task_io::artifact_cache::fingerprint;
use crate::train::CompletionGroup;

pub(super) fn run(
    context: &mut TaskContext,
    task: &ChunkTask,
    work: &RefLogProbs,
) -> Result<ChunkOutput, PhaseError> {
    let rows = PolicyRows::read(context, &work.prompts, task.rows, &work.completions, &work.scores)?;
    let groups = rows.groups()?;
    let selected: Vec<Vec<usize>> = groups.iter().map(|group| group.selected(&context.job)).collect();

    failpoint::hit("phase.ref_log_probs")?;
    context.progress(0, selected.iter().map(Vec::len).sum(), "samples");
    let reference = log_probs(context, work.reference.as_ref(), &groups, &selected)?;
    let old_policy = match same(&work.reference, &work.old_policy) {
        true => reference.clone(),
        false => log_probs(context, work.old_policy.as_ref(), &groups, &selected)?,
    };

    let mut metrics = Metrics::default();
    for (name, log_probs) in [("ref_nll", &reference), ("old_policy_nll", &old_policy)] {
        log_probs.iter().flatten().for_each(|log_probs| metrics.push(name, mean_nll(log_probs)));
    }
    let completions = groups
        .iter()
        .zip(&selected)
        .flat_map(|(group, selected)| selected.iter().map(|&index| &group.completions[index]));
    let generated_by = if same(&work.generated_by, &work.old_policy) {
        &old_policy
    } else if same(&work.generated_by, &work.reference) {
        &reference
    } else {
        &None
    };
    let recomputed = generated_by.iter().flatten();
    drift::measure(&mut metrics, completions.clone().map(|completion| &completion.sample).zip(recomputed))?;
    let mut reference = reference.unwrap_or_default().into_iter();
    let mut old_policy = old_policy.unwrap_or_default().into_iter();
    let samples = completions.map(|completion| SampleLogProbs {
        prompt_id: completion.sample.prompt_id,
        index: completion.sample.index,
        ref_log_probs: reference.next().unwrap_or_default(),
        old_log_probs: old_policy.next().unwrap_or_default(),
    });
    let samples = samples.collect();
    let batch = LogProbsBatch { phase: task.phase.name.clone(), chunk: task.chunk, samples };
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments: metrics.records(), calibration: None })
}

/// Whether both artifacts exist and are the same policy.
fn same(a: &Option<Artifact>, b: &Option<Artifact>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if fingerprint(&a.objects) == fingerprint(&b.objects))
}

/// log p of the tokens of each selected completion under `policy`, prompt by prompt; `None` without a policy.
fn log_probs(
    context: &mut TaskContext,
    policy: Option<&Artifact>,
    groups: &[ScoredGroup<'_>],
    selected: &[Vec<usize>],
) -> Result<Option<Vec<Vec<f32>>>, PhaseError> {
    let Some(policy) = policy else { return Ok(None) };
    let policy = context.policy(policy)?;
    let encoder = DialogueEncoder::new(&policy, &context.job);
    let non_empty = groups.iter().zip(selected).filter(|(_, selected)| !selected.is_empty());
    let groups = non_empty.map(|(group, selected)| group.encode(&encoder, selected));
    let groups = groups.collect::<Result<Vec<CompletionGroup>, PhaseError>>()?;
    let budget = context.job.policy_step.optimizer.micro_batch_tokens;
    let log_probs = evaluate::completion_log_probs(&policy.model, &groups, context.precision(), budget);
    let log_probs = log_probs.map_err(PhaseError::Batch)?;
    let is_finite = |group: &[Vec<f32>]| group.iter().flatten().all(|log_prob| log_prob.is_finite());
    match groups.iter().zip(&log_probs).find(|(_, log_probs)| !is_finite(log_probs)) {
        Some((group, _)) => Err(PhaseError::NonFinite { what: "a sample's log-probability", row: group.id }),
        None => Ok(Some(log_probs.into_iter().flatten().collect())),
    }
}

/// Negative log-likelihood in nats per token. Selected completions are never empty.
fn mean_nll(log_probs: &[f32]) -> f64 {
    -log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>() / log_probs.len() as f64
}

//! Reference log-probabilities of a chunk of scored completions, and those of the policy that generated them. Computed once per
//! round, so that training need not compute them in every step.

use foil_proto::v1;
use prost::Message;

use super::support::dialogue::Reader;
use super::support::drift;
use super::support::policy_rows::{PolicyRows, ScoredGroup};
use super::{Chunk, ChunkOutput, Figures, PhaseError, TaskContext};
use crate::evaluate;
use crate::task_io::artifact_cache::fingerprint;
use crate::train::CompletionGroup;
use foil_common::failpoint;

pub(super) fn run(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::Reference,
) -> Result<ChunkOutput, PhaseError> {
    let rows = PolicyRows::read(context, &work.prompts, chunk.span, &work.samples, &work.scores)?;
    let groups = rows.groups()?;
    let selected: Vec<Vec<usize>> = groups.iter().map(|group| group.selected(&context.job)).collect();

    failpoint::hit("phase.reference")?;
    context.progress(0, selected.iter().map(Vec::len).sum(), "samples");
    let reference = log_probs(context, &work.reference, &groups, &selected)?;
    let sampler = match same(&work.reference, &work.sampler) {
        true => reference.clone(),
        false => log_probs(context, &work.sampler, &groups, &selected)?,
    };

    let mut figures = Figures::default();
    for (name, log_probs) in [("reference_nll", &reference), ("sampler_nll", &sampler)] {
        log_probs.iter().flatten().for_each(|log_probs| figures.push(name, mean_nll(log_probs)));
    }
    let kept = groups
        .iter()
        .zip(&selected)
        .flat_map(|(group, selected)| selected.iter().map(|&index| &group.completions[index]));
    let own = if same(&work.drawn_by, &work.sampler) {
        &sampler
    } else if same(&work.drawn_by, &work.reference) {
        &reference
    } else {
        &None
    };
    drift::measure(&mut figures, kept.clone().map(|sampled| &sampled.sample).zip(own.iter().flatten()))?;
    let mut of_kept = (reference.unwrap_or_default().into_iter(), sampler.unwrap_or_default().into_iter());
    let samples = kept.map(|sampled| v1::SampleLogProbs {
        prompt_id: sampled.sample.prompt_id,
        index: sampled.sample.index,
        reference: of_kept.0.next().unwrap_or_default(),
        sampler: of_kept.1.next().unwrap_or_default(),
    });
    let samples = samples.collect();
    let batch = v1::ReferenceLogProbs { phase: chunk.phase.clone(), chunk: chunk.number, samples };
    Ok(ChunkOutput { bytes: batch.encode_to_vec(), moments: figures.to_wire(), calibration: None })
}

/// Whether two artifacts are the same policy.
fn same(one: &Option<v1::Artifact>, other: &Option<v1::Artifact>) -> bool {
    matches!((one, other), (Some(a), Some(b)) if fingerprint(&a.objects) == fingerprint(&b.objects))
}

/// log p of the tokens of each selected completion under `policy`, prompt by prompt; `None` without a policy.
fn log_probs(
    context: &mut TaskContext,
    policy: &Option<v1::Artifact>,
    groups: &[ScoredGroup<'_>],
    selected: &[Vec<usize>],
) -> Result<Option<Vec<Vec<f32>>>, PhaseError> {
    if policy.is_none() {
        return Ok(None);
    }
    let policy = context.policy(policy)?;
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &context.job };
    let read = groups.iter().zip(selected).filter(|(_, selected)| !selected.is_empty());
    let groups = read.map(|(group, selected)| group.group(&reader, selected));
    let groups = groups.collect::<Result<Vec<CompletionGroup>, PhaseError>>()?;
    let budget = context.job.policy_step.optimizer.micro_batch_tokens;
    let found = evaluate::completion_log_probs(&policy.model, &groups, context.precision(), budget);
    let found = found.map_err(PhaseError::Batch)?;
    let finite = |group: &[Vec<f32>]| group.iter().flatten().all(|log_prob| log_prob.is_finite());
    match groups.iter().zip(&found).find(|(_, log_probs)| !finite(log_probs)) {
        Some((group, _)) => Err(PhaseError::NonFinite { what: "a sample's log-probability", row: group.id }),
        None => Ok(Some(found.into_iter().flatten().collect())),
    }
}

/// Negative log-likelihood in nats per token. Selected completions are never empty.
fn mean_nll(log_probs: &[f32]) -> f64 {
    -log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>() / log_probs.len() as f64
}

//! Reference: how likely a chunk of scored samples is to the policies that training compares its own with. Computed
//! once a round, where training would compute it anew in every step.

use foil_proto::v1;
use prost::Message;

use super::dialogue::Reader;
use super::models::Policy;
use super::policy_rows::{PolicyRows, ScoredAnswers, part};
use super::{Bench, Chunk, Figures, Outcome, PhaseError};
use crate::rank::cache::fingerprint;
use crate::{evaluate, failpoint};

pub(super) fn run(bench: &mut Bench, chunk: &Chunk, work: &v1::Reference) -> Result<Outcome, PhaseError> {
    let (samples, scores) = (part(&work.samples, chunk.number)?, part(&work.scores, chunk.number)?);
    let rows = PolicyRows::read(bench, &work.prompts, chunk.span, &samples, &scores)?;
    let scored = rows.scored()?;
    let read = |answers: &ScoredAnswers<'_>| answers.read(&bench.job);
    let read: Vec<Vec<usize>> = scored.iter().map(read).collect();

    failpoint::hit("phase.reference");
    let sequences = read.iter().map(Vec::len).sum();
    bench.progress(chunk, 0, sequences, "samples");
    let reference = log_probs(bench, &work.reference, &scored, &read)?;
    let sampler = match same(&work.reference, &work.sampler) {
        true => reference.clone(),
        false => log_probs(bench, &work.sampler, &scored, &read)?,
    };

    let mut figures = Figures::default();
    for (name, of_samples) in [("reference_nll", &reference), ("sampler_nll", &sampler)] {
        of_samples.iter().flatten().for_each(|log_probs| figures.push(name, mean_nll(log_probs)));
    }
    let kept = scored.iter().zip(&read).flat_map(|(answers, read)| read.iter().map(|&i| &answers.answers[i]));
    let kept = kept.zip(reference.into_iter().zip(sampler)).map(|(sampled, (reference, sampler))| {
        v1::SampleLogProbs {
            prompt_id: sampled.sample.prompt_id,
            index: sampled.sample.index,
            reference: reference.unwrap_or_default(),
            sampler: sampler.unwrap_or_default(),
        }
    });
    let batch =
        v1::ReferenceLogProbs { phase: chunk.phase.clone(), chunk: chunk.number, samples: kept.collect() };
    Ok(Outcome { bytes: batch.encode_to_vec(), moments: figures.to_wire(), calibration: None })
}

/// Two names of one policy.
fn same(reference: &Option<v1::Artifact>, sampler: &Option<v1::Artifact>) -> bool {
    matches!((reference, sampler), (Some(a), Some(b)) if fingerprint(a) == fingerprint(b))
}

/// Of each answer read, one prompt's after another's, log p of its tokens under `policy`; `None` where there is none.
fn log_probs(
    bench: &mut Bench,
    policy: &Option<v1::Artifact>,
    scored: &[ScoredAnswers<'_>],
    read: &[Vec<usize>],
) -> Result<Vec<Option<Vec<f32>>>, PhaseError> {
    if policy.is_none() {
        return Ok(vec![None; read.iter().map(Vec::len).sum()]);
    }
    let policy = bench.policy(policy)?;
    let dialogues = dialogues(bench, &policy, scored, read)?;
    let borrowed: Vec<(&[u32], usize)> =
        dialogues.iter().map(|dialogue| (dialogue.ids.as_slice(), dialogue.answer_start)).collect();
    let budget = bench.job.policy_step.optimizer.micro_batch_tokens;
    let found = evaluate::answer_log_probs(&policy.model, &borrowed, bench.precision(), budget);
    let found = found.map_err(PhaseError::Batch)?;
    for (log_probs, dialogue) in found.iter().zip(&dialogues) {
        if !log_probs.iter().all(|log_prob| log_prob.is_finite()) {
            return Err(PhaseError::NonFinite { what: "a sample's log-probability", row: dialogue.row });
        }
    }
    Ok(found.into_iter().map(Some).collect())
}

struct Dialogue {
    row: u64,
    ids: Vec<u32>,
    answer_start: usize,
}

fn dialogues(
    bench: &Bench,
    policy: &Policy,
    scored: &[ScoredAnswers<'_>],
    read: &[Vec<usize>],
) -> Result<Vec<Dialogue>, PhaseError> {
    let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &bench.job };
    let mut dialogues = Vec::new();
    for (answers, read) in scored.iter().zip(read) {
        let prompt = answers.prompt_ids(&reader)?;
        dialogues.extend(read.iter().map(|&answer| Dialogue {
            row: answers.row,
            ids: [prompt.as_slice(), &answers.answers[answer].sample.tokens].concat(),
            answer_start: prompt.len(),
        }));
    }
    Ok(dialogues)
}

/// Nats per token; an answer that is read has tokens.
fn mean_nll(log_probs: &[f32]) -> f64 {
    -log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>() / log_probs.len() as f64
}

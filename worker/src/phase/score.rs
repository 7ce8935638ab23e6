//! Score: rewards of a chunk of completions.

use std::collections::BTreeMap;

use foil_common::data::rows::Prompt;
use foil_proto::v1;
use prost::Message;

use super::support::dialogue::{Candidate, Reader};
use super::support::error::{need, samples_error};
use super::support::models::Judge;
use super::support::rows;
use super::support::rows::Sampled;
use super::{Chunk, ChunkOutput, Figures, PhaseError, TaskContext};
use crate::evaluate;
use foil_common::failpoint;

pub(super) fn run(
    context: &mut TaskContext,
    chunk: &Chunk,
    work: &v1::Score,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, chunk.span)?;
    let prompts: BTreeMap<u64, &Prompt> = prompts.iter().map(|row| (row.id, &row.prompt)).collect();
    let object = need(&work.samples, "samples")?.objects.first();
    let object = object.ok_or(PhaseError::Incomplete("the chunk's samples"))?;
    let batch = rows::read_batch(&mut context.cache, object)?;
    let judge = context.judge(&work.reward)?;

    failpoint::hit("phase.score")?;
    let dialogues = batch.samples.into_iter().map(|sample| {
        let missing =
            || samples_error(object, format!("sample of row {} is not in this chunk", sample.prompt_id));
        let prompt = *prompts.get(&sample.prompt_id).ok_or_else(missing)?;
        Ok((prompt, Sampled { tokenizer: batch.tokenizer_blake3.clone(), sample }))
    });
    let dialogues = dialogues.collect::<Result<Vec<_>, PhaseError>>()?;
    context.progress(0, dialogues.len(), "samples");
    let rewards = judge_samples(context, &judge, &dialogues)?;

    let mut figures = Figures::default();
    rewards.iter().for_each(|reward| figures.push("reward_mean", *reward));
    let scores = dialogues.iter().zip(rewards).map(|((_, sampled), reward)| v1::RewardScore {
        prompt_id: sampled.sample.prompt_id,
        index: sampled.sample.index,
        reward,
    });
    let scores =
        v1::RewardScores { phase: chunk.phase.clone(), chunk: chunk.number, scores: scores.collect() };
    Ok(ChunkOutput { bytes: scores.encode_to_vec(), moments: figures.to_wire(), calibration: None })
}

/// The rewards of completions, in order.
pub(super) fn judge_samples(
    context: &TaskContext,
    judge: &Judge,
    dialogues: &[(&Prompt, Sampled)],
) -> Result<Vec<f64>, PhaseError> {
    let reader = Reader { encoder: &judge.encoder, tokenizer: &judge.tokenizer, job: &context.job };
    let sequences = dialogues.iter().map(|(prompt, sampled)| {
        let encoded = reader.competing(sampled.sample.prompt_id, prompt, Candidate::Sample(sampled))?;
        Ok(encoded.ids)
    });
    let sequences = sequences.collect::<Result<Vec<_>, PhaseError>>()?;
    let rewards = scores(context, judge, &by_prompt(dialogues, sequences))?.concat();
    match rewards.iter().zip(dialogues).find(|(reward, _)| !reward.is_finite()) {
        Some((_, (_, sampled))) => {
            Err(PhaseError::NonFinite { what: "the reward", row: sampled.sample.prompt_id })
        }
        None => Ok(rewards),
    }
}

/// Groups consecutive completions of the same prompt.
fn by_prompt(dialogues: &[(&Prompt, Sampled)], sequences: Vec<Vec<u32>>) -> Vec<Vec<Vec<u32>>> {
    let mut groups: Vec<Vec<Vec<u32>>> = Vec::new();
    let mut last = None;
    for ((_, sampled), ids) in dialogues.iter().zip(sequences) {
        let prompt = Some(sampled.sample.prompt_id);
        match groups.last_mut() {
            Some(group) if prompt == last => group.push(ids),
            _ => groups.push(vec![ids]),
        }
        last = prompt;
    }
    groups
}

/// Scores of groups of whole dialogues, batched by the reward step's token budget.
pub(super) fn scores<S: AsRef<[u32]>>(
    context: &TaskContext,
    judge: &Judge,
    groups: &[Vec<S>],
) -> Result<Vec<Vec<f64>>, PhaseError> {
    let budget = context.job.reward_step.optimizer.micro_batch_tokens;
    evaluate::scores(&judge.model, groups, context.precision(), budget).map_err(PhaseError::Batch)
}

//! Score: rewards of a chunk of completions.

use std::collections::BTreeMap;

use foil_common::data::rows::Prompt;
use foil_common::failpoint;
use prost::Message;

use super::support::dialogue::{DialogueEncoder, ResponseSource};
use super::support::error::samples_error;
use super::support::models::RewardModel;
use super::support::records::{RewardScore, RewardScores, SampleBatch};
use super::support::rows::{self, StoredCompletion, read_record};
use super::{ChunkOutput, Metrics, PhaseError, TaskContext};
use crate::evaluate;
use crate::task::{ChunkTask, Score};

pub(super) fn run(
    context: &mut TaskContext,
    task: &ChunkTask,
    work: &Score,
) -> Result<ChunkOutput, PhaseError> {
    let prompts = rows::read_prompts(&mut context.cache, &work.prompts, task.rows)?;
    let prompts: BTreeMap<u64, &Prompt> = prompts.iter().map(|row| (row.id, &row.prompt)).collect();
    let object = &work.completions;
    let batch: SampleBatch = read_record(&mut context.cache, object)?;
    let reward_model = context.reward_model(&work.reward_model)?;

    failpoint::hit("phase.score")?;
    let dialogues = batch.samples.into_iter().map(|sample| {
        let missing =
            || samples_error(object, format!("sample of row {} is not in this chunk", sample.prompt_id));
        let prompt = *prompts.get(&sample.prompt_id).ok_or_else(missing)?;
        Ok((prompt, StoredCompletion { tokenizer: batch.tokenizer_blake3.clone(), sample }))
    });
    let dialogues = dialogues.collect::<Result<Vec<_>, PhaseError>>()?;
    context.progress(0, dialogues.len(), "samples");
    let rewards = score_completions(context, &reward_model, &dialogues)?;

    let mut metrics = Metrics::default();
    rewards.iter().for_each(|reward| metrics.push("reward_mean", *reward));
    let scores = dialogues.iter().zip(rewards).map(|((_, completion), reward)| RewardScore {
        prompt_id: completion.sample.prompt_id,
        index: completion.sample.index,
        reward,
    });
    let scores = RewardScores { phase: task.phase.name.clone(), chunk: task.chunk, scores: scores.collect() };
    Ok(ChunkOutput { bytes: scores.encode_to_vec(), moments: metrics.records(), calibration: None })
}

/// The rewards of completions, in order.
pub(super) fn score_completions(
    context: &TaskContext,
    reward_model: &RewardModel,
    dialogues: &[(&Prompt, StoredCompletion)],
) -> Result<Vec<f64>, PhaseError> {
    let encoder = DialogueEncoder::new(reward_model, &context.job);
    let sequences = dialogues.iter().map(|(prompt, completion)| {
        let source = ResponseSource::Completion(completion);
        Ok(encoder.encode_truncated(completion.sample.prompt_id, prompt, source)?.ids)
    });
    let sequences = sequences.collect::<Result<Vec<_>, PhaseError>>()?;
    let rewards = scores(context, reward_model, &group_by_prompt(dialogues, sequences))?.concat();
    match rewards.iter().zip(dialogues).find(|(reward, _)| !reward.is_finite()) {
        Some((_, (_, completion))) => {
            Err(PhaseError::NonFinite { what: "the reward", row: completion.sample.prompt_id })
        }
        None => Ok(rewards),
    }
}

/// Groups consecutive completions of the same prompt.
fn group_by_prompt(
    dialogues: &[(&Prompt, StoredCompletion)],
    sequences: Vec<Vec<u32>>,
) -> Vec<Vec<Vec<u32>>> {
    let mut groups: Vec<Vec<Vec<u32>>> = Vec::new();
    let mut last = None;
    for ((_, completion), ids) in dialogues.iter().zip(sequences) {
        let prompt = Some(completion.sample.prompt_id);
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
    reward_model: &RewardModel,
    groups: &[Vec<S>],
) -> Result<Vec<Vec<f64>>, PhaseError> {
    let budget = context.job.reward_step.optimizer.micro_batch_tokens;
    evaluate::scores(&reward_model.model, groups, context.precision(), budget).map_err(PhaseError::Batch)
}

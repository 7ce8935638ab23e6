//! Scored completions, the input of the reference log-probabilities phase and of policy training.

use std::collections::BTreeMap;

use foil_common::data::rows::{Prompt, PromptRow};
use foil_common::spec;

use super::dialogue::DialogueEncoder;
use super::records::{LogProbsBatch, Sample};
use super::rows::{Completions, StoredCompletion, read_prompts, read_record, read_scores};
use crate::objective::policy::{FixedLogProbs, ScoredCompletion, objective_of};
use crate::phase::{PhaseError, TaskContext};
use crate::task::{Artifact, Dataset, RowRange};
use crate::task_io::artifact_cache::ArtifactCache;
use crate::train::CompletionGroup;

/// The completions of one prompt, with their rewards.
pub(in crate::phase) struct ScoredGroup<'a> {
    row: u64,
    prompt: &'a Prompt,
    pub(in crate::phase) completions: &'a [StoredCompletion],
    /// The reward model's rewards, in the order of the completions.
    pub(in crate::phase) rewards: Vec<f64>,
}

impl ScoredGroup<'_> {
    /// The completions as input for the policy's method. With `select_worst`, every reward changes its sign.
    /// This is a negative control: a sound experiment must fail with it.
    pub(in crate::phase) fn scored(&self, job: &spec::Job) -> Vec<ScoredCompletion<'_>> {
        let sign = if job.controls.select_worst { -1.0 } else { 1.0 };
        let completions = self.completions.iter().zip(&self.rewards);
        completions
            .map(|(completion, reward)| ScoredCompletion {
                text: &completion.sample.text,
                tokens: completion.sample.tokens.len(),
                reward: sign * reward,
            })
            .collect()
    }

    /// Indices of the completions that the job's method selects.
    pub(in crate::phase) fn selected(&self, job: &spec::Job) -> Vec<usize> {
        objective_of(&job.policy_step.method).select(&self.scored(job))
    }

    /// The prompt and the selected completions, as the sampled tokens.
    pub(in crate::phase) fn encode(
        &self,
        encoder: &DialogueEncoder<'_>,
        selected: &[usize],
    ) -> Result<CompletionGroup, PhaseError> {
        Ok(CompletionGroup {
            id: self.row,
            prompt: encoder.encode_prompt(self.row, self.prompt, encoder.job.sampling.max_new_tokens)?,
            completions: selected
                .iter()
                .map(|&index| self.completions[index].sample.tokens.clone())
                .collect(),
        })
    }
}

/// Prompts with their completions and scores.
pub(in crate::phase) struct PolicyRows {
    pub(in crate::phase) prompts: Vec<PromptRow>,
    completions: Completions,
    scores: Scores,
}

/// Rewards by prompt and index.
type Scores = BTreeMap<(u64, u32), f64>;

impl PolicyRows {
    /// Reads rows `range` of the prompts. `completions` and `scores` must include theirs.
    pub(in crate::phase) fn read(
        context: &mut TaskContext,
        prompts: &Dataset,
        range: RowRange,
        completions: &Artifact,
        scores: &Artifact,
    ) -> Result<Self, PhaseError> {
        Ok(Self {
            prompts: read_prompts(&mut context.cache, prompts, range)?,
            completions: Completions::read(&mut context.cache, completions)?,
            scores: read_scores(&mut context.cache, scores)?,
        })
    }

    /// The completions of every prompt, in row order.
    ///
    /// # Errors
    /// A prompt without completions, or a completion without a score.
    pub(in crate::phase) fn groups(&self) -> Result<Vec<ScoredGroup<'_>>, PhaseError> {
        let scored = self.prompts.iter().map(|row| {
            let completions = self.completions.of_prompt(row.id)?;
            let rewards = rewards_of(completions, &self.scores)?;
            Ok(ScoredGroup { row: row.id, prompt: &row.prompt, completions, rewards })
        });
        scored.collect()
    }
}

fn rewards_of(completions: &[StoredCompletion], scores: &Scores) -> Result<Vec<f64>, PhaseError> {
    let rewards = completions.iter().map(|completion| {
        let key = (completion.sample.prompt_id, completion.sample.index);
        scores.get(&key).copied().ok_or_else(|| missing("scores", key))
    });
    rewards.collect()
}

fn missing(object: &str, (row, index): (u64, u32)) -> PhaseError {
    PhaseError::Record {
        object: object.to_owned(),
        reason: format!("sample {index} of row {row} is missing"),
    }
}

/// Log-probabilities of completions under policies that are not trained, by prompt and index.
#[derive(Debug, Default)]
pub(in crate::phase) struct LogProbs(BTreeMap<(u64, u32), FixedLogProbs>);

impl LogProbs {
    /// Reads the output of a reference log-probabilities phase. Empty without one.
    pub(in crate::phase) fn read(
        cache: &mut ArtifactCache,
        artifact: Option<&Artifact>,
    ) -> Result<Self, PhaseError> {
        let mut log_probs = BTreeMap::new();
        for object in artifact.iter().flat_map(|artifact| &artifact.objects) {
            let batch: LogProbsBatch = read_record(cache, object)?;
            log_probs.extend(batch.samples.into_iter().map(|sample| {
                let fixed =
                    FixedLogProbs { reference: sample.ref_log_probs, old_policy: sample.old_log_probs };
                ((sample.prompt_id, sample.index), fixed)
            }));
        }
        Ok(Self(log_probs))
    }

    /// The log-probabilities of one completion, one per token if `method` needs them.
    ///
    /// # Errors
    /// Log-probabilities that are missing, or not one for each of the completion's tokens.
    pub(in crate::phase) fn of(
        &self,
        sample: &Sample,
        method: &spec::Method,
    ) -> Result<FixedLogProbs, PhaseError> {
        let fixed = self.0.get(&(sample.prompt_id, sample.index)).cloned().unwrap_or_default();
        let expected = |needed: bool| if needed { sample.tokens.len() } else { 0 };
        let needs = method.needs();
        let complete = fixed.reference.len() == expected(needs.reference.is_some())
            && fixed.old_policy.len() == expected(needs.old_log_probs);
        if complete { Ok(fixed) } else { Err(missing("ref_log_probs", (sample.prompt_id, sample.index))) }
    }
}

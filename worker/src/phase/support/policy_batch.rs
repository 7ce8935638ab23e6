//! The training batch of a policy: the completions that its method selects, and their losses.

use foil_common::activity::Activity;

use super::dialogue::DialogueEncoder;
use super::models::Policy;
use super::policy_rows::{LogProbs, ScoredGroup};
use crate::objective::policy::{FixedLogProbs, Group, GroupLoss, objective_of};
use crate::phase::{PhaseError, TaskContext};
use crate::train::CompletionGroup;

/// Prompts with their selected completions, as the sampled tokens. Prompts without selected completions are
/// omitted.
#[derive(Default)]
pub(in crate::phase) struct PolicyBatch {
    pub(in crate::phase) groups: Vec<CompletionGroup>,
    /// The losses, one per group.
    pub(in crate::phase) losses: Vec<GroupLoss>,
    /// The reward model's rewards of the selected completions.
    pub(in crate::phase) rewards: Vec<f64>,
}

impl PolicyBatch {
    pub(in crate::phase) fn encode(
        context: &TaskContext,
        policy: &Policy,
        groups: &[ScoredGroup<'_>],
        log_probs: &LogProbs,
    ) -> Result<Self, PhaseError> {
        let encoder = DialogueEncoder::new(policy, &context.job);
        let method = &context.job.policy_step.method;
        let objective = objective_of(method);
        let mut batch = Self::default();
        context.reports.expect(Activity::Encoding, groups.len() as u64);
        for group in groups {
            context.reports.advance(Activity::Encoding, 1);
            let completions = group.scored(&context.job);
            let selected = objective.select(&completions);
            if selected.is_empty() {
                continue;
            }
            let fixed = selected.iter().map(|&index| log_probs.of(&group.completions[index].sample, method));
            let fixed = fixed.collect::<Result<Vec<FixedLogProbs>, PhaseError>>()?;
            batch.losses.push(objective.group_loss(&Group {
                completions: &completions,
                selected: &selected,
                fixed: &fixed,
                max_new_tokens: context.job.sampling.max_new_tokens,
                device: policy.model.device(),
            }));
            batch.rewards.extend(selected.iter().map(|&index| group.rewards[index]));
            batch.groups.push(group.encode(&encoder, &selected)?);
        }
        Ok(batch)
    }
}

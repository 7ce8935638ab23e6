//! What a policy is trained on: the answers that its method reads, and their loss.

use foil_common::activity::Activity;
use tch::Tensor;

use super::dialogue::Reader;
use super::models::Policy;
use super::policy_rows::{Comparisons, ScoredAnswers};
use crate::objective::group::{Compared, Group, figure_names};
use crate::phase::{PhaseError, TaskContext};
use crate::train::{AnswerGroup, Demonstration, GroupLoss, Part, StepPlan};

/// Prompts with the answers that are read of them, in the very tokens that were sampled. Prompts whose answers teach
/// nothing are left out.
#[derive(Default)]
pub(in crate::phase) struct Lessons {
    pub(in crate::phase) groups: Vec<AnswerGroup>,
    /// One for each group; none for rejection, whose one answer is a demonstration.
    pub(in crate::phase) losses: Losses,
    /// Of each answer read, as the reward model gave it.
    pub(in crate::phase) rewards: Vec<f64>,
}

impl Lessons {
    pub(in crate::phase) fn of(
        context: &TaskContext,
        policy: &Policy,
        scored: &[ScoredAnswers<'_>],
        comparisons: &Comparisons,
    ) -> Result<Self, PhaseError> {
        let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &context.job };
        let method = &context.job.policy_step.method;
        let mut lessons = Self::default();
        lessons.losses.figures = figure_names(method);
        context.reports.expect(Activity::Encoding, scored.len() as u64);
        for answers in scored {
            context.reports.advance(Activity::Encoding, 1);
            let read = answers.read(&context.job);
            if read.is_empty() {
                continue;
            }
            let compared = read.iter().map(|&answer| comparisons.of(&answers.answers[answer].sample, method));
            let compared = compared.collect::<Result<Vec<Compared>, PhaseError>>()?;
            let judged = answers.judged(&context.job);
            lessons.losses.groups.extend(Group::new(method, &judged, &compared, policy.model.device()));
            lessons.rewards.extend(read.iter().map(|&answer| answers.rewards[answer]));
            lessons.groups.push(answers.group(&reader, &read)?);
        }
        Ok(lessons)
    }

    /// Each group's first answer, to be imitated: its only one where the method is rejection.
    pub(in crate::phase) fn demonstrations(&self) -> Vec<Demonstration> {
        let groups = self.groups.iter().filter_map(|group| {
            let ids = [group.prompt.as_slice(), group.answers.first()?].concat();
            Some(Demonstration { id: group.id, ids, answer_start: group.prompt.len() })
        });
        groups.collect()
    }
}

/// The losses of groups, by their numbers.
#[derive(Debug, Default)]
pub(in crate::phase) struct Losses {
    groups: Vec<Group>,
    figures: &'static [&'static str],
}

impl GroupLoss for &Losses {
    fn loss(&self, row: usize, log_probs: &[Tensor]) -> Part {
        let taught = self.groups[row].loss(log_probs);
        Part { loss: taught.loss, sums: Some(taught.figures) }
    }

    fn weight(&self, row: usize) -> f64 {
        self.groups[row].weight()
    }

    fn sums(&self) -> usize {
        self.figures.len()
    }

    fn figures(&self, sums: &[f64], step: &StepPlan) -> Vec<(&'static str, f64)> {
        self.figures.iter().copied().zip(sums.iter().map(|sum| sum / step.weight)).collect()
    }
}

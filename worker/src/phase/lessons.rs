//! What a policy is trained on: the answers that its method reads, and their loss.

use foil_common::stage::Stage;
use tch::Tensor;

use super::dialogue::Reader;
use super::models::Policy;
use super::policy_rows::{Comparisons, ScoredAnswers};
use super::{Bench, PhaseError};
use crate::objective::group::{Compared, Group, figure_names};
use crate::train::{AnswerGroup, Demonstration, GroupLoss, Part, StepPlan};

/// Prompts with the answers that are read of them, in the very tokens that were sampled. Prompts whose answers teach
/// nothing are left out.
#[derive(Default)]
pub(super) struct Lessons {
    pub(super) groups: Vec<AnswerGroup>,
    /// One for each group; none for rejection, whose one answer is a demonstration.
    pub(super) losses: Losses,
    /// Of each answer read, as the reward model gave it.
    pub(super) rewards: Vec<f64>,
}

impl Lessons {
    pub(super) fn of(
        bench: &Bench,
        policy: &Policy,
        scored: &[ScoredAnswers<'_>],
        comparisons: &Comparisons,
    ) -> Result<Self, PhaseError> {
        let reader = Reader { encoder: &policy.encoder, tokenizer: &policy.tokenizer, job: &bench.job };
        let method = &bench.job.policy_step.method;
        let mut lessons = Self::default();
        lessons.losses.figures = figure_names(method);
        bench.reports.expect(Stage::Encoding, scored.len() as u64);
        for answers in scored {
            bench.reports.advance(Stage::Encoding, 1);
            let read = answers.read(&bench.job);
            if read.is_empty() {
                continue;
            }
            let compared = read.iter().map(|&answer| comparisons.of(&answers.answers[answer].sample, method));
            let compared = compared.collect::<Result<Vec<Compared>, PhaseError>>()?;
            let judged = answers.judged(&bench.job);
            lessons.losses.groups.extend(Group::new(method, &judged, &compared, policy.model.device()));
            lessons.rewards.extend(read.iter().map(|&answer| answers.rewards[answer]));
            lessons.groups.push(answers.group(&reader, &read)?);
        }
        Ok(lessons)
    }

    /// Each group's first answer, to be imitated: its only one where the method is rejection.
    pub(super) fn demonstrations(&self) -> Vec<Demonstration> {
        let groups = self.groups.iter().filter_map(|group| {
            let ids = [group.prompt.as_slice(), group.answers.first()?].concat();
            Some(Demonstration { id: group.id, ids, answer_start: group.prompt.len() })
        });
        groups.collect()
    }
}

/// The losses of groups, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Losses {
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

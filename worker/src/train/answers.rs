//! Policy training on groups of answers: any loss of their tokens' log-probabilities.

use tch::{Kind, Tensor, no_grad};

use super::{Objective, Part, RowShape, StepPlan, TrainError};
use crate::model::{LanguageModel, PackedBatch, Precision, rows_of_group};
use crate::objective::likelihood::{self, AnswerPositions, Prediction};

/// Answers to one prompt that a loss sees together.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerGroup {
    /// Of the row in its data set.
    pub id: u64,
    pub prompt: Vec<u32>,
    /// The answers' own tokens, each at least one.
    pub answers: Vec<Vec<u32>>,
}

impl AnswerGroup {
    /// Tokens that its forward pass reads: the prompt's count once.
    pub fn cost(&self) -> usize {
        rows_of_group(&self.sequences())
    }

    fn sequences(&self) -> Vec<Vec<u32>> {
        self.answers.iter().map(|answer| [self.prompt.as_slice(), answer].concat()).collect()
    }
}

/// A loss of a group's log-probabilities under the policy.
pub trait GroupLoss {
    /// Of group `row`: its answers' log-probabilities, one `[tokens]` tensor each, fp32 and requiring gradients. The loss is the
    /// group's sum, a scalar; [`Part::sums`] are numbers to be added up over the global batch.
    fn loss(&self, row: usize, log_probs: &[Tensor]) -> Part;

    /// The group's part of what the step's loss is divided by.
    fn weight(&self, row: usize) -> f64;

    /// How many numbers [`Part::sums`] holds.
    fn sums(&self) -> usize {
        0
    }

    /// Figures of a step, from `sums` added up over the global batch.
    fn figures(&self, sums: &[f64], step: &StepPlan) -> Vec<(&'static str, f64)> {
        let _ = (sums, step);
        Vec::new()
    }
}

/// Training of a policy on groups of answers under `L`; one forward pass of a prompt serves all its answers.
#[derive(Debug)]
pub struct PolicyAnswers<'a, L> {
    model: &'a LanguageModel,
    groups: &'a [AnswerGroup],
    loss: L,
    precision: Precision,
}

impl<'a, L: GroupLoss> PolicyAnswers<'a, L> {
    pub fn new(model: &'a LanguageModel, groups: &'a [AnswerGroup], loss: L, precision: Precision) -> Self {
        Self { model, groups, loss, precision }
    }
}

impl<L: GroupLoss> Objective for PolicyAnswers<'_, L> {
    fn sets(&self) -> Vec<usize> {
        vec![self.groups.len()]
    }

    fn shape(&self, row: usize) -> RowShape {
        let group = &self.groups[row];
        let sequences = group.sequences();
        RowShape {
            cost: rows_of_group(&sequences),
            tokens: sequences.iter().map(Vec::len).sum(),
            items: group.answers.len(),
            weight: self.loss.weight(row),
        }
    }

    fn row_name(&self, row: usize) -> String {
        format!("prompt {}", self.groups[row].id)
    }

    fn part(&self, rows: &[usize]) -> Result<Part, TrainError> {
        let groups = Sequences::of(rows.iter().map(|&row| &self.groups[row]));
        let batch = PackedBatch::of_groups(&groups.sequences, self.model.device())?;
        let answers = AnswerPositions::new(&batch, &groups.dialogues());
        let hidden = self.model.forward(&batch, answers.rows(), self.precision)?; // [tokens, hidden]
        let prediction = Prediction {
            hidden: &hidden,
            targets: answers.targets(),
            head: self.model.lm_head(),
            compute: self.precision.kind(),
        };
        let mut sums = Tensor::zeros([self.loss.sums() as i64], (Kind::Double, self.model.device()));
        let counts = groups.answer_tokens(answers.counts());
        let totals: Vec<i64> = counts.iter().map(|counts| counts.iter().sum()).collect();
        let loss = likelihood::grouped(&prediction, &totals, &mut |group, log_probs| {
            let part = self.loss.loss(rows[group], &log_probs.split_with_sizes(counts[group], 0));
            if let Some(more) = part.sums {
                no_grad(|| sums += more.detach());
            }
            part.loss
        })?;
        Ok(Part { loss, sums: (self.loss.sums() > 0).then_some(sums) })
    }

    fn sums(&self) -> usize {
        self.loss.sums()
    }

    fn figures(&self, sums: &[f64], step: &StepPlan) -> Vec<(&'static str, f64)> {
        self.loss.figures(sums, step)
    }
}

/// Groups as whole dialogues.
pub(crate) struct Sequences {
    pub(crate) sequences: Vec<Vec<Vec<u32>>>,
    /// Of each group: where its answers start.
    starts: Vec<usize>,
}

impl Sequences {
    pub(crate) fn of<'g>(groups: impl Iterator<Item = &'g AnswerGroup>) -> Self {
        let (sequences, starts) = groups.map(|group| (group.sequences(), group.prompt.len())).unzip();
        Self { sequences, starts }
    }

    /// Every sequence and where its answer starts.
    pub(crate) fn dialogues(&self) -> Vec<(&[u32], usize)> {
        let groups = self.sequences.iter().zip(&self.starts);
        groups.flat_map(|(group, &start)| group.iter().map(move |ids| (ids.as_slice(), start))).collect()
    }

    /// `counts` of all sequences in order, cut by group.
    fn answer_tokens<'c>(&self, mut counts: &'c [i64]) -> Vec<&'c [i64]> {
        let cut = self.sequences.iter().map(|group| {
            let (mine, rest) = counts.split_at(group.len());
            counts = rest;
            mine
        });
        cut.collect()
    }
}

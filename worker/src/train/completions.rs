//! Policy training on groups of completions with any loss of their tokens' log-probabilities.

use super::{MicroBatchLoss, Objective, RowShape, TrainError};
use crate::model::{LanguageModel, Precision, packed_rows};
use crate::objective::likelihood::{self, Prediction, ResponsePositions};
use crate::objective::metrics::{Metric, MetricSums};
use crate::objective::policy::GroupLoss;

/// Completions of one prompt that share a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionGroup {
    /// The id of the prompt in its data set.
    pub id: u64,
    pub prompt: Vec<u32>,
    /// The sampled tokens of the completions, at least one each.
    pub completions: Vec<Vec<u32>>,
}

impl CompletionGroup {
    /// Number of tokens of its forward pass; the prompt counts once.
    pub fn cost(&self) -> usize {
        packed_rows(&self.sequences())
    }

    fn sequences(&self) -> Vec<Vec<u32>> {
        self.completions.iter().map(|completion| [self.prompt.as_slice(), completion].concat()).collect()
    }
}

/// Trains a policy on groups of completions; a prompt is computed once for all its completions.
#[derive(Debug)]
pub struct PolicyGroups<'a> {
    pub model: &'a LanguageModel,
    pub groups: &'a [CompletionGroup],
    /// The losses, one for each group.
    pub losses: &'a [GroupLoss],
    /// The metrics of the losses.
    pub metrics: &'static [Metric],
    pub precision: Precision,
}

impl Objective for PolicyGroups<'_> {
    fn sets(&self) -> Vec<usize> {
        vec![self.groups.len()]
    }

    fn shape(&self, row: usize) -> RowShape {
        let group = &self.groups[row];
        let sequences = group.sequences();
        RowShape {
            cost: packed_rows(&sequences),
            tokens: sequences.iter().map(Vec::len).sum(),
            items: group.completions.len(),
            weight: self.losses[row].weight(),
        }
    }

    fn row_name(&self, row: usize) -> String {
        format!("prompt {}", self.groups[row].id)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let groups = Sequences::new(rows.iter().map(|&row| &self.groups[row]));
        let device = self.model.device();
        let (batch, positions) = ResponsePositions::pack(&groups.sequences, &groups.dialogues(), device)?;
        let hidden = self.model.forward(&batch, positions.rows(), self.precision)?; // [tokens, hidden]
        let prediction = Prediction {
            hidden: &hidden,
            targets: positions.targets(),
            head: self.model.lm_head(),
            compute: self.precision.kind(),
        };
        let mut metrics = MetricSums::zeros(self.metrics, device);
        let counts = groups.completion_tokens(positions.counts());
        let totals: Vec<i64> = counts.iter().map(|counts| counts.iter().sum()).collect();
        let loss = likelihood::grouped(&prediction, &totals, &mut |group, log_probs| {
            let output = self.losses[rows[group]].loss(&log_probs.split_with_sizes(counts[group], 0));
            metrics.add(&output.metrics);
            output.loss
        })?;
        Ok(MicroBatchLoss { loss, metrics })
    }

    fn metrics(&self) -> &'static [Metric] {
        self.metrics
    }
}

/// Groups of whole dialogues.
pub(crate) struct Sequences {
    pub(crate) sequences: Vec<Vec<Vec<u32>>>,
    /// The position in each group at which its completions start.
    starts: Vec<usize>,
}

impl Sequences {
    pub(crate) fn new<'g>(groups: impl Iterator<Item = &'g CompletionGroup>) -> Self {
        let (sequences, starts) = groups.map(|group| (group.sequences(), group.prompt.len())).unzip();
        Self { sequences, starts }
    }

    /// Every sequence and the position at which its completion starts.
    pub(crate) fn dialogues(&self) -> Vec<(&[u32], usize)> {
        let groups = self.sequences.iter().zip(&self.starts);
        groups.flat_map(|(group, &start)| group.iter().map(move |ids| (ids.as_slice(), start))).collect()
    }

    /// Splits `counts` of all sequences by group.
    fn completion_tokens<'c>(&self, mut counts: &'c [i64]) -> Vec<&'c [i64]> {
        let groups = self.sequences.iter().map(|group| {
            let (own, rest) = counts.split_at(group.len());
            counts = rest;
            own
        });
        groups.collect()
    }
}

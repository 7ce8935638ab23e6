//! Reward-model training on preference pairs.

use foil_common::spec::Normalisation;
use tch::{Kind, Tensor, no_grad};

use super::{Objective, Part, RowShape, StepPlan, TrainError};
use crate::model::{PackedBatch, Precision, RewardModel, rows_of_group};
use crate::objective::preference::bradley_terry;

/// One answer to a prompt that is preferred to one or more others, as tokens: a human pair, or a golden answer against
/// samples. All are whole dialogues; what they begin with in common is read once.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Of the row in its data set.
    pub id: u64,
    pub chosen: Vec<u32>,
    /// At least one.
    pub rejected: Vec<Vec<u32>>,
    /// w of each pair's loss: w_P for a human pair, w_APO / S for a golden answer against one of its S samples.
    pub weight: f64,
}

impl Comparison {
    fn pairs(&self) -> usize {
        self.rejected.len()
    }

    /// The chosen answer's, then the others'.
    fn sequences(&self) -> Vec<&[u32]> {
        std::iter::once(&self.chosen).chain(&self.rejected).map(Vec::as_slice).collect()
    }
}

/// The Bradley–Terry loss over human and golden-vs-sample pairs, Σ w·ℓ / Σ w over the global batch.
#[derive(Debug)]
pub struct PairRanking<'a> {
    model: &'a RewardModel,
    human: &'a [Comparison],
    golden: &'a [Comparison],
    precision: Precision,
    normalisation: Normalisation,
}

impl<'a> PairRanking<'a> {
    /// Of two sets that every global batch holds in fixed proportion; either may be empty.
    pub fn new(
        model: &'a RewardModel,
        human: &'a [Comparison],
        golden: &'a [Comparison],
        precision: Precision,
        normalisation: Normalisation,
    ) -> Self {
        Self { model, human, golden, precision, normalisation }
    }

    fn comparison(&self, row: usize) -> &Comparison {
        self.golden.get(row.wrapping_sub(self.human.len())).unwrap_or_else(|| &self.human[row])
    }
}

impl Objective for PairRanking<'_> {
    fn sets(&self) -> Vec<usize> {
        vec![self.human.len(), self.golden.len()]
    }

    fn shape(&self, row: usize) -> RowShape {
        let comparison = self.comparison(row);
        let sequences = comparison.sequences();
        RowShape {
            cost: rows_of_group(&sequences),
            tokens: sequences.iter().map(|ids| ids.len()).sum(),
            items: comparison.pairs(),
            weight: comparison.weight * comparison.pairs() as f64,
        }
    }

    fn row_name(&self, row: usize) -> String {
        let set = if row < self.human.len() { "human pair" } else { "golden answer" };
        format!("{set} {}", self.comparison(row).id)
    }

    fn part(&self, rows: &[usize]) -> Result<Part, TrainError> {
        let comparisons: Vec<&Comparison> = rows.iter().map(|&row| self.comparison(row)).collect();
        let groups: Vec<Vec<&[u32]>> = comparisons.iter().map(|comparison| comparison.sequences()).collect();
        let pairs = Pairs::of(&comparisons);
        let device = self.model.device();
        let batch = PackedBatch::of_groups(&groups, device)?;

        let scores = self.model.scores(&batch, self.precision)?; // [sequences]
        let chosen = scores.index_select(0, &Tensor::from_slice(&pairs.chosen).to_device(device));
        let rejected = scores.index_select(0, &Tensor::from_slice(&pairs.rejected).to_device(device));
        let weights = Tensor::from_slice(&pairs.weights).to_device(device);
        let sums = no_grad(|| {
            let difference = (&chosen - &rejected).detach().to_kind(Kind::Double);
            Tensor::stack(&[difference.gt(0.0).sum(Kind::Double), difference.sum(Kind::Double)], 0)
        });
        Ok(Part { loss: bradley_terry(&chosen, &rejected, &weights), sums: Some(sums) })
    }

    fn normalisation(&self) -> Normalisation {
        self.normalisation
    }

    fn sums(&self) -> usize {
        2
    }

    /// `train_accuracy`: pairs ranked right before the step's update. `margin`: mean r(chosen) − r(rejected).
    fn figures(&self, sums: &[f64], step: &StepPlan) -> Vec<(&'static str, f64)> {
        let pairs = step.items as f64;
        vec![("train_accuracy", sums[0] / pairs), ("margin", sums[1] / pairs)]
    }

    /// `golden_weight_share`: what part of Σ w the golden-vs-sample pairs make up.
    fn constants(&self) -> Vec<(&'static str, f64)> {
        let sum = |set: &[Comparison]| set.iter().map(|c| c.weight * c.pairs() as f64).sum::<f64>();
        let (human, golden) = (sum(self.human), sum(self.golden));
        vec![("golden_weight_share", golden / (human + golden))]
    }
}

/// Pairs as numbers of sequences in a batch of comparisons.
#[derive(Default)]
struct Pairs {
    chosen: Vec<i64>,
    rejected: Vec<i64>,
    weights: Vec<f32>,
}

impl Pairs {
    fn of(comparisons: &[&Comparison]) -> Self {
        let mut pairs = Self::default();
        let mut chosen = 0;
        for comparison in comparisons {
            let count = comparison.pairs();
            pairs.chosen.extend(std::iter::repeat_n(chosen, count));
            pairs.rejected.extend((chosen + 1..).take(count));
            pairs.weights.extend(std::iter::repeat_n(comparison.weight as f32, count));
            chosen += 1 + count as i64;
        }
        pairs
    }
}

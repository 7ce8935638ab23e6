//! Reward-model training on preference pairs.

use foil_common::spec::Normalisation;
use tch::{Kind, Tensor, no_grad};

use super::{Objective, Part, RowShape, StepPlan, TrainError};
use crate::model::{Precision, RewardModel, TokenBatch};
use crate::objective::preference::bradley_terry;

/// One preference, as tokens: both are whole dialogues, prompt and answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Of the row in its data set.
    pub id: u64,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    /// w of the loss: w_P for a human pair, w_APO / S for a golden answer against one of its S samples.
    pub weight: f64,
}

/// The Bradley–Terry loss over human and golden-vs-sample pairs, Σ w·ℓ / Σ w over the global batch.
#[derive(Debug)]
pub struct PairRanking<'a> {
    model: &'a RewardModel,
    human: &'a [Pair],
    golden: &'a [Pair],
    precision: Precision,
    normalisation: Normalisation,
}

impl<'a> PairRanking<'a> {
    /// Of two sets of pairs that every global batch holds in fixed proportion; either may be empty.
    pub fn new(
        model: &'a RewardModel,
        human: &'a [Pair],
        golden: &'a [Pair],
        precision: Precision,
        normalisation: Normalisation,
    ) -> Self {
        Self { model, human, golden, precision, normalisation }
    }

    fn pair(&self, row: usize) -> &Pair {
        self.golden.get(row.wrapping_sub(self.human.len())).unwrap_or_else(|| &self.human[row])
    }
}

impl Objective for PairRanking<'_> {
    fn sets(&self) -> Vec<usize> {
        vec![self.human.len(), self.golden.len()]
    }

    fn shape(&self, row: usize) -> RowShape {
        let pair = self.pair(row);
        RowShape {
            length: pair.chosen.len().max(pair.rejected.len()),
            sequences: 2,
            tokens: pair.chosen.len() + pair.rejected.len(),
            weight: pair.weight,
        }
    }

    fn row_name(&self, row: usize) -> String {
        let set = if row < self.human.len() { "human pair" } else { "golden pair" };
        format!("{set} {}", self.pair(row).id)
    }

    fn part(&self, rows: &[usize]) -> Result<Part, TrainError> {
        let pairs: Vec<&Pair> = rows.iter().map(|&row| self.pair(row)).collect();
        let chosen = pairs.iter().map(|pair| pair.chosen.as_slice());
        let rejected = pairs.iter().map(|pair| pair.rejected.as_slice());
        let sequences: Vec<&[u32]> = chosen.chain(rejected).collect();
        let device = self.model.device();
        let batch = TokenBatch::from_rows(&sequences, device)?;
        let weights: Vec<f32> = pairs.iter().map(|pair| pair.weight as f32).collect();
        let weights = Tensor::from_slice(&weights).to_device(device);

        let scores = self.model.scores(&batch, self.precision).view([2, -1]); // [2, pairs]
        let (chosen, rejected) = (scores.get(0), scores.get(1));
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
        let pairs = step.rows.len() as f64;
        vec![("train_accuracy", sums[0] / pairs), ("margin", sums[1] / pairs)]
    }

    /// `golden_weight_share`: what part of Σ w the golden-vs-sample pairs make up.
    fn constants(&self) -> Vec<(&'static str, f64)> {
        let sum = |pairs: &[Pair]| pairs.iter().map(|pair| pair.weight).sum::<f64>();
        let (human, golden) = (sum(self.human), sum(self.golden));
        vec![("golden_weight_share", golden / (human + golden))]
    }
}

//! Reward-model training on preference pairs.

use foil_common::spec::{BradleyTerry, Normalization, RewardLoss};
use foil_torch::Numbers;
use tch::{Kind, no_grad};

use super::{MicroBatchLoss, Objective, RowShape, TrainError};
use crate::model::{PackedBatch, Precision, RewardModel, packed_rows};
use crate::objective::metrics::{Metric, MetricSums};
use crate::objective::reward::{ScoredPairs, objective_of, pair_loss};

/// A response that is preferred to one or more others to the same prompt, as tokens: a human pair, or a
/// golden response against completions. All are whole dialogues, and their common prefix is computed once.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The row's id in its data set.
    pub id: u64,
    pub chosen: Vec<u32>,
    /// At least one.
    pub rejected: Vec<Vec<u32>>,
    /// The weight w of each pair's loss: w_P for a human pair, w_APO / S for a golden response against one
    /// of S completions.
    pub weight: f64,
    /// The margin by which the chosen response's score should exceed the others'; 0 if the row has none.
    pub margin: f64,
}

impl Comparison {
    fn pairs(&self) -> usize {
        self.rejected.len()
    }

    /// The chosen response's tokens, then the others'.
    fn sequences(&self) -> Vec<&[u32]> {
        std::iter::once(&self.chosen).chain(&self.rejected).map(Vec::as_slice).collect()
    }
}

const ACCURACY: &str = "train_accuracy";
const MARGIN: &str = "margin";

/// Means over pairs before the step's update: the fraction ranked correctly, and r(chosen) − r(rejected).
const METRICS: [Metric; 2] = [Metric::per_item(ACCURACY), Metric::per_item(MARGIN)];

/// The loss of human pairs and of golden responses against completions, Σ w·ℓ / Σ w over the global batch.
/// Every global batch holds the two sets in fixed proportion; either may be empty.
#[derive(Debug)]
pub struct PairRanking<'a> {
    model: &'a RewardModel,
    human: &'a [Comparison],
    golden: &'a [Comparison],
    precision: Precision,
    normalization: Normalization,
    loss: RewardLoss,
}

impl<'a> PairRanking<'a> {
    /// Trains with the Bradley-Terry loss.
    pub fn new(
        model: &'a RewardModel,
        human: &'a [Comparison],
        golden: &'a [Comparison],
        precision: Precision,
        normalization: Normalization,
    ) -> Self {
        let loss = RewardLoss::BradleyTerry(BradleyTerry::default());
        Self { model, human, golden, precision, normalization, loss }
    }

    /// Trains with another loss.
    pub fn with_loss(self, loss: RewardLoss) -> Self {
        Self { loss, ..self }
    }

    fn is_golden(&self, row: usize) -> bool {
        row >= self.human.len()
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
            cost: packed_rows(&sequences),
            tokens: sequences.iter().map(|ids| ids.len()).sum(),
            items: comparison.pairs(),
            weight: comparison.weight * comparison.pairs() as f64,
        }
    }

    fn row_name(&self, row: usize) -> String {
        let set = if self.is_golden(row) { "golden answer" } else { "human pair" };
        format!("{set} {}", self.comparison(row).id)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let comparisons: Vec<&Comparison> = rows.iter().map(|&row| self.comparison(row)).collect();
        let groups: Vec<Vec<&[u32]>> = comparisons.iter().map(|comparison| comparison.sequences()).collect();
        let pairs = Pairs::new(rows.iter().map(|&row| (self.comparison(row), self.is_golden(row))));
        let device = self.model.device();
        let (batch, constants) = PackedBatch::with_numbers(&groups, device, |_| pairs.into_numbers())?;
        let [chosen, rejected, margins, weights, golden] = &constants[..] else {
            unreachable!("a batch returns as many tensors as it was given")
        };

        let scores = self.model.scores(&batch, self.precision)?; // [sequences]
        let (chosen, rejected) = (scores.index_select(0, chosen), scores.index_select(0, rejected));
        let metrics = no_grad(|| {
            let difference = (&chosen - &rejected).to_kind(Kind::Double);
            let (ranked, margin) = (difference.gt(0.0).sum(Kind::Double), difference.sum(Kind::Double));
            MetricSums::from_scalars([(ACCURACY, &ranked), (MARGIN, &margin)], device)
        });
        let scored = ScoredPairs { chosen: &chosen, rejected: &rejected, margins: Some(margins), weights };
        Ok(MicroBatchLoss { loss: pair_loss(objective_of(&self.loss), &scored, golden), metrics })
    }

    /// For a loss without a lower bound, clipping the head bounds the scores, since the head's input is
    /// normalized.
    fn after_update(&self) {
        if let Some(bound) = self.loss.weight_clip() {
            self.model.clip_head(bound);
        }
    }

    fn normalization(&self) -> Normalization {
        self.normalization
    }

    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }

    /// `golden_weight_share`: the golden pairs' share of Σ w.
    fn dataset_metrics(&self) -> Vec<(&'static str, f64)> {
        let sum = |set: &[Comparison]| set.iter().map(|c| c.weight * c.pairs() as f64).sum::<f64>();
        let (human, golden) = (sum(self.human), sum(self.golden));
        vec![("golden_weight_share", golden / (human + golden))]
    }
}

/// Pairs as indices of sequences in a batch of comparisons.
#[derive(Default)]
struct Pairs {
    chosen: Vec<i64>,
    rejected: Vec<i64>,
    margins: Vec<f32>,
    weights: Vec<f32>,
    /// 1 for a golden response against a completion, 0 for a human pair.
    golden: Vec<f32>,
}

impl Pairs {
    /// The pairs of `comparisons`, each given with whether it is golden.
    fn new<'c>(comparisons: impl Iterator<Item = (&'c Comparison, bool)>) -> Self {
        let mut pairs = Self::default();
        let mut chosen = 0;
        for (comparison, golden) in comparisons {
            let count = comparison.pairs();
            pairs.chosen.extend(std::iter::repeat_n(chosen, count));
            pairs.rejected.extend((chosen + 1..).take(count));
            pairs.margins.extend(std::iter::repeat_n(comparison.margin as f32, count));
            pairs.weights.extend(std::iter::repeat_n(comparison.weight as f32, count));
            pairs.golden.extend(std::iter::repeat_n(f32::from(u8::from(golden)), count));
            chosen += 1 + count as i64;
        }
        pairs
    }

    /// All fields, in order.
    fn into_numbers(self) -> Vec<Numbers> {
        let Self { chosen, rejected, margins, weights, golden } = self;
        let indices = [chosen, rejected].map(Numbers::Int64);
        indices.into_iter().chain([margins, weights, golden].map(Numbers::Float)).collect()
    }
}

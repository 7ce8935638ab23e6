//! Compares a policy's completions with those of other policies of the job for the same prompts.
//!
//! Reward models of different rounds differ in offset and scale, so their mean rewards cannot be compared.
//! The prompt-by-prompt difference of two policies under one reward model can.

use foil_common::data::rows::PromptRow;
use foil_common::spec::BestMetric;
use foil_common::stats::{self, REWARD_DIFFERENCE, START_REWARD};

use super::records::Sample;
use super::rows::{Completions, StoredCompletion};
use crate::phase::{Metrics, PhaseError, TaskContext};
use crate::task::{Artifact, EvaluatePolicy};

/// Completions of other policies, in row order.
#[derive(Debug, Default)]
pub(in crate::phase) struct Baselines {
    pub(in crate::phase) start: Option<Vec<StoredCompletion>>,
    pub(in crate::phase) previous: Option<Vec<StoredCompletion>>,
}

impl Baselines {
    pub(in crate::phase) fn read(
        context: &mut TaskContext,
        work: &EvaluatePolicy,
        rows: &[PromptRow],
    ) -> Result<Self, PhaseError> {
        let mut completions_of = |artifact: &Option<Artifact>| {
            let Some(artifact) = artifact else { return Ok(None) };
            let completions = Completions::read(&mut context.cache, artifact)?;
            let first =
                |row: &PromptRow| completions.of_prompt(row.id).map(|completions| completions[0].clone());
            rows.iter().map(first).collect::<Result<Vec<_>, PhaseError>>().map(Some)
        };
        Ok(Self { start: completions_of(&work.start)?, previous: completions_of(&work.previous)? })
    }

    /// The baselines that exist.
    pub(in crate::phase) fn each(&mut self) -> impl Iterator<Item = &mut Vec<StoredCompletion>> {
        self.start.iter_mut().chain(&mut self.previous)
    }

    /// Adds the differences of reward and gold reward from the start policy and from the previous round's
    /// policy. Every `reward` must come from the current round's reward model.
    pub(in crate::phase) fn compare(&self, samples: &[Sample], metrics: &mut Metrics) {
        let names = [
            (&self.start, REWARD_DIFFERENCE, "gold_difference_mean"),
            (&self.previous, stats::REWARD_STEP, stats::GOLD_STEP),
        ];
        for (others, reward, gold) in names {
            for (sample, other) in samples.iter().zip(others.iter().flatten()) {
                let differences = [
                    (reward, sample.reward.zip(other.sample.reward)),
                    (gold, sample.gold.zip(other.sample.gold)),
                ];
                for (name, (own, other)) in
                    differences.into_iter().filter_map(|(name, both)| Some((name, both?)))
                {
                    metrics.push(name, own - other);
                }
            }
        }
        for reward in self.start.iter().flatten().filter_map(|other| other.sample.reward) {
            metrics.push(START_REWARD, reward);
        }
    }

    /// Adds the metric that selects the best round, separately for the half of the `rows` prompts used for
    /// selection and the half reported. Adds nothing if there are too few prompts to split.
    pub(in crate::phase) fn compare_halves(
        &self,
        metric_for_best_model: BestMetric,
        rows: u64,
        samples: &[Sample],
        metrics: &mut Metrics,
    ) {
        let start = self.start.as_deref().unwrap_or_default();
        for (index, sample) in samples.iter().enumerate() {
            let Some(half) = stats::half_of(sample.prompt_id, rows) else { return };
            let mut push = |name: &str, value: Option<f64>| {
                if let Some(value) = value {
                    metrics.push(&format!("{half}{name}"), value);
                }
            };
            let start = start.get(index).and_then(|other| other.sample.reward);
            match metric_for_best_model {
                BestMetric::GoldMean => push("gold_mean", sample.gold),
                BestMetric::RewardMean => push("reward_mean", sample.reward),
                BestMetric::RewardGain => {
                    push(REWARD_DIFFERENCE, sample.reward.zip(start).map(|(own, start)| own - start));
                    push(START_REWARD, start);
                }
                BestMetric::RewardAccuracy => {}
            }
        }
    }
}

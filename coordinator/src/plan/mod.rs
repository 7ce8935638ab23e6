//! The phases of a job, determined once from its specification and its data.

mod bounds;
mod phase;
#[cfg(test)]
mod tests;

use foil_common::datasets as sets;
use foil_common::spec::{self, RewardStep};
use foil_proto::v1;

pub use bounds::TooLarge;
pub use phase::{Phase, PlanError, Work, artifact_name};

/// The phases of a job, in order.
pub fn plan(job: &spec::Job, datasets: &[v1::Dataset]) -> Vec<Phase> {
    let planner = Planner { job, datasets };
    let mut phases = planner.before_round_one();
    for round in 1..=job.rounds {
        phases.extend(planner.round(round));
    }
    phases
}

/// The phases of a job, in order, provided that the plan is small enough to keep and to send.
///
/// # Errors
/// The plan is too large; the error names the field to change.
pub fn bounded(job: &spec::Job, datasets: &[v1::Dataset]) -> Result<Vec<Phase>, TooLarge> {
    let phases = plan(job, datasets);
    bounds::check(&phases, job.rounds, job.generation.chunk_prompts)?;
    Ok(phases)
}

struct Planner<'a> {
    job: &'a spec::Job,
    datasets: &'a [v1::Dataset],
}

impl Planner<'_> {
    fn before_round_one(&self) -> Vec<Phase> {
        let mut phases = Vec::new();
        if self.job.has_sft() {
            let step = &self.job.sft_step;
            let rows = self.rows(sets::SFT);
            let steps = self.steps(rows, rows, step.batch_sequences, step.epochs);
            phases.push(Phase::gang(0, Work::Sft, steps));
        }
        if self.job.data.gold_preferences.is_some() {
            phases.extend(self.map(0, Work::GeneratePreferences));
            phases.extend(self.map(0, Work::GenerateEvaluationPreferences));
        }
        phases.extend(self.map(0, Work::EvaluatePolicy));
        phases
    }

    fn round(&self, round: u32) -> Vec<Phase> {
        let mut phases = Vec::new();
        phases.extend(self.map(round, Work::GenerateGolden));
        if self.job.trains_reward(round) {
            phases.push(Phase::gang(round, Work::TrainReward, self.reward_steps()));
        }
        phases.extend(self.map(round, Work::EvaluateReward));
        phases.extend(self.map(round, Work::EvaluateRewardFresh));
        phases.extend(self.map(round, Work::GeneratePolicy));
        phases.extend(self.map(round, Work::ScorePolicy));
        let step = &self.job.policy_step;
        let needs = step.method.needs();
        if needs.reference.is_some() || needs.old_log_probs {
            phases.extend(self.map(round, Work::RefLogProbs));
        }
        let rows = self.rows(sets::PROMPTS);
        let sequences = rows * u64::from(step.method.max_completions(step.samples));
        let steps = self.steps(rows, sequences, step.batch_sequences, step.epochs);
        phases.push(Phase::gang(round, Work::TrainPolicy, steps));
        phases.extend(self.map(round, Work::EvaluatePolicy));
        phases
    }

    /// A map phase, unless it has no rows.
    fn map(&self, round: u32, work: Work) -> Option<Phase> {
        let chunks = segments(self.job, round, work)
            .iter()
            .map(|set| chunks_of(self.rows(set), self.job.generation.chunk_prompts))
            .sum();
        (chunks > 0).then(|| Phase::map(round, work, chunks))
    }

    /// Number of optimizer steps over all epochs, where `rows` rows hold `items` pairs or answers; the last
    /// batch of an epoch may be smaller.
    fn steps(&self, rows: u64, items: u64, batch: usize, epochs: u32) -> u32 {
        let per_step = spec::rows_per_step(batch, rows as usize, items as usize);
        narrow(rows.div_ceil(per_step as u64)).saturating_mul(epochs)
    }

    fn reward_steps(&self) -> u32 {
        let step: &RewardStep = &self.job.reward_step;
        let human = match self.job.data.gold_preferences {
            Some(_) => self.rows(sets::GOLD_PREFERENCE_PROMPTS),
            None => self.rows(sets::PREFERENCES),
        };
        let human = if step.human_weight > 0.0 { human } else { 0 };
        let golden = if step.apo_weight > 0.0 { self.rows(sets::GOLDEN) } else { 0 };
        let pairs = human + golden * u64::from(step.samples);
        self.steps(human + golden, pairs, step.batch_pairs, step.epochs)
    }

    fn rows(&self, set: &str) -> u64 {
        self.datasets.iter().find(|dataset| dataset.name == set).map_or(0, |dataset| dataset.rows)
    }
}

/// The data sets that a map phase processes, in the order of its chunks. No chunk spans two of them.
pub(crate) fn segments(job: &spec::Job, round: u32, work: Work) -> Vec<&'static str> {
    match work {
        Work::GeneratePreferences => vec![sets::GOLD_PREFERENCE_PROMPTS],
        Work::GenerateEvaluationPreferences => vec![sets::GOLD_PREFERENCE_EVALUATION_PROMPTS],
        // Samples for the holdout measure fresh accuracy, even if no training uses golden answers.
        Work::GenerateGolden if job.trains_reward(round) && job.reward_step.apo_weight > 0.0 => {
            vec![sets::GOLDEN, sets::GOLDEN_HOLDOUT]
        }
        Work::GenerateGolden | Work::EvaluateRewardFresh => vec![sets::GOLDEN_HOLDOUT],
        Work::EvaluateReward if job.data.gold_preferences.is_some() => {
            vec![sets::GOLD_PREFERENCE_EVALUATION_PROMPTS]
        }
        Work::EvaluateReward => vec![sets::EVALUATION_PREFERENCES],
        Work::GeneratePolicy | Work::ScorePolicy | Work::RefLogProbs => vec![sets::PROMPTS],
        Work::EvaluatePolicy => vec![sets::EVALUATION_PROMPTS],
        Work::Sft | Work::TrainReward | Work::TrainPolicy => Vec::new(),
    }
}

pub(crate) fn chunks_of(rows: u64, chunk: usize) -> u32 {
    narrow(rows.div_ceil(chunk.max(1) as u64))
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

//! Settings of a training phase.

use foil_common::spec::{Job, Optimizer, Schedule, Sharding};

use super::OrderKey;

/// The settings of a training phase, equal on all ranks.
#[derive(Debug, Clone)]
pub struct TrainConfig {
    pub order: OrderKey,
    pub epochs: u32,
    /// Number of pairs or sequences per step over all ranks, rounded to whole rows.
    pub batch_size: usize,
    /// The learning rate at schedule factor 1.
    pub peak_learning_rate: f64,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub sharding: Sharding,
}

impl TrainConfig {
    /// Supervised fine-tuning in `round`; round 0 comes before the first round.
    pub fn sft(job: &Job, round: u32) -> Self {
        let step = &job.sft_step;
        Self {
            order: order(job, round),
            epochs: step.epochs,
            batch_size: step.batch_sequences,
            peak_learning_rate: step.learning_rate,
            optimizer: step.optimizer.clone(),
            schedule: step.schedule,
            sharding: job.resources.sharding,
        }
    }

    /// The reward model's training in `round`.
    pub fn reward(job: &Job, round: u32) -> Self {
        let step = &job.reward_step;
        Self {
            order: order(job, round),
            epochs: step.epochs,
            batch_size: step.batch_pairs,
            peak_learning_rate: step.learning_rate,
            optimizer: step.optimizer.clone(),
            schedule: step.schedule,
            sharding: job.resources.sharding,
        }
    }

    /// The policy's training in `round`.
    pub fn policy(job: &Job, round: u32) -> Self {
        let step = &job.policy_step;
        Self {
            order: order(job, round),
            epochs: step.epochs,
            batch_size: step.batch_sequences,
            peak_learning_rate: step.learning_rate_of(round),
            optimizer: step.optimizer.clone(),
            schedule: step.schedule,
            sharding: job.resources.sharding,
        }
    }
}

fn order(job: &Job, round: u32) -> OrderKey {
    OrderKey { seed: job.seed.into(), round }
}

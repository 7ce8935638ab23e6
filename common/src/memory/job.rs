//! Estimates of a job's phases, whose sizes follow from its fields.

use super::activations::{Batch, Compute};
use super::phase::{
    Adapters, Decoding, Estimate, Evaluated, Model, Training, evaluation, generation, inference, training,
};
use super::shape::{Head, ModelShape};
use crate::spec::{self, Lora, RewardStep, Sampling, Sharding};
use crate::text::Limits;

/// Maximum number of tokens in estimates: far above any device's, and its products fit 64 bits.
const MAX_TOKENS: u64 = 1 << 30;

/// The sequences of a training or scoring row at maximum length, in tokens.
#[derive(Clone, Copy)]
struct Row {
    prompt: u64,
    response: u64,
    responses: u64,
}

impl Row {
    /// Tokens of the row; the prompt is read once.
    fn tokens(self) -> u64 {
        self.prompt + self.responses * self.response
    }

    fn keys(self) -> u64 {
        self.responses * (self.prompt + self.response)
    }
}

/// Estimates the peak memory of a rank in each kind of phase of a job.
pub struct Estimator<'a> {
    job: &'a spec::Job,
    policy: &'a ModelShape,
    reward: &'a ModelShape,
    compute: Compute,
    longest: u64,
}

impl<'a> Estimator<'a> {
    /// `policy` and `reward` are the shapes of its models.
    pub fn new(job: &'a spec::Job, policy: &'a ModelShape, reward: &'a ModelShape) -> Self {
        let resources = &job.resources;
        let compute = Compute {
            device: resources.device,
            precision: resources.precision,
            threads: resources.threads_per_rank.into(),
            masters: resources.sharding != Sharding::Fsdp,
        };
        Self { job, policy, reward, compute, longest: bounded(job.text.max_length) }
    }

    pub fn generate(&self) -> Estimate {
        generation(self.policy, self.decoding(&self.job.sampling), self.compute)
    }

    pub fn score(&self) -> Estimate {
        let model = Model { shape: self.reward, head: Head::Reward };
        inference(model, 1, self.read(self.scored(), self.reward_budget()), self.compute)
    }

    /// The reference and the old policy are one if both are the policy that the round started with. Two
    /// models may be resident `together`.
    pub fn ref_log_probs(&self, together: bool) -> Estimate {
        let needs = self.job.policy_step.method.needs();
        let initial = needs.reference == Some(spec::ReferencePolicy::Initial) && self.job.rounds > 1;
        let resident = if initial && needs.old_log_probs && together { 2 } else { 1 };
        let model = Model { shape: self.policy, head: Head::Language };
        inference(model, resident, self.read(self.group(), self.policy_budget()), self.compute)
    }

    /// All models may be resident `together`.
    pub fn evaluate(&self, together: bool) -> Estimate {
        let budget = self.policy_budget().max(self.reward_budget());
        let with_reference = self.job.evaluation.kl_prompts > 0;
        let models = Evaluated { policy: self.policy, reward: self.reward, with_reference, together };
        let decoding = self.decoding(&self.job.evaluation.sampling);
        evaluation(models, decoding, self.read(self.whole(1), budget), self.compute)
    }

    pub fn sft(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.sft_step;
        let budget = bounded(step.optimizer.micro_batch_tokens);
        let batch = self.step(self.whole(1), budget, bounded(step.batch_sequences));
        let model = Model { shape: self.policy, head: Head::Language };
        training(model, self.training(self.policy, checkpointing, None), batch, self.compute)
    }

    pub fn policy_epoch(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.policy_step;
        let batch = self.step(self.group(), self.policy_budget(), bounded(step.batch_sequences));
        let model = Model { shape: self.policy, head: Head::Language };
        let how = self.training(self.policy, checkpointing, step.lora.as_ref());
        training(model, how, batch, self.compute)
    }

    pub fn reward_epoch(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.reward_step;
        // A row of n responses has n − 1 pairs, each of the chosen one with another.
        let row = self.compared(step);
        let rows = bounded(step.batch_pairs).div_ceil((row.responses - 1).max(1));
        let batch = self.step(row, self.reward_budget(), rows * row.responses);
        let model = Model { shape: self.reward, head: Head::Reward };
        let how = self.training(self.reward, checkpointing, step.lora.as_ref());
        training(model, how, batch, self.compute)
    }

    fn training(&self, shape: &ModelShape, checkpointing: bool, lora: Option<&Lora>) -> Training {
        let adapters = lora.map(|lora| Adapters {
            parameters: shape.adapters(lora.rank.into(), &lora.target_modules),
            rank: lora.rank.into(),
            targets: lora.target_modules.len() as u64,
        });
        let resources = &self.job.resources;
        Training {
            ranks: resources.ranks.into(),
            sharding: resources.sharding,
            checkpointing,
            adapters,
            snapshots: resources.checkpoints.steps.is_some() || resources.checkpoints.every.is_some(),
        }
    }

    fn decoding(&self, sampling: &Sampling) -> Decoding {
        let limits = Limits::new(self.job.text.max_length, sampling.max_new_tokens);
        Decoding {
            max_num_seqs: bounded(self.job.generation.max_num_seqs),
            prompt: bounded(limits.prompt),
            completion: bounded(limits.response),
        }
    }

    fn policy_budget(&self) -> u64 {
        bounded(self.job.policy_step.optimizer.micro_batch_tokens)
    }

    fn reward_budget(&self) -> u64 {
        bounded(self.job.reward_step.optimizer.micro_batch_tokens)
    }

    /// Sequences of a prompt and a completion.
    fn sampled(&self, responses: u64) -> Row {
        let Decoding { prompt, completion: response, .. } = self.decoding(&self.job.sampling);
        Row { prompt, response, responses }
    }

    /// Sequences without a shared prompt.
    fn whole(&self, sequences: u64) -> Row {
        Row { prompt: 0, response: self.longest, responses: sequences }
    }

    /// The completions of a prompt that the policy's method reads.
    fn group(&self) -> Row {
        let step = &self.job.policy_step;
        self.sampled(step.method.max_completions(step.samples).into())
    }

    /// All completions of a prompt, which are scored together.
    fn scored(&self) -> Row {
        self.sampled(self.job.policy_step.samples.into())
    }

    /// The longer one of a human pair and a golden response with its completions.
    fn compared(&self, step: &RewardStep) -> Row {
        let golden = (step.apo_weight > 0.0).then(|| self.sampled(u64::from(step.samples) + 1));
        let human = (step.human_weight > 0.0).then(|| self.whole(2));
        golden.into_iter().chain(human).max_by_key(|row| row.tokens()).unwrap_or(self.whole(2))
    }

    /// A micro-batch: as many rows as fit the budget, at least one, at most the rank's part of the step's
    /// `sequences`.
    fn step(&self, row: Row, budget: u64, sequences: u64) -> Batch {
        let rows =
            sequences.div_ceil(row.responses.max(1)).div_ceil(u64::from(self.job.resources.ranks).max(1));
        let tokens = budget.max(row.tokens()).min((rows + 1) * row.tokens());
        self.batch(row, tokens)
    }

    /// A batch of a chunk: as many rows as fit the budget, at least one, at most all.
    fn read(&self, row: Row, budget: u64) -> Batch {
        let chunk = bounded(self.job.generation.chunk_prompts).saturating_mul(row.tokens());
        self.batch(row, budget.max(row.tokens()).min(chunk))
    }

    fn batch(&self, row: Row, tokens: u64) -> Batch {
        let tokens = tokens.min(MAX_TOKENS);
        let keys = tokens * row.keys() / row.tokens().max(1);
        Batch { tokens, outputs: tokens, keys: keys.clamp(tokens, MAX_TOKENS), longest: self.longest }
    }
}

fn bounded(count: usize) -> u64 {
    (count as u64).min(MAX_TOKENS)
}

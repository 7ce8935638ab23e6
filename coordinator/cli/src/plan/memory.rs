//! From a job's fields to the plain numbers that memory is estimated from.

use anyhow::{Context, Result, anyhow};
use foil_common::memory::{
    Adapters, Batch, Compute, Decoding, Estimate, Head, Model, ModelShape, Training, evaluation, generation,
    inference, training,
};
use foil_common::spec::{self, Lora, ModelRef, RewardStep, Sampling};
use foil_common::text::Limits;

use foil_coordinator::plan::{Phase, Work};
use foil_coordinator::resolve;

/// Most tokens that are planned with: far above any device's, and products of it stay within 64 bits.
const MOST_TOKENS: u64 = 1 << 30;

/// What a rank takes in each kind of phase that the job has.
pub(super) struct Memory {
    pub(super) policy: ModelShape,
    pub(super) reward: ModelShape,
    pub(super) kinds: Vec<Kind>,
}

pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) estimate: Estimate,
    /// Of a training phase: its activations with checkpointing the other way.
    pub(super) otherwise: Option<u64>,
}

impl Memory {
    pub(super) fn of(job: &spec::Job, phases: &[Phase], policy: ModelShape, reward: ModelShape) -> Self {
        let reader = Reader::new(job, &policy, &reward);
        let has = |work: Work| phases.iter().any(|phase| phase.work == work);
        let mut kinds = vec![reader.kind("generate", reader.generate())];
        kinds.push(reader.kind("score", reader.score()));
        if has(Work::ReferencePolicy) {
            kinds.push(reader.kind("reference", reader.reference()));
        }
        if has(Work::Sft) {
            kinds.push(reader.trained("sft", &|checkpointing| reader.sft(checkpointing)));
        }
        kinds.push(reader.trained("reward epoch", &|checkpointing| reader.reward_epoch(checkpointing)));
        kinds.push(reader.trained("policy epoch", &|checkpointing| reader.policy_epoch(checkpointing)));
        kinds.push(reader.kind("evaluate", reader.evaluate()));
        Self { kinds, policy, reward }
    }
}

/// The policy's and the reward model's.
pub(super) fn shapes(job: &spec::Job) -> Result<(ModelShape, ModelShape)> {
    let policy = shape("policy.model", &job.policy.model)?;
    let reward = match &job.reward.model {
        Some(model) => shape("reward.model", model)?,
        None => policy.clone(),
    };
    Ok((policy, reward))
}

fn shape(field: &'static str, model: &ModelRef) -> Result<ModelShape> {
    let ModelRef::Path(dir) = model else {
        return Err(anyhow!(
            "{field}: {} is in a store; name its local directory to plan with it",
            model.name()
        ));
    };
    let config = resolve::local_config(field, dir)?;
    ModelShape::from_config(&config).with_context(|| format!("{field}: {dir}"))
}

/// The sequences of a training or scoring row at their longest, in tokens.
#[derive(Clone, Copy)]
struct Row {
    prompt: u64,
    answer: u64,
    answers: u64,
}

impl Row {
    /// The prompt is read once.
    fn tokens(self) -> u64 {
        self.prompt + self.answers * self.answer
    }

    fn keys(self) -> u64 {
        self.answers * (self.prompt + self.answer)
    }
}

struct Reader<'a> {
    job: &'a spec::Job,
    policy: &'a ModelShape,
    reward: &'a ModelShape,
    compute: Compute,
    longest: u64,
}

impl<'a> Reader<'a> {
    fn new(job: &'a spec::Job, policy: &'a ModelShape, reward: &'a ModelShape) -> Self {
        let resources = &job.resources;
        let compute = Compute {
            device: resources.device,
            precision: resources.precision,
            threads: resources.threads_per_rank.into(),
        };
        Self { job, policy, reward, compute, longest: narrow(job.text.max_length) }
    }

    fn kind(&self, name: &'static str, estimate: Estimate) -> Kind {
        Kind { name, estimate, otherwise: None }
    }

    fn trained(&self, name: &'static str, of: &dyn Fn(bool) -> Estimate) -> Kind {
        let checkpointing = self.job.resources.activation_checkpointing;
        Kind { name, estimate: of(checkpointing), otherwise: Some(of(!checkpointing).activations) }
    }

    fn generate(&self) -> Estimate {
        generation(self.policy, self.decoding(&self.job.sampling), self.compute)
    }

    fn score(&self) -> Estimate {
        let model = Model { shape: self.reward, head: Head::Reward };
        inference(model, 1, self.read(self.judged(), self.reward_budget()), self.compute)
    }

    /// The reference and the old policy are one if both are the policy that the round started with.
    fn reference(&self) -> Estimate {
        let needs = self.job.policy_step.method.needs();
        let initial = needs.reference == Some(spec::ReferencePolicy::Initial) && self.job.rounds > 1;
        let resident = if initial && needs.old_log_probs { 2 } else { 1 };
        let model = Model { shape: self.policy, head: Head::Language };
        inference(model, resident, self.read(self.group(), self.policy_budget()), self.compute)
    }

    fn evaluate(&self) -> Estimate {
        let budget = self.policy_budget().max(self.reward_budget());
        let with_reference = self.job.evaluation.kl_prompts > 0;
        let decoding = self.decoding(&self.job.evaluation.sampling);
        let batch = self.read(self.whole(1), budget);
        evaluation(self.policy, self.reward, with_reference, decoding, batch, self.compute)
    }

    fn sft(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.sft_step;
        let budget = narrow(step.optimizer.micro_batch_tokens);
        let batch = self.step(self.whole(1), budget, narrow(step.batch_sequences));
        let model = Model { shape: self.policy, head: Head::Language };
        training(model, self.training(self.policy, checkpointing, None), batch, self.compute)
    }

    fn policy_epoch(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.policy_step;
        let batch = self.step(self.group(), self.policy_budget(), narrow(step.batch_sequences));
        let model = Model { shape: self.policy, head: Head::Language };
        let how = self.training(self.policy, checkpointing, step.lora.as_ref());
        training(model, how, batch, self.compute)
    }

    fn reward_epoch(&self, checkpointing: bool) -> Estimate {
        let step = &self.job.reward_step;
        // A pair is a chosen answer's row's item: one answer fewer than the row has.
        let row = self.compared(step);
        let rows = narrow(step.batch_pairs).div_ceil((row.answers - 1).max(1));
        let batch = self.step(row, self.reward_budget(), rows * row.answers);
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
        Training { ranks: resources.ranks.into(), sharding: resources.sharding, checkpointing, adapters }
    }

    fn decoding(&self, sampling: &Sampling) -> Decoding {
        let limits = Limits::new(self.job.text.max_length, sampling.max_new_tokens);
        Decoding {
            max_num_seqs: narrow(self.job.generation.max_num_seqs),
            prompt: narrow(limits.prompt),
            completion: narrow(limits.response),
        }
    }

    fn policy_budget(&self) -> u64 {
        narrow(self.job.policy_step.optimizer.micro_batch_tokens)
    }

    fn reward_budget(&self) -> u64 {
        narrow(self.job.reward_step.optimizer.micro_batch_tokens)
    }

    /// Sequences of a prompt and a sample.
    fn sampled(&self, answers: u64) -> Row {
        let Decoding { prompt, completion: answer, .. } = self.decoding(&self.job.sampling);
        Row { prompt, answer, answers }
    }

    /// Sequences that share nothing.
    fn whole(&self, sequences: u64) -> Row {
        Row { prompt: 0, answer: self.longest, answers: sequences }
    }

    /// The answers that the policy's method reads of a prompt.
    fn group(&self) -> Row {
        let step = &self.job.policy_step;
        self.sampled(step.method.max_completions(step.samples).into())
    }

    /// A prompt's samples, all scored together.
    fn judged(&self) -> Row {
        self.sampled(self.job.policy_step.samples.into())
    }

    /// The longer of a human pair and a golden answer with its samples.
    fn compared(&self, step: &RewardStep) -> Row {
        let golden = (step.apo_weight > 0.0).then(|| self.sampled(u64::from(step.samples) + 1));
        let human = (step.human_weight > 0.0).then(|| self.whole(2));
        golden.into_iter().chain(human).max_by_key(|row| row.tokens()).unwrap_or(self.whole(2))
    }

    /// A micro-batch: as many rows as the budget holds, or one that is larger, or the rank's part of the step's `sequences`.
    fn step(&self, row: Row, budget: u64, sequences: u64) -> Batch {
        let rows =
            sequences.div_ceil(row.answers.max(1)).div_ceil(u64::from(self.job.resources.ranks).max(1));
        let tokens = budget.max(row.tokens()).min((rows + 1) * row.tokens());
        self.batch(row, tokens)
    }

    /// A batch of a chunk: as many rows as the budget holds, or one that is larger, or all there are.
    fn read(&self, row: Row, budget: u64) -> Batch {
        let chunk = narrow(self.job.generation.chunk_prompts).saturating_mul(row.tokens());
        self.batch(row, budget.max(row.tokens()).min(chunk))
    }

    fn batch(&self, row: Row, tokens: u64) -> Batch {
        let tokens = tokens.min(MOST_TOKENS);
        let keys = tokens * row.keys() / row.tokens().max(1);
        Batch { tokens, outputs: tokens, keys: keys.clamp(tokens, MOST_TOKENS), longest: self.longest }
    }
}

fn narrow(count: usize) -> u64 {
    (count as u64).min(MOST_TOKENS)
}

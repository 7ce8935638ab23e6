//! Measures training steps.

use std::time::{Duration, Instant};

use anyhow::Context;
use foil_common::spec::{Decay, Normalization, OnNonfinite, Optimizer, Schedule, ScheduleKind};
use foil_worker::collective::{Gang, PortRange, RankConfig, Rendezvous, RendezvousHost};
use foil_worker::evaluate;
use foil_worker::model::{LanguageModel, Parameters, Precision, RewardModel};
use foil_worker::objective::metrics::MetricSums;
use foil_worker::objective::policy::{GroupLoss, LossOutput, dpo_loss};
use foil_worker::train::{
    Comparison, CompletionGroup, Objective, OrderKey, PairRanking, PolicyGroups, RowShape, StepPlan,
    StepRequests, TrainConfig, Trainer,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::Bench;
use crate::workload::{PairTokens, Workload};

/// Maximum number of tokens of a micro-batch: more than in any batch, so that each step is one forward and
/// one backward, as in the peers.
const WHOLE_BATCH: usize = 1 << 20;

/// Maximum number of tokens of a batch in the reference pass, which keeps nothing for backward.
const REFERENCE_BATCH: usize = 4096;

/// Training steps with any objective.
struct Steps {
    config: TrainConfig,
    batches: Vec<std::ops::Range<usize>>,
    gang: Gang,
}

impl Steps {
    fn new(workload: &Workload) -> anyhow::Result<Self> {
        let mut first = 0;
        let batches = workload.batches.iter().map(|batch| {
            let rows = first..first + batch.len();
            first = rows.end;
            rows
        });
        Ok(Self { config: config(workload)?, batches: batches.collect(), gang: gang(workload)? })
    }

    /// Takes one step for each batch. Returns the losses and the duration of the steps themselves in seconds.
    fn take(&self, objective: &dyn Objective, parameters: &Parameters) -> anyhow::Result<(Vec<f64>, f64)> {
        let shapes: Vec<RowShape> =
            (0..objective.sets().iter().sum()).map(|row| objective.shape(row)).collect();
        let mut trainer = Trainer::new(parameters, &self.config, self.batches.len() as u64, &self.gang)?;
        let plan = |rows: &std::ops::Range<usize>, trainer: &Trainer<'_>| {
            let rows: Vec<usize> = rows.clone().collect();
            StepPlan::new(&rows, &shapes, trainer.rank_info(), self.config.optimizer.micro_batch_tokens)
        };
        let plans: Vec<StepPlan> = self.batches.iter().map(|rows| plan(rows, &trainer)).collect();
        trainer.warm_up(objective, &plans[0])?;
        self.gang.barrier()?;
        let started = Instant::now();
        let losses =
            plans.iter().map(|plan| Ok(trainer.step(objective, plan, StepRequests::default())?.0.loss));
        let losses = losses.collect::<anyhow::Result<Vec<f64>>>()?;
        Ok((losses, started.elapsed().as_secs_f64()))
    }
}

fn config(workload: &Workload) -> anyhow::Result<TrainConfig> {
    Ok(TrainConfig {
        order: OrderKey { seed: 0, round: 1 },
        epochs: 1,
        batch_size: 1,
        peak_learning_rate: workload.learning_rate,
        optimizer: Optimizer {
            beta1: workload.betas.0,
            beta2: workload.betas.1,
            eps: workload.eps,
            weight_decay: workload.weight_decay,
            decay: Decay::Matrices,
            max_grad_norm: workload.clip,
            micro_batch_tokens: WHOLE_BATCH,
            on_nonfinite: OnNonfinite::Fail,
        },
        schedule: Schedule { kind: ScheduleKind::Constant, warmup_steps: 0, min_lr_ratio: 1.0 },
        sharding: workload.sharding()?,
    })
}

/// A gang of this process alone, or of two processes.
fn gang(workload: &Workload) -> anyhow::Result<Gang> {
    if workload.world <= 1 {
        return Ok(Gang::single());
    }
    let (address, port) = workload.rendezvous.rsplit_once(':').context("rendezvous is HOST:PORT")?;
    let port = port.parse().context("rendezvous is HOST:PORT")?;
    let config = RankConfig {
        address: address.to_owned(),
        ports: PortRange::ANY,
        device: workload.device()?,
        timeout: Duration::from_secs(60),
    };
    let prefix = "bench";
    if workload.rank == 0 {
        return Ok(RendezvousHost::open_at(config, PortRange::only(port))?.gather(workload.world, prefix)?);
    }
    let rendezvous = Rendezvous {
        rank: workload.rank,
        world: workload.world,
        host: address.to_owned(),
        port,
        prefix: prefix.to_owned(),
    };
    Ok(Gang::join(&rendezvous, &config)?)
}

/// Number of tokens of a forward without padding and prefix sharing: prompt and response of both sides.
fn logical_tokens(workload: &Workload) -> usize {
    let pair = |pair: &PairTokens| 2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len();
    workload.batches.iter().flatten().map(pair).sum()
}

/// Reward-model training on pairs.
pub(crate) struct Rewards {
    start: RewardModel,
    steps: Steps,
    pairs: Vec<Comparison>,
    precision: Precision,
    tokens: usize,
}

impl Rewards {
    pub(crate) fn new(workload: &Workload) -> anyhow::Result<Self> {
        let model = LanguageModel::load(&workload.model, workload.device()?)?;
        let start = RewardModel::with_fresh_head(model, workload.seed.into());
        if let Some(path) = &workload.score {
            let tensors = tch::Tensor::read_safetensors(path)?;
            let (_, score) = tensors
                .iter()
                .find(|(name, _)| name == "score.weight")
                .context("the score file holds no score.weight")?;
            let mut head = start.parameters().get("score.weight").context("no head")?.shallow_clone();
            head.copy_(score);
        }
        let pair = |(id, tokens): (usize, &PairTokens)| Comparison {
            id: id as u64,
            chosen: [tokens.prompt.as_slice(), &tokens.chosen].concat(),
            rejected: vec![[tokens.prompt.as_slice(), &tokens.rejected].concat()],
            weight: 1.0,
            margin: 0.0,
        };
        Ok(Self {
            start,
            steps: Steps::new(workload)?,
            pairs: workload.batches.iter().flatten().enumerate().map(pair).collect(),
            precision: workload.precision()?,
            tokens: logical_tokens(workload),
        })
    }
}

impl Bench for Rewards {
    fn run(&mut self) -> anyhow::Result<Value> {
        let model = self.start.copy();
        let objective = PairRanking::new(&model, &self.pairs, &[], self.precision, Normalization::Global);
        let (losses, seconds) = self.steps.take(&objective, model.parameters())?;
        Ok(json!({ "seconds": seconds, "tokens": self.tokens, "losses": losses }))
    }
}

/// Policy training on pairs by DPO, including the reference pass over all rows.
pub(crate) struct Preferences {
    start: LanguageModel,
    steps: Steps,
    groups: Vec<CompletionGroup>,
    beta: f64,
    precision: Precision,
    tokens: usize,
}

impl Preferences {
    pub(crate) fn new(workload: &Workload) -> anyhow::Result<Self> {
        let group = |(id, pair): (usize, &PairTokens)| CompletionGroup {
            id: id as u64,
            prompt: pair.prompt.clone(),
            completions: vec![pair.chosen.clone(), pair.rejected.clone()],
        };
        Ok(Self {
            start: LanguageModel::load(&workload.model, workload.device()?)?,
            steps: Steps::new(workload)?,
            groups: workload.batches.iter().flatten().enumerate().map(group).collect(),
            beta: workload.beta,
            precision: workload.precision()?,
            tokens: logical_tokens(workload),
        })
    }
}

impl Bench for Preferences {
    fn run(&mut self) -> anyhow::Result<Value> {
        let model = self.start.copy();
        let started = Instant::now();
        let reference =
            evaluate::completion_log_probs(&self.start, &self.groups, self.precision, REFERENCE_BATCH)?;
        let reference_seconds = started.elapsed().as_secs_f64();
        let losses = reference.iter().map(|group| dpo(group, self.beta, model.device()));
        let objective = PolicyGroups {
            model: &model,
            groups: &self.groups,
            losses: &losses.collect::<Vec<_>>(),
            metrics: &[],
            precision: self.precision,
        };
        let (losses, seconds) = self.steps.take(&objective, model.parameters())?;
        Ok(json!({ "seconds": seconds + reference_seconds, "tokens": self.tokens, "losses": losses }))
    }
}

/// The loss of one pair; log-probabilities are summed over a completion's tokens.
fn dpo(reference: &[Vec<f32>], beta: f64, device: Device) -> GroupLoss {
    let sums: Vec<f32> = reference.iter().map(|completion| completion.iter().sum()).collect();
    let reference = Tensor::from_slice(&sums).to_device(device);
    GroupLoss::new(1.0, move |log_probs| {
        let policy: Vec<Tensor> = log_probs.iter().map(|completion| completion.sum(Kind::Float)).collect();
        let ratios = Tensor::stack(&policy, 0) - &reference;
        let loss = dpo_loss(&ratios.narrow(0, 0, 1), &ratios.narrow(0, 1, 1), beta, 0.0);
        LossOutput { loss, metrics: MetricSums::from_scalars([], device) }
    })
}

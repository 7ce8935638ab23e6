//! The phases as a rank executes them, one file each; [`support`] contains what they share.
//!
//! A chunk of a map phase reads rows and returns a [`ChunkOutput`], which is uploaded and reported. A gang
//! phase reads all its rows and trains together with the other ranks, and rank 0 uploads the model. Both run
//! in the rank's [`TaskContext`].

mod evaluate_policy;
mod evaluate_reward;
mod generate;
mod ref_log_probs;
mod score;
mod sft;
mod support;
#[cfg(test)]
mod tests;
mod train_policy;
mod train_reward;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Instant;

use foil_common::otlp::TraceContext;
use foil_common::spec::Sharding;
use foil_common::stats::Moments;
use foil_common::{failpoint, spec};
use tch::Device;

use self::support::disk::TrainedModels;
use self::support::models::{Encoders, Loader, Models, Policy, RewardModel};
use self::support::records::{CalibrationRecord, MomentsRecord};
use crate::collective::{Gang, PortRange};
use crate::model::{Holding, Precision, ShardPlacement};
use crate::task::{Artifact, ChunkTask, GangTask, GangWork, MapWork, Phase, Rendezvous};
use crate::task_io::artifact_cache::ArtifactCache;
use crate::task_io::progress::Reporter;
use crate::task_io::stop::{BusyGuard, StopSignal};

pub use self::support::error::{Failure, PhaseError};

/// The identity and settings of the rank in its attempt.
#[derive(Debug)]
pub struct RankContext {
    pub device: Device,
    /// Bytes of memory available for tensors; 0 if unknown.
    pub memory: u64,
    /// Address at which other ranks reach this one.
    pub address: String,
    /// Ports at which it listens for other ranks.
    pub ports: PortRange,
    pub attempt: u32,
    /// Rank 0's address, sent for each gang.
    pub rendezvous: mpsc::Receiver<Rendezvous>,
    pub stop: StopSignal,
}

/// The state of the device thread across tasks: the job, the device, resident models and cached objects.
pub struct TaskContext {
    job: spec::Job,
    rank: RankContext,
    cache: ArtifactCache,
    models: Models,
    trained_models: TrainedModels,
    encoders: Encoders,
    reports: Reporter,
    /// The phase whose models are resident.
    phase: String,
    /// Whether all of them stay resident; `None` until that is decided.
    together: Option<bool>,
    /// The gang in which a phase has trained, kept while it still reads the shards of its model.
    gang: Option<Gang>,
    /// Held from a gang phase's first step until its model is delivered, since a stop in between would lose
    /// work.
    busy: Option<BusyGuard>,
}

/// The output of a chunk.
struct ChunkOutput {
    /// Content of the chunk's object, an encoded record.
    bytes: Vec<u8>,
    moments: Vec<MomentsRecord>,
    calibration: Option<CalibrationRecord>,
}

impl TaskContext {
    pub fn new(job: spec::Job, rank: RankContext, cache: ArtifactCache, reports: Reporter) -> Self {
        Self {
            job,
            rank,
            cache,
            models: Models::default(),
            trained_models: TrainedModels::default(),
            encoders: Encoders::default(),
            reports,
            phase: String::new(),
            together: None,
            gang: None,
            busy: None,
        }
    }

    pub fn reports(&self) -> &Reporter {
        &self.reports
    }

    /// Executes a leased chunk, uploads its output and reports it.
    pub fn run_chunk(&mut self, task: &ChunkTask) -> Result<(), PhaseError> {
        self.begin_task(&task.phase, task.chunk, &task.work.models(), task.trace);
        let span = self.reports.outer_span("rank").with("foil.chunk", task.chunk);
        let result = self.compute_and_report(task);
        span.end(&result);
        result
    }

    fn compute_and_report(&mut self, task: &ChunkTask) -> Result<(), PhaseError> {
        #[expect(clippy::disallowed_methods, reason = "tasks are timed")]
        let started = Instant::now();
        self.check_disk_for_chunk(task)?;
        self.decide_residency(&task.work)?;
        let output = match &task.work {
            MapWork::Generate(work) => generate::run(self, task, work)?,
            MapWork::Score(work) => score::run(self, task, work)?,
            MapWork::RefLogProbs(work) => ref_log_probs::run(self, task, work)?,
            MapWork::EvaluateReward(work) => evaluate_reward::run(self, task, work)?,
            MapWork::EvaluatePolicy(work) => evaluate_policy::run(self, task, work)?,
        };
        failpoint::hit("phase.upload")?;
        let upload = self.reports.span("upload").with("foil.bytes", output.bytes.len() as u64);
        let object = self.cache.upload(&task.key, output.bytes)?;
        drop(upload);
        failpoint::hit("phase.report")?;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(rows = task.rows.count, duration_s = seconds, "chunk done");
        self.reports.chunk_done(task, object, output.moments, output.calibration, seconds);
        Ok(())
    }

    /// Executes a gang phase and reports its result.
    pub fn run_gang(&mut self, task: &GangTask) -> Result<(), PhaseError> {
        let result = self.train_and_deliver(task);
        self.busy = None;
        self.gang = None;
        result
    }

    fn train_and_deliver(&mut self, task: &GangTask) -> Result<(), PhaseError> {
        // Training takes over its start model if that is resident and whole. Shards are read from files.
        let start = (self.keeps_masters()).then(|| task.work.start());
        self.begin_task(&task.phase, 0, start.as_slice(), task.trace);
        self.check_disk_for_gang(task)?;
        let trained = match &task.work {
            GangWork::Sft(work) => sft::run(self, task, work)?,
            GangWork::TrainReward(work) => train_reward::run(self, task, work)?,
            GangWork::TrainPolicy(work) => train_policy::run(self, task, work)?,
        };
        self.leave_gang()?;
        self.deliver(task, trained)
    }

    /// Begins a task and frees the models and objects that it does not need.
    fn begin_task(&mut self, phase: &Phase, chunk: u32, models: &[&Artifact], trace: Option<TraceContext>) {
        self.reports.begin_task(&phase.name, chunk, trace);
        if self.phase == phase.name {
            return;
        }
        self.phase.clone_from(&phase.name);
        self.together = None;
        self.cache.begin_round(phase.round);
        self.models.keep_only(models);
        release_cached_memory();
    }

    fn policy(&mut self, artifact: &Artifact) -> Result<Rc<Policy>, PhaseError> {
        let (mut loader, models) = self.loader_and_models(artifact);
        models.policies.get(&mut loader, artifact, |loader| loader.policy(artifact))
    }

    fn reward_model(&mut self, artifact: &Artifact) -> Result<Rc<RewardModel>, PhaseError> {
        let (mut loader, models) = self.loader_and_models(artifact);
        models.reward_models.get(&mut loader, artifact, |loader| loader.reward_model(artifact))
    }

    /// A policy for `task` to train. Afterwards it is not resident.
    fn policy_to_train(&mut self, task: &GangTask, start: &Artifact) -> Result<Policy, PhaseError> {
        let (mut loader, models) = self.loader_of(Holding::Masters);
        let resident = models.policies.take(&mut loader, start)?;
        self.models.keep_only(&[]);
        resident.map_or_else(|| self.loader(task).policy(start), Ok)
    }

    /// A reward model for `task` to train. Afterwards it is not resident.
    fn reward_model_to_train(
        &mut self,
        task: &GangTask,
        start: &Artifact,
    ) -> Result<RewardModel, PhaseError> {
        let (mut loader, models) = self.loader_of(Holding::Masters);
        let resident = models.reward_models.take(&mut loader, start)?;
        let resident = match resident {
            Some(model) => Some(model),
            None => models.policies.take(&mut loader, start)?.map(|policy| loader.with_fresh_head(policy)),
        };
        self.models.keep_only(&[]);
        resident.map_or_else(|| self.loader(task).reward_model(start), Ok)
    }

    /// A loader for models that `task` trains, which must not become resident.
    fn loader(&mut self, task: &GangTask) -> Loader<'_> {
        let (rank, world) = (task.rank as usize, task.world as usize);
        let holding = match self.job.resources.sharding {
            Sharding::Fsdp if world > 1 => {
                Holding::Shards(ShardPlacement { rank, world, precision: self.precision() })
            }
            Sharding::Ddp | Sharding::Zero1 | Sharding::Fsdp => Holding::Masters,
        };
        self.loader_of(holding).0
    }

    /// A loader for models that are only read. With `fsdp` they are held in the compute precision, and models
    /// other than `needed` are freed unless they are in use or all fit.
    fn loader_and_models(&mut self, needed: &Artifact) -> (Loader<'_>, &mut Models) {
        if self.keeps_masters() {
            return self.loader_of(Holding::Masters);
        }
        if self.together != Some(true) {
            self.models.keep_only(&[needed]);
        }
        self.loader_of(Holding::Inference(self.precision()))
    }

    fn loader_of(&mut self, holding: Holding) -> (Loader<'_>, &mut Models) {
        let Self { job, rank, cache, models, encoders, reports, .. } = self;
        (Loader { job, device: rank.device, holding, cache, encoders, reports }, models)
    }

    /// Whether models that are only read are held in the same form as for training.
    fn keeps_masters(&self) -> bool {
        self.job.resources.sharding != Sharding::Fsdp
    }

    fn precision(&self) -> Precision {
        match self.job.resources.precision {
            spec::Precision::Fp32 => Precision::Fp32,
            spec::Precision::Bf16 => Precision::Bf16,
        }
    }

    fn progress(&self, done: usize, total: usize, unit: &str) {
        self.reports.progress(done as u64, total as u64, unit);
    }
}

/// Returns memory that the previous phase left in the allocator's cache to the device.
fn release_cached_memory() {
    // A phase can continue without it. A broken device fails at its next use.
    if let Err(error) = foil_torch::device_memory::release_cached() {
        tracing::warn!(%error, "cannot release cached memory");
    }
}

/// Metrics over a chunk's rows, by name.
#[derive(Debug, Default)]
struct Metrics(BTreeMap<String, Moments>);

impl Metrics {
    fn push(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    /// Adds the metrics of `other`, whose names must differ.
    fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn merge(&mut self, name: &str, moments: &Moments) {
        if moments.count > 0 {
            self.0.entry(name.to_owned()).or_default().merge(moments);
        }
    }

    fn records(&self) -> Vec<MomentsRecord> {
        self.0.iter().map(|(name, moments)| moments.to_wire(name)).collect()
    }
}

//! The phases as a rank executes them, one file each; [`support`] holds what they share.
//!
//! A chunk of a map phase reads rows and returns a [`ChunkOutput`], which is uploaded and reported. A gang phase reads all its
//! rows, trains together with the other ranks, and rank 0 uploads the model. Both run in the rank's [`TaskContext`].

mod evaluate_policy;
mod evaluate_reward;
mod generate;
mod reference;
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

use foil_common::spec;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use foil_proto::v1::task::Work;
use tch::Device;

use self::support::error::need;
use self::support::models::{Encoders, Judge, Loader, Models, Policy};
use self::support::rows::Span;
use crate::model::Precision;
use crate::task_io::artifact_cache::ArtifactCache;
use crate::task_io::progress::Reporter;
use crate::task_io::stop::{BusyGuard, StopSignal};
use foil_common::failpoint;

pub use self::support::error::{Failure, PhaseError};

/// The rank within its attempt.
#[derive(Debug)]
pub struct RankContext {
    pub device: Device,
    /// Address at which other ranks reach this one.
    pub address: String,
    pub attempt: u32,
    /// Rank 0's address, sent for each gang.
    pub rendezvous: mpsc::Receiver<v1::Rendezvous>,
    pub stop: StopSignal,
}

/// The state of the device thread across tasks: the job, the device, resident models and cached objects.
pub struct TaskContext {
    job: spec::Job,
    rank: RankContext,
    cache: ArtifactCache,
    models: Models,
    encoders: Encoders,
    reports: Reporter,
    /// The phase whose models are resident.
    phase: String,
    /// Held from a gang phase's first step until its model is delivered, while a stop would lose work.
    busy: Option<BusyGuard>,
}

/// The output of a chunk.
struct ChunkOutput {
    /// Content of the chunk's object, an encoded message.
    bytes: Vec<u8>,
    moments: Vec<v1::Moments>,
    calibration: Option<v1::Calibration>,
}

/// A chunk of a map phase.
#[derive(Clone, Debug)]
struct Chunk {
    phase: String,
    round: u32,
    number: u32,
    span: Span,
}

impl Chunk {
    /// The phase's name without its round; keys its random numbers.
    fn purpose(&self) -> &str {
        self.phase.split_once('.').map_or(self.phase.as_str(), |(_, purpose)| purpose)
    }
}

impl TaskContext {
    pub fn new(job: spec::Job, rank: RankContext, cache: ArtifactCache, reports: Reporter) -> Self {
        Self {
            job,
            rank,
            cache,
            models: Models::default(),
            encoders: Encoders::default(),
            reports,
            phase: String::new(),
            busy: None,
        }
    }

    pub fn reports(&self) -> &Reporter {
        &self.reports
    }

    /// Executes a leased chunk, uploads its output and reports it.
    pub fn run_chunk(&mut self, lease: &v1::RunChunk) -> Result<(), PhaseError> {
        let started = Instant::now();
        let task = need(&lease.task, "a task")?;
        let work = need(&task.work, "its work")?;
        self.begin_task(task, lease.chunk);
        let chunk = Chunk {
            phase: task.phase.clone(),
            round: task.round,
            number: lease.chunk,
            span: Span { first: lease.first, count: lease.count },
        };
        let output = match work {
            Work::Generate(work) => generate::run(self, &chunk, work)?,
            Work::Score(work) => score::run(self, &chunk, work)?,
            Work::Reference(work) => reference::run(self, &chunk, work)?,
            Work::EvaluateReward(work) => evaluate_reward::run(self, &chunk, work)?,
            Work::EvaluatePolicy(work) => evaluate_policy::run(self, &chunk, work)?,
            Work::Sft(_) | Work::TrainReward(_) | Work::TrainPolicy(_) => {
                return Err(PhaseError::Incomplete("a map phase's work"));
            }
        };
        failpoint::hit("phase.upload")?;
        let object = self.cache.upload(&lease.key, output.bytes)?;
        failpoint::hit("phase.report")?;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(rows = lease.count, duration_s = seconds, "chunk done");
        self.reports.send(Message::Chunk(v1::ChunkResult {
            lease: lease.lease,
            phase: task.phase.clone(),
            chunk: lease.chunk,
            object: Some(object),
            moments: output.moments,
            calibration: output.calibration,
            seconds,
        }));
        Ok(())
    }

    /// Executes a gang phase and reports its result.
    pub fn run_gang(&mut self, command: &v1::RunGang) -> Result<(), PhaseError> {
        let ended = self.train_and_deliver(command);
        self.busy = None;
        ended
    }

    fn train_and_deliver(&mut self, command: &v1::RunGang) -> Result<(), PhaseError> {
        let task = need(&command.task, "a task")?;
        let work = need(&task.work, "its work")?;
        self.begin_task(task, 0);
        let trained = match work {
            Work::Sft(work) => sft::run(self, command, work)?,
            Work::TrainReward(work) => train_reward::run(self, command, work)?,
            Work::TrainPolicy(work) => train_policy::run(self, command, work)?,
            Work::Generate(_)
            | Work::Score(_)
            | Work::Reference(_)
            | Work::EvaluateReward(_)
            | Work::EvaluatePolicy(_) => {
                return Err(PhaseError::Incomplete("a gang phase's work"));
            }
        };
        self.deliver(command, trained)
    }

    /// Begins a task and frees models and objects that it does not need.
    fn begin_task(&mut self, task: &v1::Task, chunk: u32) {
        self.reports.begin_task(&task.phase, chunk);
        if self.phase == task.phase {
            return;
        }
        self.phase.clone_from(&task.phase);
        self.cache.begin_round(task.round);
        self.models.keep_only(&models_of(task));
    }

    fn policy(&mut self, artifact: &Option<v1::Artifact>) -> Result<Rc<Policy>, PhaseError> {
        let artifact = need(artifact, "a policy")?;
        let (mut loader, models) = self.loader_and_models();
        models.policy(&mut loader, artifact)
    }

    fn judge(&mut self, artifact: &Option<v1::Artifact>) -> Result<Rc<Judge>, PhaseError> {
        let artifact = need(artifact, "a reward model")?;
        let (mut loader, models) = self.loader_and_models();
        models.judge(&mut loader, artifact)
    }

    /// A loader for models that are trained, which must not become resident.
    fn loader(&mut self) -> Loader<'_> {
        self.loader_and_models().0
    }

    fn loader_and_models(&mut self) -> (Loader<'_>, &mut Models) {
        let Self { job, rank, cache, models, encoders, reports, .. } = self;
        (Loader { job, device: rank.device, cache, encoders, reports }, models)
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

/// The models that stay resident through a map phase. A gang phase trains copies of its own.
fn models_of(task: &v1::Task) -> Vec<&v1::Artifact> {
    let models = match &task.work {
        Some(Work::Generate(work)) => vec![&work.policy],
        Some(Work::Score(work)) => vec![&work.reward],
        Some(Work::Reference(work)) => vec![&work.reference, &work.sampler],
        Some(Work::EvaluateReward(work)) => vec![&work.reward],
        Some(Work::EvaluatePolicy(work)) => vec![&work.policy, &work.reference, &work.reward],
        Some(Work::Sft(_) | Work::TrainReward(_) | Work::TrainPolicy(_)) | None => Vec::new(),
    };
    models.into_iter().flatten().collect()
}

/// Metrics over a chunk's rows, by name.
#[derive(Debug, Default)]
struct Figures(BTreeMap<String, foil_common::stats::Moments>);

impl Figures {
    fn push(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn merge(&mut self, name: &str, moments: &foil_common::stats::Moments) {
        if moments.count > 0 {
            self.0.entry(name.to_owned()).or_default().merge(moments);
        }
    }

    fn to_wire(&self) -> Vec<v1::Moments> {
        self.0.iter().map(|(name, moments)| moments.to_wire(name)).collect()
    }
}

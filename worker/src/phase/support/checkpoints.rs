//! Checkpoints of a gang phase: written, hashed and uploaded in the background, and downloaded to resume.

#![expect(clippy::disallowed_methods, reason = "checkpoints have an interval")]

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use foil_common::spec::{Checkpoints, Sharding};

use crate::phase::{PhaseError, TaskContext};
use crate::task::{Checkpoint, GangTask};
use crate::task_io::artifact_cache::{self, ObjectError, ObjectStore};
use crate::task_io::progress::{Reporter, ShardTimes};
use crate::task_io::stop::{BusyGuard, StopSignal};
use crate::train::{CheckpointShard, Checkpointer, LoadedCheckpoint, StepRequests, TrainError};
use foil_common::failpoint;

/// Destination of a rank's shards in one attempt at a phase.
struct Destination {
    phase: String,
    attempt: u32,
    rank: u32,
    /// Prefix of the keys of the attempt's objects; ends in '/'.
    key_prefix: String,
    /// Directory for files being uploaded.
    scratch: PathBuf,
    objects: Box<dyn ObjectStore>,
    reports: Reporter,
}

impl Destination {
    /// Writes a shard to a file, uploads it and reports it. The coordinator commits the checkpoint once all
    /// ranks have reported theirs.
    fn upload(&self, shard: &CheckpointShard) -> Result<(), PhaseError> {
        let (step, rank) = (shard.step(), self.rank);
        let (stall, started) = (shard.begun.elapsed(), Instant::now());
        let span = self.reports.span("checkpoint").with("foil.step", step);
        let file = self.scratch.join(format!("{step:012}.safetensors"));
        let model_error =
            |source| PhaseError::Model { artifact: format!("checkpoint of step {step}"), source };
        shard.write(&file).map_err(model_error)?;
        let digest = artifact_cache::digest_of(&file)?;
        failpoint::hit("checkpoint.upload")?;
        let key = format!("{}checkpoints/{step:012}/rank-{rank}.safetensors", self.key_prefix);
        let object = self.objects.upload_file(&key, &file, &digest)?;
        std::fs::remove_file(&file).map_err(|source| ObjectError::Disk { path: file, source })?;
        failpoint::hit("checkpoint.report")?;
        drop(span.with("foil.bytes", digest.size));
        tracing::info!(step, bytes = digest.size, "checkpoint shard uploaded");
        let times = ShardTimes { stall, upload: started.elapsed() };
        self.reports.checkpoint_shard_done((&self.phase, self.attempt), step, object, times);
        Ok(())
    }
}

/// Writes a rank's checkpoints in a gang phase. At most one upload is in flight: a second one blocks training
/// until it starts.
pub(in crate::phase) struct CheckpointWriter {
    cadence: Checkpoints,
    stop: StopSignal,
    /// Held from the first step on; what came before is quickly redone.
    busy: Option<BusyGuard>,
    checkpoint: Option<LoadedCheckpoint>,
    /// Only rank 0 decides by time.
    rank: u32,
    last: (u64, Instant),
    upload_thread: Option<UploadThread>,
}

struct UploadThread {
    shards: mpsc::SyncSender<CheckpointShard>,
    thread: JoinHandle<Result<(), PhaseError>>,
}

impl CheckpointWriter {
    pub(in crate::phase) fn start(context: &mut TaskContext, task: &GangTask) -> Result<Self, PhaseError> {
        let checkpoint = task
            .resume
            .as_ref()
            .map(|checkpoint| context.download_checkpoint(task, checkpoint))
            .transpose()?;
        let destination = Destination {
            phase: task.phase.name.clone(),
            attempt: task.attempt,
            rank: task.rank,
            key_prefix: task.key_prefix.clone(),
            scratch: context.cache.scratch("checkpoint")?,
            objects: context.cache.objects(),
            reports: context.reports.clone(),
        };
        let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.metadata.step);
        Ok(Self {
            cadence: context.job.resources.checkpoints,
            stop: context.rank.stop.clone(),
            busy: None,
            checkpoint,
            rank: task.rank,
            last: (step, Instant::now()),
            upload_thread: Some(UploadThread::start(destination)?),
        })
    }

    /// Waits until all shards are uploaded and reported. While the returned guard is held, a request to stop
    /// waits.
    pub(in crate::phase) fn finish(mut self) -> Result<Option<BusyGuard>, PhaseError> {
        self.upload_thread.take().map_or(Ok(()), UploadThread::finish)?;
        Ok(self.busy)
    }
}

impl UploadThread {
    fn start(destination: Destination) -> Result<Self, PhaseError> {
        let (shards, received) = mpsc::sync_channel::<CheckpointShard>(0);
        let span = tracing::Span::current();
        let upload = move || {
            let _entered = span.enter();
            received.into_iter().try_for_each(|shard| destination.upload(&shard))
        };
        let thread = thread::Builder::new().name("checkpoints".to_owned()).spawn(upload);
        let disk = |source| ObjectError::Disk { path: "a thread for checkpoints".into(), source };
        Ok(Self { shards, thread: thread.map_err(disk)? })
    }

    fn finish(self) -> Result<(), PhaseError> {
        drop(self.shards);
        self.thread.join().unwrap_or(Err(PhaseError::CheckpointThread))
    }
}

impl Checkpointer for CheckpointWriter {
    fn load(&mut self) -> Option<LoadedCheckpoint> {
        self.checkpoint.take()
    }

    fn requests(&mut self, step: u64) -> StepRequests {
        self.busy.get_or_insert_with(|| self.stop.busy());
        let (last, at) = self.last;
        // All ranks count the same steps, but their clocks differ.
        let steps = self.cadence.steps.is_some_and(|every| step - last >= every);
        let time = self.cadence.every.is_some_and(|every| self.rank == 0 && at.elapsed() >= every);
        StepRequests { checkpoint: steps || time, stop: self.stop.is_requested() }
    }

    fn save(&mut self, shard: CheckpointShard) -> Result<(), TrainError> {
        self.last = (shard.step(), Instant::now());
        let Some(upload_thread) = &self.upload_thread else { return Ok(()) };
        if upload_thread.shards.send(shard).is_ok() {
            return Ok(());
        }
        // The thread has ended; report why.
        let reason = self.upload_thread.take().map_or(Ok(()), UploadThread::finish);
        let reason = reason.err().map_or_else(|| "its thread ended".to_owned(), |error| error.to_string());
        Err(TrainError::Checkpoint(reason))
    }
}

impl TaskContext {
    /// Downloads the ranks' shards of a checkpoint. With `fsdp` and as many ranks as saved it, a rank needs
    /// its own alone.
    fn download_checkpoint(
        &mut self,
        task: &GangTask,
        checkpoint: &Checkpoint,
    ) -> Result<LoadedCheckpoint, PhaseError> {
        failpoint::hit("checkpoint.download")?;
        let (step, world) = (checkpoint.step, checkpoint.shards.len());
        let own = self.job.resources.sharding == Sharding::Fsdp && world == task.world as usize;
        let mut files = Vec::new();
        for (rank, object) in checkpoint.shards.iter().enumerate() {
            if own && rank != task.rank as usize {
                continue;
            }
            let file = self.cache.object(object).map_err(|error| match error {
                ObjectError::Damaged { key, message } => PhaseError::Checkpoint { step, key, message },
                other => other.into(),
            })?;
            files.push((rank, file));
        }
        let damaged = |error: crate::model::ModelError| PhaseError::Checkpoint {
            step,
            key: checkpoint.shards.first().map(|object| object.key.clone()).unwrap_or_default(),
            message: error.to_string(),
        };
        LoadedCheckpoint::open_some(&files, world).map_err(damaged)
    }
}

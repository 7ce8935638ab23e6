//! Checkpoints of a gang phase. They are written, hashed and uploaded in the background, and downloaded to
//! resume.

#![expect(clippy::disallowed_methods, reason = "checkpoints are taken at intervals")]

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use foil_common::spec::{Checkpoints, Sharding};

use crate::phase::{PhaseError, TaskContext};
use crate::task::{Checkpoint, GangTask};
use crate::task_io::artifact_cache::{ObjectError, ObjectStore};
use crate::task_io::progress::{Reporter, ShardTimes};
use crate::task_io::stop::{BusyGuard, StopSignal};
use crate::train::{
    CheckpointShard, Checkpointer, LoadedCheckpoint, SnapshotMemory, StepRequests, TrainError,
};
use foil_common::failpoint;

/// Destination of a rank's shards in one attempt at a phase.
struct Destination {
    phase: String,
    attempt: u32,
    rank: u32,
    /// Key prefix of the attempt's objects; ends in '/'.
    key_prefix: String,
    /// Directory for files being uploaded.
    scratch: PathBuf,
    objects: Box<dyn ObjectStore>,
    reports: Reporter,
}

impl Destination {
    /// Writes a shard to a file, uploads it and reports it. Its memory is returned on `written` before the
    /// upload. The coordinator commits the checkpoint once all ranks have reported their shards.
    fn upload(
        &self,
        shard: CheckpointShard,
        written: &mpsc::Sender<SnapshotMemory>,
    ) -> Result<(), PhaseError> {
        let (step, rank) = (shard.step(), self.rank);
        let (stall, started) = (shard.begun.elapsed(), Instant::now());
        let span = self.reports.span("checkpoint").with("foil.step", step);
        let file = self.scratch.join(format!("{step:012}.safetensors"));
        let model_error =
            |source| PhaseError::Model { artifact: format!("checkpoint of step {step}"), source };
        let (digest, memory) = shard.write(&file).map_err(model_error)?;
        // After the last shard, nobody waits for the memory.
        let _ = written.send(memory);
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

/// Writes a rank's checkpoints in a gang phase, one after the other. All of them use the same memory: while
/// one is uploaded, the next may wait in it, and a further one blocks training.
pub(in crate::phase) struct CheckpointWriter {
    cadence: Checkpoints,
    stop: StopSignal,
    /// Held from the first step on; earlier work is quick to repeat.
    busy: Option<BusyGuard>,
    checkpoint: Option<LoadedCheckpoint>,
    /// This process's rank; only rank 0 decides by time.
    rank: u32,
    last: (u64, Instant),
    upload_thread: Option<UploadThread>,
}

struct UploadThread {
    shards: mpsc::Sender<CheckpointShard>,
    /// Receives the memory of written shards; initially empty memory.
    written: mpsc::Receiver<SnapshotMemory>,
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

    /// Why the thread has ended.
    fn failure(&mut self) -> TrainError {
        let ended = self.upload_thread.take().map_or(Ok(()), UploadThread::finish);
        let reason = ended.err().map_or_else(|| "its thread ended".to_owned(), |error| error.to_string());
        TrainError::Checkpoint(reason)
    }

    /// Waits until all shards are uploaded and reported. A request to stop waits until the returned guard is
    /// dropped.
    pub(in crate::phase) fn finish(mut self) -> Result<Option<BusyGuard>, PhaseError> {
        self.upload_thread.take().map_or(Ok(()), UploadThread::finish)?;
        Ok(self.busy)
    }
}

impl UploadThread {
    fn start(destination: Destination) -> Result<Self, PhaseError> {
        let (shards, received) = mpsc::channel::<CheckpointShard>();
        let (sender, written) = mpsc::channel();
        // Cannot fail: the receiver is in scope.
        let _ = sender.send(SnapshotMemory::default());
        let span = tracing::Span::current();
        let upload = move || {
            let _entered = span.enter();
            received.into_iter().try_for_each(|shard| destination.upload(shard, &sender))
        };
        let thread = thread::Builder::new().name("checkpoints".to_owned()).spawn(upload);
        let disk = |source| ObjectError::Disk { path: "a thread for checkpoints".into(), source };
        Ok(Self { shards, written, thread: thread.map_err(disk)? })
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

    fn memory(&mut self) -> Result<SnapshotMemory, TrainError> {
        let written = self.upload_thread.as_ref().and_then(|thread| thread.written.recv().ok());
        written.ok_or_else(|| self.failure())
    }

    fn save(&mut self, shard: CheckpointShard) -> Result<(), TrainError> {
        self.last = (shard.step(), Instant::now());
        let thread = self.upload_thread.as_ref();
        let sent = thread.is_some_and(|thread| thread.shards.send(shard).is_ok());
        if sent { Ok(()) } else { Err(self.failure()) }
    }
}

impl TaskContext {
    /// Downloads the ranks' shards of a checkpoint. With `fsdp` and the same number of ranks as at saving, a
    /// rank needs only its own.
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use foil_common::storage::object::Digest;
    use tch::Tensor;

    use super::*;
    use crate::task::Object;
    use crate::task_io::memory_objects::MemoryObjectStore;

    /// A store in which each upload waits for a permit, and fails once no more permits can arrive.
    struct Gated {
        store: MemoryObjectStore,
        permissions: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl ObjectStore for Gated {
        fn share(&self) -> Box<dyn ObjectStore> {
            Box::new(Self { store: self.store.clone(), permissions: Arc::clone(&self.permissions) })
        }

        fn download(&self, object: &Object, file: &Path) -> Result<(), ObjectError> {
            self.store.download(object, file)
        }

        fn upload(&self, key: &str, bytes: Vec<u8>) -> Result<Object, ObjectError> {
            self.store.upload(key, bytes)
        }

        fn upload_file(&self, key: &str, file: &Path, digest: &Digest) -> Result<Object, ObjectError> {
            let refused = |_| ObjectError::Store { key: key.to_owned(), message: "no permission".to_owned() };
            self.permissions.lock().unwrap().recv().map_err(refused)?;
            self.store.upload_file(key, file, digest)
        }
    }

    fn writer(dir: &Path) -> (CheckpointWriter, MemoryObjectStore, mpsc::Sender<()>) {
        let (permit, permissions) = mpsc::channel();
        let store = MemoryObjectStore::default();
        let (messages, _) = tokio::sync::mpsc::unbounded_channel();
        let destination = Destination {
            phase: "r01.policy.train".to_owned(),
            attempt: 1,
            rank: 0,
            key_prefix: "a1/".to_owned(),
            scratch: dir.to_owned(),
            objects: Box::new(Gated { store: store.clone(), permissions: Arc::new(Mutex::new(permissions)) }),
            reports: Reporter::new(messages),
        };
        let writer = CheckpointWriter {
            cadence: Checkpoints { steps: None, every: None, keep_steps: None },
            stop: StopSignal::default(),
            busy: None,
            checkpoint: None,
            rank: 0,
            last: (0, Instant::now()),
            upload_thread: Some(UploadThread::start(destination).unwrap()),
        };
        (writer, store, permit)
    }

    fn save(writer: &mut CheckpointWriter, step: u64) -> Result<(), TrainError> {
        let memory = writer.memory()?;
        writer.save(CheckpointShard::of_tensor(step, &Tensor::from_slice(&[step as f32; 5]), memory))
    }

    #[test]
    fn a_checkpoint_waits_in_memory_while_the_one_before_is_uploaded() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, store, permit) = writer(dir.path());
        save(&mut writer, 1).unwrap();
        // Written but not uploaded.
        save(&mut writer, 2).unwrap();
        let written = |writer: &CheckpointWriter| writer.upload_thread.as_ref().unwrap().written.try_recv();
        assert_eq!(written(&writer).err(), Some(mpsc::TryRecvError::Empty), "a third one waits");
        permit.send(()).unwrap();
        save(&mut writer, 3).unwrap();
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        writer.finish().unwrap();
        for step in 1..=3_u64 {
            let bytes = store.bytes(&format!("a1/checkpoints/{step:012}/rank-0.safetensors"));
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(file.tensor("tensor").unwrap().data(), (step as f32).to_le_bytes().repeat(5));
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_uploaded_fails_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _, permit) = writer(dir.path());
        save(&mut writer, 1).unwrap();
        drop(permit);
        // One more snapshot may be copied before the failure is noticed, but no later one.
        let error = save(&mut writer, 2).and_then(|()| save(&mut writer, 3)).unwrap_err().to_string();
        assert!(error.contains("no permission"), "{error}");
    }
}

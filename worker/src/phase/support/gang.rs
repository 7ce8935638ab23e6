//! The rendezvous of a gang, its training, and the upload of its model.

#![expect(clippy::disallowed_methods, reason = "a crashing rank waits until its last report is sent")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use foil_common::activity::Activity;
use foil_common::model::SINGLE;
use foil_common::spec::SaveDtype;
use foil_common::storage::object::Digest;
use foil_common::text::{Encoder, ModelText, TrainedText};

use super::checkpoints::CheckpointWriter;
use super::records::Metric;
use super::step_log::{StepLog, StepSpans};
use crate::collective::{Gang, RankConfig, Rendezvous, RendezvousHost};
use crate::model::{
    Adapter, DecoderConfig, HeadKind, LanguageModel, ModelError, Parameters, RewardModel, SavedWeights, Sink,
};
use crate::phase::{PhaseError, TaskContext};
use crate::task::{Artifact, GangTask, Object};
use crate::task_io::artifact_cache;
use crate::task_io::progress::StepUsage;
use crate::train::{self, Ended, Objective, StepMetrics, Summary, TrainConfig};
use foil_common::failpoint;

/// Subdirectory of a model's directory that contains its adapter.
const ADAPTER: &str = "adapter";

/// Time for a message to reach the coordinator before this process ends.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// A trained model, saved on this machine.
pub(in crate::phase) struct TrainedModel {
    /// Directory of its files. All ranks write the same files, but among ranks that share files only one
    /// writes the weights.
    pub(in crate::phase) dir: PathBuf,
    pub(in crate::phase) weights: SavedWeights,
    /// Type in which the weights are saved.
    pub(in crate::phase) dtype: SaveDtype,
    pub(in crate::phase) model: Trained,
    pub(in crate::phase) metrics: Vec<Metric>,
}

pub(in crate::phase) enum Trained {
    Policy(LanguageModel),
    RewardModel(RewardModel),
}

impl TaskContext {
    /// Trains `parameters` of the objective's model together with the other ranks of the gang, and reports
    /// every step. The gang ends with the training, unless the model is sharded; then it ends once the model
    /// is saved.
    pub(in crate::phase) fn train(
        &mut self,
        task: &GangTask,
        objective: &dyn Objective,
        parameters: &Parameters,
        config: &TrainConfig,
    ) -> Result<Summary, PhaseError> {
        let mut checkpoints = CheckpointWriter::start(self, task)?;
        if task.rank == 0 {
            // Claims before the other ranks can, since this rank writes the model in any case.
            self.cache.claim(&task.key_prefix);
        }
        let gang = self.join(task)?;
        let mut log = StepLog::default();
        let resumed = task.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let mut spans = StepSpans::after(resumed, &self.reports);
        let mut report = |metrics: &StepMetrics| {
            if log.step(metrics, task.rank) {
                spans.end(metrics.step);
            }
            let usage = StepUsage {
                collective_wait: metrics.collective_wait,
                device_memory_peak: device_memory_peak(),
            };
            self.reports.step_done(task, metrics.step, metrics.steps, metrics.metrics(), usage);
        };
        let ended = train::train(objective, parameters, config, &gang, &mut checkpoints, &mut report)?;
        spans.finish();
        // Held until the trained model is delivered, or the checkpoint before a stop is written.
        self.busy = checkpoints.finish()?;
        let summary = match ended {
            Ended::Done(summary) => summary,
            Ended::Stopped { step } => {
                // A checkpoint is committed only once every shard is reported, and the first rank that exits
                // ends the others.
                gang.shutdown()?;
                std::thread::sleep(FLUSH_TIME);
                return Err(PhaseError::Stopped { step });
            }
        };
        parameters.set_requires_grad(false);
        self.gang = Some(gang);
        if parameters.shards().is_none() {
            self.leave_gang()?;
        }
        tracing::info!(
            steps = summary.steps,
            loss = summary.loss,
            duration_s = summary.seconds,
            peak_device_bytes = device_memory_peak(),
            "training done"
        );
        Ok(summary)
    }

    /// Leaves the phase's gang, if it has not left yet.
    pub(in crate::phase) fn leave_gang(&mut self) -> Result<(), PhaseError> {
        Ok(self.gang.take().map_or(Ok(()), Gang::shutdown)?)
    }

    /// Joins the gang. Rank 0 listens and reports its address, which the coordinator sends to the others.
    fn join(&self, task: &GangTask) -> Result<Gang, PhaseError> {
        failpoint::hit("gang.join")?;
        let prefix = format!("{}/{}", task.phase.name, task.attempt);
        let world = task.world as usize;
        let config = RankConfig {
            address: self.rank.address.clone(),
            ports: self.rank.ports,
            device: self.rank.device,
            timeout: self.job.resources.hang_timeout,
        };
        if world <= 1 {
            return Ok(Gang::single());
        }
        // NCCL allocates its memory outside the allocator, which has just loaded the model through temporary
        // copies.
        crate::phase::release_cached_memory();
        let _span = self.reports.span("rendezvous");
        self.reports.expect(Activity::Rendezvous, task.world.into());
        if task.rank == 0 {
            let host = RendezvousHost::open(config)?;
            self.reports.rendezvous_open(task, host.address(), host.port());
            return Ok(host.gather(world, &prefix)?);
        }
        let (host, port) = self.wait_for_rendezvous(task)?;
        let rendezvous = Rendezvous { rank: task.rank as usize, world, host, port, prefix };
        Ok(Gang::join(&rendezvous, &config)?)
    }

    /// Waits for rank 0's address in this gang, without a timeout, because rank 0 may take long to load.
    /// Addresses of earlier gangs are ignored.
    fn wait_for_rendezvous(&self, task: &GangTask) -> Result<(String, u16), PhaseError> {
        loop {
            let rendezvous = self.rank.rendezvous.recv().map_err(|_| PhaseError::NoRendezvous)?;
            if rendezvous.phase == task.phase.name && rendezvous.attempt == task.attempt {
                return Ok((rendezvous.host, rendezvous.port));
            }
        }
    }

    /// The text files and token ids of a model trained from `start` with `encoder`.
    pub(in crate::phase) fn trained_text(
        &mut self,
        start: &Artifact,
        encoder: &Encoder,
    ) -> Result<TrainedText, PhaseError> {
        let text_error = |source| PhaseError::Text { artifact: start.name.clone(), source };
        let files = ModelText::read(&self.cache.directory(start)?).map_err(text_error)?;
        TrainedText::of(encoder, &files, &self.job.text).map_err(text_error)
    }

    /// Saves the weights of a trained model with `save`. Rank 0 writes them, and so does one rank of every
    /// other machine.
    pub(in crate::phase) fn save(
        &self,
        task: &GangTask,
        parameters: &Parameters,
        dtype: SaveDtype,
        save: impl FnOnce(Sink, SaveDtype) -> Result<SavedWeights, ModelError>,
    ) -> Result<SavedWeights, PhaseError> {
        let expected = dtype.size() * parameters.count() as u64;
        let writes = task.rank == 0 || self.cache.claim(&task.key_prefix);
        let sink = if writes { Sink::File } else { Sink::Nowhere };
        let _span = self.reports.span("save");
        let saved = self.reports.writing(Activity::Saving, expected, || save(sink, dtype));
        saved.map_err(model_error(task.work.start()))
    }

    /// Writes the text files of a trained model to its `dir`.
    pub(in crate::phase) fn save_text(
        &self,
        start: &Artifact,
        text: &TrainedText,
        dir: &Path,
    ) -> Result<(), PhaseError> {
        text.write(dir).map_err(|source| PhaseError::Text { artifact: start.name.clone(), source })
    }

    /// The job's seed and the round, which determine fresh weights.
    pub(in crate::phase) fn seed_and_round(&self, task: &GangTask) -> (u64, u32) {
        (self.job.seed.into(), task.phase.round)
    }

    /// Writes a trained adapter next to its merged model in `dir`. If the start model has a compatible
    /// adapter, the two are concatenated: an adapter always refers to the model at the start of the chain.
    pub(in crate::phase) fn save_adapter(
        &mut self,
        start: &Artifact,
        config: &DecoderConfig,
        head: HeadKind,
        adapter: Adapter,
        dir: &Path,
    ) -> Result<(), PhaseError> {
        let model_error = |source| PhaseError::Model { artifact: start.name.clone(), source };
        let earlier = self.cache.directory(start)?.join(ADAPTER);
        let combined = if Adapter::exists_in(&earlier) {
            let earlier = Adapter::load(&earlier, config, head, self.rank.device).map_err(model_error)?;
            adapter.concat_after(&earlier)
        } else {
            None
        };
        combined.unwrap_or(adapter).save(&dir.join(ADAPTER)).map_err(model_error)
    }

    /// Rank 0 uploads the model's files; every rank reports its parameters and keeps the files in its cache.
    pub(in crate::phase) fn deliver(
        &mut self,
        task: &GangTask,
        trained: TrainedModel,
    ) -> Result<(), PhaseError> {
        let _span = self.reports.span("deliver");
        let TrainedModel { dir, weights, dtype, model, metrics } = trained;
        let mut objects = Vec::new();
        let mut hashes = BTreeMap::from([(SINGLE.to_owned(), weights.file.blake3.clone())]);
        for (name, file) in files(&dir)? {
            let digest = if name == SINGLE { weights.file.clone() } else { self.hash(&file)? };
            if task.rank == 0 {
                failpoint::hit("phase.upload")?;
                let key = format!("{}{name}", task.key_prefix);
                let object = self.cache.upload_file(&key, &file, &digest)?;
                objects.push(Object { path: name.clone(), ..object });
            }
            self.cache.adopt(&file, &digest)?;
            hashes.insert(name, digest.blake3);
        }
        self.keep(model, hashes, dtype).map_err(model_error(task.work.start()))?;
        failpoint::hit("phase.report")?;
        self.reports.gang_done(task, objects, metrics, weights.parameters_blake3);
        Ok(())
    }

    fn hash(&self, file: &Path) -> Result<Digest, PhaseError> {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(self.reports.reading(Activity::Hashing, bytes, || artifact_cache::digest_of(file))?)
    }

    /// Keeps a trained model for the next phase, if that phase would hold it in the same form as training.
    fn keep(
        &mut self,
        model: Trained,
        files: BTreeMap<String, String>,
        dtype: SaveDtype,
    ) -> Result<(), ModelError> {
        if !self.keeps_masters() {
            return Ok(());
        }
        match model {
            Trained::Policy(model) => self.models.policies.keep_trained(model, files, dtype),
            Trained::RewardModel(model) => self.models.reward_models.keep_trained(model, files, dtype),
        }
    }
}

/// The files of a directory and its subdirectories, by relative path, sorted.
fn files(dir: &Path) -> Result<Vec<(String, PathBuf)>, PhaseError> {
    let disk = |source| artifact_cache::ObjectError::Disk { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(disk)? {
        let path = entry.map_err(disk)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let inside = self::files(&path)?.into_iter();
            files.extend(inside.map(|(file, path)| (format!("{name}/{file}"), path)));
        } else {
            files.push((name, path));
        }
    }
    files.sort();
    Ok(files)
}

/// An error in the model that is trained from `start`.
pub(in crate::phase) fn model_error(start: &Artifact) -> impl Fn(ModelError) -> PhaseError {
    |source| PhaseError::Model { artifact: start.name.clone(), source }
}

/// A metric without a standard error.
pub(in crate::phase) fn metric(name: &str, value: f64) -> Metric {
    Metric { name: name.to_owned(), value, se: None }
}

/// Peak bytes of tensors on this process's GPU, if it has one.
fn device_memory_peak() -> Option<u64> {
    foil_torch::device_memory::peak().ok().filter(|peak| *peak > 0)
}

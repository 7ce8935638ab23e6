//! The rendezvous of a gang, its training, and the upload of its model.

use std::path::{Path, PathBuf};
use std::time::Duration;

use foil_common::activity::Activity;
use foil_common::spec::SaveDtype;
use foil_common::text::{Encoder, ModelText, TrainedText};
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;

use super::checkpoints::Uploads;
use super::error::need;
use super::step_log::StepLog;
use crate::collective::{Gang, Host, Place, Rendezvous};
use crate::model::{Adapter, DecoderConfig, HeadKind, ModelError, Parameters};
use crate::phase::{PhaseError, TaskContext};
use crate::task_io::artifact_cache;
use crate::train::{self, Ended, Objective, StepFigures, Summary, TrainConfig};
use foil_common::failpoint;

/// The folder of a model's directory that holds its adapter.
const ADAPTER: &str = "adapter";

/// For a message to be on its way to the coordinator before this process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A model that training has ended with, saved on this rank.
pub(in crate::phase) struct Trained {
    /// Its files; all ranks write the same.
    pub(in crate::phase) dir: PathBuf,
    pub(in crate::phase) parameters_blake3: String,
    pub(in crate::phase) metrics: Vec<v1::Metric>,
}

impl TaskContext {
    /// Trains `parameters`, those of the objective's model, with the other ranks of the gang, and parts from them in
    /// order. Every step is reported.
    pub(in crate::phase) fn train(
        &mut self,
        command: &v1::RunGang,
        objective: &dyn Objective,
        parameters: &Parameters,
        config: &TrainConfig,
    ) -> Result<Summary, PhaseError> {
        let task = need(&command.task, "a task")?;
        let mut keeper = Uploads::start(self, command, &task.phase)?;
        let gang = self.join(command, &task.phase)?;
        let mut log = StepLog::default();
        let mut report = |figures: &StepFigures| {
            log.step(figures, command.rank);
            self.reports.send(Message::Step(v1::StepReport {
                phase: task.phase.clone(),
                attempt: command.attempt,
                step: figures.step,
                steps: figures.steps,
                figures: figures.metrics(),
            }));
        };
        let ended = train::train(objective, parameters, config, &gang, &mut keeper, &mut report)?;
        // Until the trained model is handed in, or the checkpoint of a stop is.
        self.busy = keeper.finish()?;
        let summary = match ended {
            Ended::Done(summary) => summary,
            Ended::Stopped { step } => {
                // A checkpoint counts when every share is told of, and the first rank's end is the others' end.
                gang.leave()?;
                std::thread::sleep(LAST_WORDS);
                return Err(PhaseError::Stopped { step });
            }
        };
        parameters.set_requires_grad(false);
        gang.leave()?;
        tracing::info!(
            steps = summary.steps,
            loss = summary.loss,
            duration_s = summary.seconds,
            "training done"
        );
        Ok(summary)
    }

    /// Rank 0 listens and tells the coordinator where; the others are told by the coordinator.
    fn join(&self, command: &v1::RunGang, phase: &str) -> Result<Gang, PhaseError> {
        failpoint::hit("gang.join")?;
        let prefix = format!("{phase}/{}", command.attempt);
        let world = command.world as usize;
        let place = Place {
            address: self.rank.address.clone(),
            device: self.rank.device,
            timeout: self.job.resources.hang_timeout,
        };
        if world <= 1 {
            return Ok(Gang::alone());
        }
        self.reports.expect(Activity::Rendezvous, command.world.into());
        if command.rank == 0 {
            let host = Host::open(place)?;
            self.reports.send(Message::Rendezvous(v1::RendezvousOffer {
                phase: phase.to_owned(),
                attempt: command.attempt,
                host: host.address().to_owned(),
                port: host.port().into(),
            }));
            return Ok(host.gather(world, &prefix)?);
        }
        let (host, port) = self.meeting(command, phase)?;
        let rendezvous = Rendezvous { rank: command.rank as usize, world, host, port, prefix };
        Ok(Gang::join(&rendezvous, &place)?)
    }

    /// Waits for rank 0's address in this gang, however long rank 0 takes to load; those of earlier gangs are passed
    /// over.
    fn meeting(&self, command: &v1::RunGang, phase: &str) -> Result<(String, u16), PhaseError> {
        loop {
            let meeting = self.rank.rendezvous.recv().map_err(|_| PhaseError::NoRendezvous)?;
            if meeting.phase == phase && meeting.attempt == command.attempt {
                let port = u16::try_from(meeting.port).map_err(|_| PhaseError::Incomplete("a port"))?;
                return Ok((meeting.host, port));
            }
        }
    }

    /// The text files and token ids of a model that is trained from `start` through `encoder`.
    pub(in crate::phase) fn trained_text(
        &mut self,
        start: &v1::Artifact,
        encoder: &Encoder,
    ) -> Result<TrainedText, PhaseError> {
        let wrong = |source| PhaseError::Text { artifact: start.name.clone(), source };
        let files = ModelText::read(&self.cache.directory(start)?).map_err(wrong)?;
        TrainedText::of(encoder, &files, &self.job.text).map_err(wrong)
    }

    /// Writes a trained model, started from `artifact`, to this rank's disk.
    pub(in crate::phase) fn save(
        &self,
        artifact: &str,
        parameters: &Parameters,
        dtype: SaveDtype,
        save: impl FnOnce(SaveDtype) -> Result<(), ModelError>,
    ) -> Result<(), PhaseError> {
        let bytes = match dtype {
            SaveDtype::Fp32 => 4,
            SaveDtype::Bf16 => 2,
        };
        let expected = bytes * parameters.count() as u64;
        let saved = self.reports.writing(Activity::Saving, expected, || save(dtype));
        saved.map_err(|source| PhaseError::Model { artifact: artifact.to_owned(), source })
    }

    /// Writes the text files that go with a trained model into its `dir`.
    pub(in crate::phase) fn save_text(
        &self,
        start: &v1::Artifact,
        text: &TrainedText,
        dir: &Path,
    ) -> Result<(), PhaseError> {
        text.write(dir).map_err(|source| PhaseError::Text { artifact: start.name.clone(), source })
    }

    /// What fresh weights of this phase are drawn from: the job's seed and the round.
    pub(in crate::phase) fn draw(&self, command: &v1::RunGang) -> Result<(u64, u32), PhaseError> {
        Ok((self.job.seed.into(), need(&command.task, "a task")?.round))
    }

    /// Writes a trained adapter beside its merged model in `dir`. Where the start model has one too, of the same make, this
    /// one comes after it: an adapter is always to the model that the chain of adapters began with.
    pub(in crate::phase) fn save_adapter(
        &mut self,
        start: &v1::Artifact,
        config: &DecoderConfig,
        head: HeadKind,
        adapter: Adapter,
        dir: &Path,
    ) -> Result<(), PhaseError> {
        let wrong = |source| PhaseError::Model { artifact: start.name.clone(), source };
        let earlier = self.cache.directory(start)?.join(ADAPTER);
        let whole = if Adapter::exists_in(&earlier) {
            let earlier = Adapter::load(&earlier, config, head, self.rank.device).map_err(wrong)?;
            adapter.concat_after(&earlier)
        } else {
            None
        };
        whole.unwrap_or(adapter).save(&dir.join(ADAPTER)).map_err(wrong)
    }

    /// Rank 0 uploads the model's files; every rank reports its parameters and keeps the files, so that it need not
    /// download what it has just computed.
    pub(in crate::phase) fn deliver(
        &mut self,
        command: &v1::RunGang,
        trained: Trained,
    ) -> Result<(), PhaseError> {
        let phase = need(&command.task, "a task")?.phase.clone();
        let mut objects = Vec::new();
        for (name, file) in files(&trained.dir)? {
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            let digest =
                self.reports.reading(Activity::Hashing, bytes, || artifact_cache::digest_of(&file))?;
            if command.rank == 0 {
                failpoint::hit("phase.upload")?;
                let key = format!("{}{name}", command.key_prefix);
                let object = self.cache.upload_file(&key, &file, &digest)?;
                objects.push(v1::Object { path: name, ..object });
            }
            self.cache.adopt(&file, &digest)?;
        }
        failpoint::hit("phase.report")?;
        self.reports.send(Message::Gang(v1::GangResult {
            phase,
            attempt: command.attempt,
            objects,
            metrics: trained.metrics,
            parameters_blake3: trained.parameters_blake3,
        }));
        Ok(())
    }
}

/// The files of a directory and of the folders in it, by name, in order.
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

/// A figure without a standard error.
pub(in crate::phase) fn metric(name: &str, value: f64) -> v1::Metric {
    v1::Metric { name: name.to_owned(), value, se: None }
}

//! Measures the transfer of weights between the device and files in the page cache: loading at the start of a
//! phase, saving after training, and the transition from one phase to the next.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use foil_worker::model::{LanguageModel, SaveDtype};
use serde_json::{Value, json};
use tch::Device;

use crate::Bench;
use crate::workload::Workload;

pub(crate) struct Weights {
    /// `None` only during the transition from one phase to the next.
    model: Option<LanguageModel>,
    device: Device,
    directory: PathBuf,
}

impl Weights {
    pub(crate) fn new(workload: &Workload, path: &Path) -> anyhow::Result<Self> {
        let device = workload.device()?;
        let model = Some(LanguageModel::load(&workload.model, device)?);
        Ok(Self { model, device, directory: path.with_extension("foil-weights") })
    }
}

impl Bench for Weights {
    fn run(&mut self) -> anyhow::Result<Value> {
        let model = self.model.take().context("an earlier repetition has failed")?;
        let started = Instant::now();
        let saved = model.save(&self.directory, SaveDtype::Fp32)?;
        let save = started.elapsed().as_secs_f64();
        let started = Instant::now();
        drop(LanguageModel::load(&self.directory, self.device)?);
        let load = started.elapsed().as_secs_f64();
        // A rank's work between its last step and its next phase, which reads the trained model.
        let started = Instant::now();
        model.save(&self.directory, SaveDtype::Fp32)?;
        self.model = Some(model.reopened(&self.directory)?);
        let gap = started.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&self.directory)?;
        Ok(json!({
            "seconds": save + load + gap, "tokens": 0, "bytes": saved.file.size,
            "save_seconds": save, "load_seconds": load, "gap_seconds": gap,
        }))
    }
}

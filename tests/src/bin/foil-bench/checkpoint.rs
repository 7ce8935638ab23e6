//! Measures writing a model directory durably and reading it back from disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use foil_worker::model::{LanguageModel, SaveDtype};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::{Value, json};
use tch::Device;

use crate::Bench;
use crate::workload::Workload;

pub(crate) struct Checkpoint {
    model: LanguageModel,
    directory: PathBuf,
}

impl Checkpoint {
    pub(crate) fn new(workload: &Workload, path: &Path) -> anyhow::Result<Self> {
        let model = LanguageModel::load(&workload.model, Device::Cpu)?;
        Ok(Self { model, directory: path.with_extension("foil-checkpoint") })
    }
}

impl Bench for Checkpoint {
    fn run(&mut self) -> anyhow::Result<Value> {
        let weights = self.directory.join("model.safetensors");
        let started = Instant::now();
        self.model.save(&self.directory, SaveDtype::Fp32)?;
        let file = File::open(&weights)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        let written = started.elapsed().as_secs_f64();
        let bytes = file.metadata()?.len();
        // Reads must come from disk, not from the page cache.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let started = Instant::now();
        let _ = LanguageModel::load(&self.directory, Device::Cpu)?;
        let read = started.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&self.directory)?;
        Ok(json!({
            "seconds": written + read, "tokens": 0, "bytes": bytes,
            "write_seconds": written, "read_seconds": read,
        }))
    }
}

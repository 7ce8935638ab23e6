//! What training has come to in the middle of a phase, to go on from elsewhere.
//!
//! Each rank keeps a share: some parameters, and its share of the optimizer's state. Batches follow from (seed, round,
//! epoch) and the step's number, so there is no cursor and no state of any random stream to keep beside it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::StepFigures;
use crate::model::weights::{self, Checkpoint};
use crate::model::{ModelError, ModelFilesError};

pub(super) const PARAMETER: &str = "parameter.";
/// AdamW's first moments.
pub(super) const MEAN: &str = "exp_avg.";
/// AdamW's second moments.
pub(super) const SQUARE: &str = "exp_avg_sq.";
/// The entry of a file's metadata that holds its record.
const RECORD: &str = "foil";

/// One rank's share of a training state, in host memory.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) record: Record,
    pub(super) tensors: Vec<(String, Tensor)>,
}

/// What stands beside the tensors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// Steps taken.
    pub step: u64,
    /// Of the phase.
    pub steps: u64,
    /// Steps that were not skipped.
    pub updates: u64,
    pub rank: usize,
    pub world: usize,
    /// What the memory allowed: another cut of the batches would round their sums differently.
    pub micro_batch_tokens: usize,
    /// Of all steps so far.
    pub figures: Vec<StepFigures>,
}

impl Snapshot {
    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        let record = serde_json::to_string(&self.record).map_err(ModelError::json(path))?;
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        weights::write_with_metadata(path, tensors, (RECORD, &record))
    }
}

/// The files of all ranks' snapshots after one step.
#[derive(Debug)]
pub struct Saved {
    pub record: Record,
    shares: Vec<Checkpoint>,
}

impl Saved {
    /// Opens one file for each rank that there was, in the order of ranks.
    ///
    /// # Errors
    /// Files that are not whole, or not the shares of one state.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ModelError> {
        let mut shares = Vec::new();
        let mut first: Option<Record> = None;
        for (rank, path) in paths.iter().enumerate() {
            let share = Checkpoint::open_file(path)?;
            let record: Record = serde_json::from_str(share.metadata(RECORD).unwrap_or_default())
                .map_err(ModelError::json(path))?;
            let step = first.as_ref().map_or(record.step, |first| first.step);
            if (record.rank, record.world, record.step) != (rank, paths.len(), step) {
                let reason = format!(
                    "it is rank {} of {} after step {}, expected rank {rank} of {} after step {step}",
                    record.rank,
                    record.world,
                    record.step,
                    paths.len()
                );
                return Err(ModelFilesError::Weights { path: path.clone(), reason }.into());
            }
            first.get_or_insert(record);
            shares.push(share);
        }
        let none = || ModelError::from(ModelFilesError::tensor("(all)", "no share was saved"));
        Ok(Self { record: first.ok_or_else(none)?, shares })
    }

    /// A tensor of any share, fp32 on the CPU.
    pub(super) fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let share = self.shares.iter().find(|share| share.contains(name));
        let missing = || ModelError::from(ModelFilesError::tensor(name, "no rank saved it"));
        share.ok_or_else(missing)?.read(name)
    }
}

/// What a rank wants to happen after a step; any rank's wish is granted to all, at the same step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    pub snapshot: bool,
    /// Take a snapshot and end here.
    pub stop: bool,
}

/// Where snapshots go to and come from.
pub trait Keeper {
    /// What to go on from, if anything was kept of this phase.
    fn saved(&mut self) -> Option<Saved>;

    /// This rank's wishes before a step, which is numbered from 1.
    fn wishes(&mut self, step: u64) -> Wishes;

    /// Takes a snapshot. It may work on behind training; it may also wait, where those before are not done yet.
    ///
    /// # Errors
    /// The snapshot cannot be kept, or one before it could not.
    fn keep(&mut self, snapshot: Snapshot) -> Result<(), super::TrainError>;
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy)]
pub struct KeepNothing;

impl Keeper for KeepNothing {
    fn saved(&mut self) -> Option<Saved> {
        None
    }

    fn wishes(&mut self, _: u64) -> Wishes {
        Wishes::default()
    }

    fn keep(&mut self, _: Snapshot) -> Result<(), super::TrainError> {
        Ok(())
    }
}

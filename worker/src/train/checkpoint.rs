//! Checkpoints of a training phase, from which it resumes on any number of ranks.
//!
//! Each rank saves one shard: some of the parameters and its shard of the optimizer's state. Batches are a
//! function of (seed, round, epoch) and the step number, so neither a data cursor nor the state of a random
//! generator is saved.

use std::path::{Path, PathBuf};
use std::time::Instant;

use foil_common::storage::object::Digest;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::snapshot::{Snapshot, SnapshotMemory};
use super::{StepMetrics, TrainError};
use crate::model::weights::Checkpoint;
use crate::model::{ModelError, ModelFilesError};

pub(super) const PARAMETER: &str = "parameter.";
/// AdamW's first moments.
pub(super) const MEAN: &str = "exp_avg.";
/// AdamW's second moments.
pub(super) const SQUARE: &str = "exp_avg_sq.";
/// The reason why a checkpoint of this job lacks a tensor.
const MISSING: &str = "no shard of the checkpoint has it, so another version of foil-worker saved it: finish the job with \
                       that version, or submit it again";
/// The key of the checkpoint's metadata in a safetensors file.
const METADATA: &str = "foil";

/// One rank's shard of a checkpoint, in host memory.
#[derive(Debug)]
pub struct CheckpointShard {
    /// The time at which training stopped for it.
    pub begun: Instant,
    pub(super) metadata: CheckpointMetadata,
    pub(super) snapshot: Snapshot,
}

/// A shard's metadata.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckpointMetadata {
    /// Number of steps taken, including skipped ones.
    pub step: u64,
    /// Number of steps of the phase.
    pub steps: u64,
    /// Number of steps that were not skipped.
    pub updates: u64,
    pub rank: usize,
    pub world: usize,
    /// The micro-batch size that fitted in memory. A different size would round a batch's sums differently.
    pub micro_batch_tokens: usize,
    /// Metrics of all steps so far.
    #[serde(alias = "figures")]
    pub metrics: Vec<StepMetrics>,
}

impl CheckpointShard {
    /// A shard of one tensor, on the CPU.
    #[cfg(test)]
    pub(crate) fn of_tensor(step: u64, tensor: &Tensor, memory: SnapshotMemory) -> Self {
        let snapshot = Snapshot::of(vec![("tensor".to_owned(), tensor)], tch::Device::Cpu, memory).unwrap();
        let metadata = CheckpointMetadata { step, ..CheckpointMetadata::default() };
        Self { begun: Instant::now(), metadata, snapshot }
    }

    /// Number of steps taken.
    pub fn step(&self) -> u64 {
        self.metadata.step
    }

    /// Writes a safetensors file. Returns its digest and the memory for the next shard.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, path: &Path) -> Result<(Digest, SnapshotMemory), ModelError> {
        let metadata = serde_json::to_string(&self.metadata).map_err(ModelError::json(path))?;
        let digest = self.snapshot.write(path, (METADATA, &metadata))?;
        Ok((digest, self.snapshot.into_memory()))
    }
}

/// The shards of several ranks after the same step.
#[derive(Debug)]
pub struct LoadedCheckpoint {
    pub metadata: CheckpointMetadata,
    shards: Vec<Checkpoint>,
}

impl LoadedCheckpoint {
    /// Opens the shards of all ranks, in rank order.
    ///
    /// # Errors
    /// Files that are incomplete, or not the shards of one checkpoint.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ModelError> {
        let numbered: Vec<(usize, PathBuf)> = paths.iter().cloned().enumerate().collect();
        Self::open_some(&numbered, paths.len())
    }

    /// Opens the shards of some of the `world` ranks that saved it, each given with its rank.
    ///
    /// # Errors
    /// Those of [`LoadedCheckpoint::open`].
    pub fn open_some(paths: &[(usize, PathBuf)], world: usize) -> Result<Self, ModelError> {
        let mut shards = Vec::new();
        let mut first: Option<CheckpointMetadata> = None;
        for (rank, path) in paths {
            let shard = Checkpoint::open_file(path)?;
            let metadata: CheckpointMetadata =
                serde_json::from_str(shard.metadata(METADATA).unwrap_or_default())
                    .map_err(ModelError::json(path))?;
            let step = first.as_ref().map_or(metadata.step, |first| first.step);
            if (metadata.rank, metadata.world, metadata.step) != (*rank, world, step) {
                let reason = format!(
                    "it is rank {} of {} after step {}, expected rank {rank} of {world} after step {step}",
                    metadata.rank, metadata.world, metadata.step
                );
                return Err(ModelFilesError::Weights { path: path.clone(), reason }.into());
            }
            first.get_or_insert(metadata);
            shards.push(shard);
        }
        let none = || ModelError::from(ModelFilesError::tensor("(all)", "the checkpoint has no shards"));
        Ok(Self { metadata: first.ok_or_else(none)?, shards })
    }

    /// Reads a tensor, as fp32 on the CPU, from the shard that contains it.
    pub(super) fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let shard = self.shards.iter().find(|shard| shard.contains(name));
        let missing = || ModelError::from(ModelFilesError::tensor(name, MISSING));
        shard.ok_or_else(missing)?.read(name)
    }
}

/// A rank's requests for the end of a step. All ranks serve every rank's request after the same step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepRequests {
    /// Save a checkpoint.
    pub checkpoint: bool,
    /// Save a checkpoint and stop.
    pub stop: bool,
}

/// Saves and loads the checkpoints of a phase.
pub trait Checkpointer {
    /// The checkpoint to resume from, if any.
    fn load(&mut self) -> Option<LoadedCheckpoint>;

    /// This rank's requests, queried before each step. Steps count from 1.
    fn requests(&mut self, step: u64) -> StepRequests;

    /// Memory for this rank's next shard. May block until the previous one is written.
    ///
    /// # Errors
    /// An earlier shard could not be saved.
    fn memory(&mut self) -> Result<SnapshotMemory, TrainError>;

    /// Saves this rank's shard, in the background if possible.
    ///
    /// # Errors
    /// This shard or an earlier one could not be saved.
    fn save(&mut self, shard: CheckpointShard) -> Result<(), TrainError>;
}

/// Saves no checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct NoCheckpoints;

impl Checkpointer for NoCheckpoints {
    fn load(&mut self) -> Option<LoadedCheckpoint> {
        None
    }

    fn requests(&mut self, _: u64) -> StepRequests {
        StepRequests::default()
    }

    fn memory(&mut self) -> Result<SnapshotMemory, TrainError> {
        Ok(SnapshotMemory::default())
    }

    fn save(&mut self, _: CheckpointShard) -> Result<(), TrainError> {
        Ok(())
    }
}

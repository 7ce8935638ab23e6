//! Training errors.

use foil_common::failpoint::Injected;
use foil_common::failure::FailureClass;

use crate::model::ModelError;

/// A failed training step or phase. The attempt cannot continue: ranks may be at different steps.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("there are no rows to train on: look at the data sets' counts and what was dropped from them")]
    NoRows,
    #[error(
        "step {step}: the weights of the batch's rows sum to 0, so its loss has no denominator: {rows}. Set a positive \
         weight, and drop rows without response tokens"
    )]
    NoWeight { step: u64, rows: String },
    #[error(
        "step {step}: found loss {loss} and gradient norm {grad_norm}, expected finite numbers, over the rows {}",
        first(rows)
    )]
    NonFinite { step: u64, loss: f64, grad_norm: f64, rows: Vec<String> },
    #[error(
        "out of memory before the first step: {row}, of {tokens} tokens, does not fit by itself: {detail}. Lower \
         text.max_length, turn on resources.activation_checkpointing or resources.sharding: fsdp, train adapters (lora), or \
         use a larger device"
    )]
    OutOfMemory { row: String, tokens: usize, detail: String },
    #[error(
        "the checkpoint after step {step} is of a phase of {found} steps, but this phase has {expected}; was the data or the \
         worker's version changed?"
    )]
    CheckpointMismatch { step: u64, found: u64, expected: u64 },
    #[error(transparent)]
    Injected(#[from] Injected),
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    #[error(transparent)]
    Collective(#[from] foil_torch::Error),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl TrainError {
    /// The failure's class.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NoRows | Self::NoWeight { .. } => FailureClass::Data,
            Self::NonFinite { .. } => FailureClass::Nonfinite,
            Self::OutOfMemory { .. } => FailureClass::OutOfMemory,
            Self::CheckpointMismatch { .. } | Self::Injected(_) | Self::Checkpoint(_) => {
                FailureClass::Internal
            }
            Self::Collective(_) | Self::Model(_) | Self::Torch(_) => FailureClass::Internal,
        }
    }
}

/// The first eight names and the number of further ones.
pub(super) fn first(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}

//! Training: all ranks of a gang take each step together, over one global batch.
//!
//! A phase builds an [`Objective`] (rows and a model) and a [`TrainConfig`], and receives one report per
//! step:
//!
//! ```ignore
//! let objective = PairRanking::new(&model, &human, &golden, Precision::Fp32, Normalization::Global).with_loss(loss);
//! let config = TrainConfig::reward(&job, round);
//! let ended = train(&objective, model.parameters(), &config, &gang, &mut checkpointer, &mut |step| report(step))?;
//! model.parameters().set_requires_grad(false);
//! ```
//!
//! All ranks pass the same rows, in the same order, and the same [`TrainConfig`]. Then:
//!
//! - Global batches follow from (seed, round, epoch) alone ([`order`]); ranks, lengths and token budgets only
//!   decide how a batch is split into micro-batches ([`plan`]).
//! - A step's loss is Σ over the whole global batch, divided by Σ weight over the whole global batch, however
//!   it is split over ranks and micro-batches: gradients are summed, never averaged ([`trainer`]). A pair has
//!   its weight w; in supervised fine-tuning every response token has weight 1, so the loss is the mean over
//!   the tokens.
//! - After each step, parameters are bitwise identical on all ranks.

pub mod checkpoint;
mod completions;
mod config;
mod demonstrations;
mod distributed_optimizer;
mod error;
mod fsdp;
mod memory_probe;
mod metrics;
mod objective;
mod optimizer;
pub mod order;
mod pairs;
pub mod plan;
mod run;
mod sharded_adamw;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod trainer;
mod zero1;

pub use checkpoint::{CheckpointShard, Checkpointer, LoadedCheckpoint, NoCheckpoints, StepRequests};
pub(crate) use completions::Sequences;
pub use completions::{CompletionGroup, PolicyGroups};
pub use config::TrainConfig;
pub use demonstrations::{Demonstration, Demonstrations};
pub use error::TrainError;
pub use metrics::{StepMetrics, Summary};
pub use objective::{MicroBatchLoss, Objective};
pub use optimizer::AdamW;
pub use order::OrderKey;
pub use pairs::{Comparison, PairRanking};
pub use plan::{RankInfo, RowShape, StepPlan};
pub use run::{Ended, train};
pub use snapshot::SnapshotMemory;
pub use trainer::Trainer;

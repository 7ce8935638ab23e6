//! Training: all ranks of a gang step together over one global batch at a time.
//!
//! A phase builds an [`Objective`] (rows and a model), says how to train it, and gets one report per step:
//!
//! ```ignore
//! let objective = PairRanking::new(&model, &human, &golden, Precision::Fp32, Normalization::Global).with_loss(loss);
//! let config = TrainConfig::reward(&job, round);
//! let ended = train(&objective, model.trainable(), &config, &gang, &mut keeper, &mut |figures| report(figures))?;
//! model.parameters().set_requires_grad(false);
//! ```
//!
//! Every rank gives the same rows, in the same order, and the same [`TrainConfig`]. Then:
//!
//! - Global batches follow from (seed, round, epoch) alone ([`order`]); ranks, lengths and token budgets only cut a
//!   batch into micro-batches ([`plan`]).
//! - A step's loss is Σ over the whole global batch, divided by Σ weight over the whole global batch, whatever
//!   ranks and micro-batches it was cut into: gradients are summed, never averaged ([`trainer`]). Pairs weigh their w;
//!   in supervised fine-tuning every answer token weighs 1, so the loss is the mean over the batch's tokens.
//! - Parameters are the same bits on all ranks after each step.

mod completions;
mod config;
mod demonstrations;
mod error;
mod figures;
mod objective;
mod optimizer;
pub mod order;
mod pairs;
pub mod plan;
mod rehearsal;
mod run;
mod sharded;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod trainer;
mod update;

pub(crate) use completions::Sequences;
pub use completions::{CompletionGroup, PolicyGroups};
pub use config::TrainConfig;
pub use demonstrations::{Demonstration, Demonstrations};
pub use error::TrainError;
pub use figures::{StepFigures, Summary};
pub use objective::{MicroBatchLoss, Objective};
pub use optimizer::AdamW;
pub use order::OrderKey;
pub use pairs::{Comparison, PairRanking};
pub use plan::{RowShape, Share, StepPlan};
pub use run::{Ended, train};
pub use snapshot::{KeepNothing, Keeper, Saved, Snapshot, Wishes};
pub use trainer::Trainer;

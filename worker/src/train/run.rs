//! A training phase, from its first step or a checkpoint to its last step.

#![expect(clippy::disallowed_methods, reason = "the stall of a checkpoint is timed")]

use std::time::Instant;

use super::memory_probe::{MicroBatching, find_micro_batch_tokens};
use super::order::global_batches;
use super::{
    Checkpointer, Objective, RowShape, StepMetrics, StepPlan, Summary, TrainConfig, TrainError, Trainer,
};
use crate::collective::Gang;
use crate::model::Parameters;

/// How training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// All steps are done.
    Done(Summary),
    /// A rank was asked to stop; a checkpoint of this step is saved.
    Stopped { step: u64 },
}

/// Trains `parameters` of `objective`'s model over all rows and epochs, or over the rest of them after the
/// checkpoint that `checkpointer` loads.
///
/// The largest micro-batch is tried first. If it does not fit in memory, micro-batches get smaller.
///
/// `report` is called for every step in order, including those before the checkpoint. Afterwards the
/// parameters still require gradients.
///
/// # Errors
/// [`TrainError::NoRows`]; [`TrainError::OutOfMemory`]; [`TrainError::CheckpointMismatch`]; those of
/// [`Trainer::step`] and of the checkpointer.
pub fn train(
    objective: &dyn Objective,
    parameters: &Parameters,
    config: &TrainConfig,
    gang: &Gang,
    checkpointer: &mut dyn Checkpointer,
    report: &mut dyn FnMut(&StepMetrics),
) -> Result<Ended, TrainError> {
    let sets = objective.sets();
    let shapes: Vec<RowShape> = (0..sets.iter().sum()).map(|row| objective.shape(row)).collect();
    let items: usize = shapes.iter().map(|shape| shape.items).sum();
    let batch = foil_common::spec::rows_per_step(config.batch_size, shapes.len(), items);
    let steps_per_epoch = shapes.len().div_ceil(batch);
    if steps_per_epoch == 0 || config.epochs == 0 {
        return Err(TrainError::NoRows);
    }
    let epochs = 0..config.epochs;
    let batches: Vec<Vec<usize>> =
        epochs.flat_map(|epoch| global_batches(config.order, epoch, &sets, batch)).collect();
    let mut trainer = Trainer::new(parameters, config, batches.len() as u64, gang)?;
    let (mut steps, budget) =
        resume(&mut trainer, checkpointer, config.optimizer.micro_batch_tokens, batches.len())?;
    steps.iter().for_each(&mut *report);
    let budget = find_micro_batch_tokens(
        objective,
        &mut trainer,
        MicroBatching { batches: &batches, shapes: &shapes, budget },
    )?;
    let plan = |rows: &[usize], rank| StepPlan::new(rows, &shapes, rank, budget);
    // Always the first batch: the reducer's buckets must not depend on the step at which an attempt begins.
    trainer.warm_up(objective, &plan(&batches[0], trainer.rank_info()))?;
    for rows in &batches[steps.len()..] {
        let plan = plan(rows, trainer.rank_info());
        tracing::debug!(step = steps.len() + 1, "training step");
        let (metrics, agreed) =
            trainer.step(objective, &plan, checkpointer.requests(steps.len() as u64 + 1))?;
        report(&metrics);
        steps.push(metrics);
        let is_last = steps.len() == batches.len();
        if (agreed.checkpoint || agreed.stop) && !is_last {
            let begun = Instant::now();
            let mut shard = trainer.checkpoint_shard(begun, checkpointer.memory()?)?;
            shard.metadata.steps = batches.len() as u64;
            shard.metadata.micro_batch_tokens = budget;
            shard.metadata.metrics.clone_from(&steps);
            checkpointer.save(shard)?;
        }
        if agreed.stop && !is_last {
            return Ok(Ended::Stopped { step: steps.len() as u64 });
        }
    }
    let mut summary = Summary::of(&steps, steps_per_epoch);
    summary
        .objective
        .extend(objective.dataset_metrics().into_iter().map(|(name, value)| (name.into(), value)));
    Ok(Ended::Done(summary))
}

/// Restores the checkpoint, if any. Returns the metrics of its steps and the micro-batch size to continue
/// with.
fn resume(
    trainer: &mut Trainer<'_>,
    checkpointer: &mut dyn Checkpointer,
    budget: usize,
    steps: usize,
) -> Result<(Vec<StepMetrics>, usize), TrainError> {
    let Some(saved) = checkpointer.load() else {
        return Ok((Vec::new(), budget));
    };
    let metadata = &saved.metadata;
    if metadata.steps != steps as u64 || metadata.metrics.len() as u64 != metadata.step {
        return Err(TrainError::CheckpointMismatch {
            step: metadata.step,
            found: metadata.steps,
            expected: steps as u64,
        });
    }
    trainer.restore(&saved)?;
    tracing::info!(step = metadata.step, steps, ranks = metadata.world, "training resumes from a checkpoint");
    Ok((saved.metadata.metrics.clone(), metadata.micro_batch_tokens))
}

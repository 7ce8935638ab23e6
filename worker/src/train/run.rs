//! A whole training phase.

use super::order::global_batches;
use super::rehearsal::{Cut, fit};
use super::{Keeper, Objective, RowShape, StepFigures, StepPlan, Summary, TrainConfig, TrainError, Trainer};
use crate::collective::Gang;
use crate::model::Parameters;

/// How training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// After its last step.
    Done(Summary),
    /// After this step, because a rank was asked to stop; a snapshot of it was given to the keeper.
    Stopped { step: u64 },
}

/// Trains `parameters`, which are those of `objective`'s model, over all its rows and epochs, or over what is left of them
/// after what `keeper` has saved.
///
/// The largest micro-batch is tried first; where memory is too small for it, all are cut finer.
///
/// `report` hears of every step, in order, also of those that were taken before. Afterwards the parameters still require
/// gradients.
///
/// # Errors
/// [`TrainError::NoRows`]; [`TrainError::OutOfMemory`]; [`TrainError::Saved`]; else those of [`Trainer::step`] and of the
/// keeper.
pub fn train(
    objective: &dyn Objective,
    parameters: &Parameters,
    config: &TrainConfig,
    gang: &Gang,
    keeper: &mut dyn Keeper,
    report: &mut dyn FnMut(&StepFigures),
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
        go_on(&mut trainer, keeper, config.optimizer.micro_batch_tokens, batches.len())?;
    steps.iter().for_each(&mut *report);
    let budget = fit(objective, &mut trainer, Cut { batches: &batches, shapes: &shapes, budget })?;
    let plan = |rows: &[usize], share| StepPlan::new(rows, &shapes, share, budget);
    // Of the first batch also where others are next: the layout must not depend on where an attempt begins.
    trainer.warm_up(objective, &plan(&batches[0], trainer.share()))?;
    for rows in &batches[steps.len()..] {
        let plan = plan(rows, trainer.share());
        tracing::debug!(step = steps.len() + 1, "training step");
        let (figures, granted) = trainer.step(objective, &plan, keeper.wishes(steps.len() as u64 + 1))?;
        report(&figures);
        steps.push(figures);
        let is_last = steps.len() == batches.len();
        if (granted.snapshot || granted.stop) && !is_last {
            let mut snapshot = trainer.snapshot();
            snapshot.record.steps = batches.len() as u64;
            snapshot.record.micro_batch_tokens = budget;
            snapshot.record.figures.clone_from(&steps);
            keeper.keep(snapshot)?;
        }
        if granted.stop && !is_last {
            return Ok(Ended::Stopped { step: steps.len() as u64 });
        }
    }
    let mut summary = Summary::of(&steps, steps_per_epoch);
    summary
        .objective
        .extend(objective.dataset_metrics().into_iter().map(|(name, value)| (name.into(), value)));
    Ok(Ended::Done(summary))
}

/// The steps that were taken before, restored, and the tokens per micro-batch to go on with.
fn go_on(
    trainer: &mut Trainer<'_>,
    keeper: &mut dyn Keeper,
    budget: usize,
    steps: usize,
) -> Result<(Vec<StepFigures>, usize), TrainError> {
    let Some(saved) = keeper.saved() else {
        return Ok((Vec::new(), budget));
    };
    let record = &saved.record;
    if record.steps != steps as u64 || record.figures.len() as u64 != record.step {
        return Err(TrainError::Saved { step: record.step, found: record.steps, expected: steps as u64 });
    }
    trainer.restore(&saved)?;
    tracing::info!(step = record.step, steps, ranks = record.world, "training goes on after a checkpoint");
    Ok((saved.record.figures.clone(), record.micro_batch_tokens))
}

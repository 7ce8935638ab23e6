//! A whole training phase.

use foil_common::spec::{Optimizer, Schedule, Sharding};

use super::order::global_batches;
use super::{Objective, OrderKey, Recipe, RowShape, StepFigures, StepPlan, Summary, TrainError, Trainer};
use crate::collective::Gang;
use crate::model::Parameters;

/// How a phase trains; the same on all ranks.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    pub order: OrderKey,
    pub epochs: u32,
    /// Pairs or answers per step over all ranks, or as near to it as whole rows come.
    pub batch: usize,
    /// The peak.
    pub learning_rate: f64,
    pub optimizer: &'a Optimizer,
    pub schedule: &'a Schedule,
    pub sharding: Sharding,
}

/// Trains `parameters`, which are those of `objective`'s model, over all its rows and epochs.
///
/// `report` hears of every step, in order. Afterwards the parameters still require gradients.
///
/// # Errors
/// [`TrainError::NoRows`]; else those of [`Trainer::step`].
pub fn train(
    objective: &dyn Objective,
    parameters: &Parameters,
    training: &Training<'_>,
    gang: &Gang,
    report: &mut dyn FnMut(&StepFigures),
) -> Result<Summary, TrainError> {
    let sets = objective.sets();
    let shapes: Vec<RowShape> = (0..sets.iter().sum()).map(|row| objective.shape(row)).collect();
    let items: usize = shapes.iter().map(|shape| shape.items).sum();
    let batch = foil_common::spec::rows_per_step(training.batch, shapes.len(), items);
    let steps_per_epoch = shapes.len().div_ceil(batch);
    if steps_per_epoch == 0 || training.epochs == 0 {
        return Err(TrainError::NoRows);
    }
    let recipe = Recipe {
        optimizer: training.optimizer,
        schedule: training.schedule,
        peak_learning_rate: training.learning_rate,
        steps: steps_per_epoch as u64 * u64::from(training.epochs),
        sharding: training.sharding,
    };
    let mut trainer = Trainer::new(parameters, recipe, gang)?;
    let plan = |rows: &Vec<usize>, trainer: &Trainer<'_>| {
        StepPlan::new(rows, &shapes, trainer.share(), training.optimizer.micro_batch_tokens)
    };
    let mut steps = Vec::new();
    for epoch in 0..training.epochs {
        for rows in &global_batches(training.order, epoch, &sets, batch) {
            let plan = plan(rows, &trainer);
            if steps.is_empty() {
                trainer.warm_up(objective, &plan)?;
            }
            let figures = trainer.step(objective, &plan)?;
            report(&figures);
            steps.push(figures);
        }
    }
    let mut summary = Summary::of(&steps, steps_per_epoch);
    summary.objective.extend(objective.constants());
    Ok(summary)
}

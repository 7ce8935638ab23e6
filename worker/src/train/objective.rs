//! What a trainer trains.

use foil_common::spec::Normalization;
use tch::Tensor;

use super::{RowShape, StepPlan, TrainError};

/// Rows, a model, and a loss that is a sum over rows.
///
/// Rows are numbered through the sets that [`Objective::sets`] tells. All ranks hold all rows.
pub trait Objective {
    /// Rows of each set, in the order of their numbers. Every global batch mixes the sets in this proportion.
    fn sets(&self) -> Vec<usize>;

    fn shape(&self, row: usize) -> RowShape;

    /// Names a row in an error, as its user would find it: data set and id.
    fn row_name(&self, row: usize) -> String;

    /// The loss of some rows, on this rank's device.
    ///
    /// # Errors
    /// Rows that make no tensor.
    fn part(&self, rows: &[usize]) -> Result<Part, TrainError>;

    /// Hears that an update has moved the parameters, on every rank alike; gradients are off. For objectives that bound them.
    fn after_update(&self) {}

    /// What the loss is divided by.
    fn normalization(&self) -> Normalization {
        Normalization::Global
    }

    /// How many numbers [`Part::sums`] holds.
    fn sums(&self) -> usize {
        0
    }

    /// The objective's own figures of a step, from `sums` added up over the global batch.
    fn figures(&self, sums: &[f64], step: &StepPlan) -> Vec<(&'static str, f64)> {
        let _ = (sums, step);
        Vec::new()
    }

    /// What of the data is the same in every step and worth a metric.
    fn constants(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// Of one micro-batch.
#[derive(Debug)]
pub struct Part {
    /// Σ over its rows of weight · loss, a scalar that can be differentiated.
    pub loss: Tensor,
    /// `[sums]`, numbers to be added up over the global batch; `None` where the objective has none.
    pub sums: Option<Tensor>,
}

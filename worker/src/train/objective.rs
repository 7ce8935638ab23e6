//! The interface between a loss on rows and the trainer.

use foil_common::spec::Normalization;
use tch::Tensor;

use super::{RowShape, TrainError};
use crate::objective::metrics::{Metric, MetricSums};

/// Rows, a model, and a loss that is a sum over rows.
///
/// Rows are numbered through the sets that [`Objective::sets`] lists. All ranks hold all rows.
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
    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError>;

    /// Called after each update of the parameters, on every rank alike, with gradients off. For objectives that bound parameters.
    fn after_update(&self) {}

    /// The denominator of the loss.
    fn normalization(&self) -> Normalization {
        Normalization::Global
    }

    /// The metrics of every [`MicroBatchLoss`], in order.
    fn metrics(&self) -> &'static [Metric] {
        &[]
    }

    /// Metrics of the data, which are the same in every step.
    fn dataset_metrics(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// The loss of one micro-batch.
#[derive(Debug)]
pub struct MicroBatchLoss {
    /// Σ over its rows of weight · loss, a scalar that can be differentiated.
    pub loss: Tensor,
    /// Sums over its rows under [`Objective::metrics`].
    pub metrics: MetricSums,
}

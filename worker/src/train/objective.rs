//! The interface between a loss on rows and the trainer.

use foil_common::spec::Normalization;
use tch::Tensor;

use super::{RowShape, TrainError};
use crate::objective::metrics::{Metric, MetricSums};

/// Rows, a model, and a loss that is a sum over rows.
///
/// Rows are numbered consecutively through [`Objective::sets`]. All ranks hold all rows.
pub trait Objective {
    /// The number of rows of each set. Every global batch mixes the sets in this proportion.
    fn sets(&self) -> Vec<usize>;

    fn shape(&self, row: usize) -> RowShape;

    /// A row's name for errors: its data set and id.
    fn row_name(&self, row: usize) -> String;

    /// The loss of some rows, on this rank's device.
    ///
    /// # Errors
    /// Rows that cannot be packed into a batch.
    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError>;

    /// Called after each update on all ranks, without gradients. For objectives that constrain parameters.
    fn after_update(&self) {}

    /// The denominator of the loss.
    fn normalization(&self) -> Normalization {
        Normalization::Global
    }

    /// The metrics of every [`MicroBatchLoss`], in order.
    fn metrics(&self) -> &'static [Metric] {
        &[]
    }

    /// Metrics of the data, equal in all steps.
    fn dataset_metrics(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// The loss of one micro-batch.
#[derive(Debug)]
pub struct MicroBatchLoss {
    /// Σ weight · loss over its rows, a differentiable scalar.
    pub loss: Tensor,
    /// The sums of [`Objective::metrics`] over its rows.
    pub metrics: MetricSums,
}

//! Metrics that a loss brings along: sums over its rows, which the trainer adds up over micro-batches and ranks.

use tch::{Device, Kind, Tensor};

/// A metric of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub mean_over: MeanOver,
}

/// The denominator of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeanOver {
    /// The denominator of the loss: the weights of the global batch's rows.
    Weight,
    /// The pairs or completions of the global batch.
    Items,
}

impl Metric {
    pub const fn per_weight(name: &'static str) -> Self {
        Self { name, mean_over: MeanOver::Weight }
    }

    pub const fn per_item(name: &'static str) -> Self {
        Self { name, mean_over: MeanOver::Items }
    }
}

/// Sums of named metrics over some rows.
#[derive(Debug)]
pub struct MetricSums {
    names: Vec<&'static str>,
    /// `[names]`, fp64, without a gradient.
    sums: Tensor,
}

impl MetricSums {
    pub fn zeros(metrics: &[Metric], device: Device) -> Self {
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name).collect();
        let sums = Tensor::zeros([names.len() as i64], (Kind::Double, device));
        Self { names, sums }
    }

    /// Scalars by their names; all on `device`.
    pub fn of<const N: usize>(scalars: [(&'static str, &Tensor); N], device: Device) -> Self {
        let mut all = vec![Tensor::zeros([0], (Kind::Double, device))];
        all.extend(scalars.iter().map(|(_, scalar)| scalar.detach().to_kind(Kind::Double).view(1)));
        Self { names: scalars.map(|(name, _)| name).into(), sums: Tensor::cat(&all, 0) }
    }

    /// Adds the sums of other rows under the same metrics.
    pub fn add(&mut self, more: &Self) {
        debug_assert_eq!(self.names, more.names, "a loss has the metrics that it announces");
        tch::no_grad(|| self.sums += &more.sums);
    }

    /// `[metrics]`, fp64, in the order in which the metrics were announced.
    pub fn tensor(&self) -> &Tensor {
        &self.sums
    }

    pub fn names(&self) -> &[&'static str] {
        &self.names
    }
}

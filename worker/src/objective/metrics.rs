//! Metrics of a loss: sums over its rows, which the trainer accumulates over micro-batches and ranks.

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
    /// The loss's denominator: the total weight of the global batch's rows.
    Weight,
    /// The number of pairs or completions in the global batch.
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

    /// Sums from named scalars on `device`.
    pub fn from_scalars<const N: usize>(scalars: [(&'static str, &Tensor); N], device: Device) -> Self {
        let mut all = vec![Tensor::zeros([0], (Kind::Double, device))];
        all.extend(scalars.iter().map(|(_, scalar)| scalar.detach().to_kind(Kind::Double).view(1)));
        Self { names: scalars.map(|(name, _)| name).into(), sums: Tensor::cat(&all, 0) }
    }

    /// Adds the sums of other rows, which must have the same metrics.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.names, other.names, "a loss returns the metrics it declares");
        tch::no_grad(|| self.sums += &other.sums);
    }

    /// `[metrics]`, fp64, in the order of the declared metrics.
    pub fn tensor(&self) -> &Tensor {
        &self.sums
    }

    pub fn names(&self) -> &[&'static str] {
        &self.names
    }
}

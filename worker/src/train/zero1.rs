//! ZeRO stage 1 (Rajbhandari et al. 2020): the optimizer's state is sharded over the ranks.
//!
//! Parameters are flattened into buckets. A reduce-scatter sums a bucket's gradients and leaves each rank its
//! shard of the sum; the rank's AdamW updates its shard of the parameters; an all-gather collects the shards.
//! On W ranks the moments and the parameter shard take 12/W bytes per parameter instead of 8.

use foil_common::spec::Optimizer;
use tch::{Kind, Tensor, no_grad};

use super::checkpoint::{LoadedCheckpoint, MEAN, SQUARE};
use super::optimizer::{by_name, clip};
use super::{AdamW, TrainError};
use crate::collective::Gang;
use crate::model::ModelError;

/// Bytes of a bucket's gradients, which is also the temporary memory of its reduce-scatter.
const BUCKET_BYTES: usize = 25 << 20;

/// A rank's shard of the gradients and of AdamW's state.
pub(super) struct Zero1<'a> {
    gang: &'a Gang,
    buckets: Vec<Bucket>,
    /// Optimizes the buckets' local shards.
    optimizer: AdamW,
    /// This rank's shard of the summed gradient, by bucket; empty except between `reduce` and `step`.
    gradients: Vec<Tensor>,
}

/// Parameters with the same weight decay, flattened and padded to shards of equal length.
struct Bucket {
    parameters: Vec<Tensor>,
    decays: bool,
    /// Elements of all its parameters.
    numel: i64,
    /// Elements of one rank's shard.
    shard_length: i64,
    /// This rank's shard of the parameters, `[shard_length]`.
    shard: Tensor,
}

impl<'a> Zero1<'a> {
    /// `parameters` come with whether each decays, and are the same on all ranks.
    pub(super) fn new<'p>(
        parameters: impl Iterator<Item = (&'p Tensor, bool)>,
        settings: &Optimizer,
        gang: &'a Gang,
    ) -> Self {
        let buckets: Vec<Bucket> = into_buckets(parameters, BUCKET_BYTES)
            .into_iter()
            .map(|(parameters, decays)| Bucket::new(parameters, decays, gang.world()))
            .collect();
        let optimizer = AdamW::new(buckets.iter().map(|bucket| (&bucket.shard, bucket.decays)), settings);
        Self { gang, buckets, optimizer, gradients: Vec::new() }
    }

    /// Clears all gradients.
    pub(super) fn zero_grad(&mut self) -> Result<(), TrainError> {
        self.gradients.clear();
        for bucket in &self.buckets {
            foil_torch::autograd::clear_gradients(&bucket.parameters)?;
        }
        Ok(())
    }

    /// Runs the last backward, if there is one, and sums gradients. A bucket's own gradients are freed once
    /// they are summed.
    pub(super) fn reduce(&mut self, loss: Option<&Tensor>) -> Result<(), TrainError> {
        if let Some(loss) = loss {
            foil_torch::autograd::backward(loss)?;
            self.check_reached()?;
        }
        for bucket in &self.buckets {
            let flat = bucket.flatten(self.gang.world(), |parameter| {
                let gradient = parameter.grad();
                // A rank without rows has no gradients; they count as zero.
                gradient.defined().then_some(gradient)
            });
            foil_torch::autograd::clear_gradients(&bucket.parameters)?;
            self.gradients.push(self.gang.reduce_scatter(&flat)?);
        }
        Ok(())
    }

    /// See [`super::distributed_optimizer::DistributedOptimizer::norm`]: the shards' squared norms, summed
    /// over the ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        let mut squares = no_grad(|| {
            let norms: Vec<Tensor> = self.gradients.iter().map(Tensor::norm).collect();
            Tensor::stack(&norms, 0).to_kind(Kind::Double).square().sum(Kind::Double).view(1)
        });
        self.gang.all_reduce(&mut squares)?;
        Ok(squares.sqrt())
    }

    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        let gradients = std::mem::take(&mut self.gradients);
        no_grad(|| {
            if let Some(limit) = limit {
                clip(&gradients, norm, limit)?;
            }
            for bucket in &mut self.buckets {
                bucket.refresh_local_shard(self.gang);
            }
            self.optimizer.step(&gradients, learning_rate)?;
            drop(gradients);
            for bucket in &self.buckets {
                bucket.write_back(&self.gang.all_gather(&bucket.shard)?);
            }
            Ok(())
        })
    }

    pub(super) fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// This rank's shard of the moments of every bucket.
    pub(super) fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let rank = self.gang.rank();
        self.optimizer.state().flat_map(move |(bucket, moments)| by_name(&shard_name(bucket, rank), moments))
    }

    /// Restores this rank's shard from a checkpoint, which any number of ranks saved.
    pub(super) fn restore(&mut self, saved: &LoadedCheckpoint) -> Result<(), ModelError> {
        let (rank, buckets) = (self.gang.rank() as i64, &self.buckets);
        self.optimizer.restore(saved.metadata.updates, |bucket| {
            let shard = |moment: &str| {
                let shards = (0..saved.metadata.world)
                    .map(|rank| saved.read(&format!("{moment}{}", shard_name(bucket, rank))));
                let flat = Tensor::cat(&shards.collect::<Result<Vec<_>, _>>()?, 0);
                let Bucket { numel, shard_length, .. } = buckets[bucket];
                // The padding depends on the number of ranks.
                let flat = flat.narrow(0, 0, numel);
                let padded =
                    Tensor::zeros([shard_length * self.gang.world() as i64], (Kind::Float, flat.device()));
                padded.narrow(0, 0, numel).copy_(&flat);
                Ok::<_, ModelError>(padded.narrow(0, rank * shard_length, shard_length))
            };
            Ok([shard(MEAN)?, shard(SQUARE)?])
        })
    }

    /// Refuses a loss that does not depend on all parameters, as c10d's reducer does: the others would
    /// silently never change.
    fn check_reached(&self) -> Result<(), TrainError> {
        let mut parameters = self.buckets.iter().flat_map(|bucket| &bucket.parameters);
        match parameters.find(|parameter| !parameter.grad().defined()) {
            None => Ok(()),
            Some(missed) => {
                let detail = format!("the loss does not reach a parameter of shape {:?}", missed.size());
                Err(foil_torch::Error::Unreduced { detail }.into())
            }
        }
    }

    /// Elements of this rank's shard of the first moments.
    #[cfg(test)]
    pub(super) fn moments(&self) -> usize {
        self.optimizer.moments().map(|(mean, _)| mean.numel()).sum()
    }
}

impl Bucket {
    fn new(parameters: Vec<Tensor>, decays: bool, world: usize) -> Self {
        let numel = parameters.iter().map(|parameter| parameter.numel() as i64).sum::<i64>();
        let shard_length = (numel as usize).div_ceil(world) as i64;
        let shard = Tensor::zeros([shard_length], (parameters[0].kind(), parameters[0].device()));
        Self { parameters, decays, numel, shard_length, shard }
    }

    /// Concatenates `value` of all parameters, with zeros where it is `None` and as padding: `[world,
    /// shard_length]`.
    fn flatten(&self, world: usize, value: impl Fn(&Tensor) -> Option<Tensor>) -> Tensor {
        no_grad(|| {
            let options = (self.shard.kind(), self.shard.device());
            let flat = Tensor::zeros([world as i64 * self.shard_length], options);
            for (view, parameter) in self.views(&flat) {
                if let Some(tensor) = value(parameter) {
                    view.view_as(parameter).copy_(&tensor);
                }
            }
            flat.view([world as i64, self.shard_length])
        })
    }

    /// Copies this rank's shard from the parameters, which others than the optimizer may have changed.
    fn refresh_local_shard(&mut self, gang: &Gang) {
        let flat = self.flatten(gang.world(), |parameter| Some(parameter.detach()));
        self.shard.copy_(&flat.select(0, gang.rank() as i64));
    }

    /// Copies `[world, shard_length]` to the parameters.
    fn write_back(&self, shards: &Tensor) {
        for (view, parameter) in self.views(&shards.view(-1)) {
            parameter.shallow_clone().copy_(&view.view_as(parameter));
        }
    }

    /// Each parameter with the part of `flat` that holds it.
    fn views<'b>(&'b self, flat: &'b Tensor) -> impl Iterator<Item = (Tensor, &'b Tensor)> {
        let mut start = 0;
        self.parameters.iter().map(move |parameter| {
            let length = parameter.numel() as i64;
            let view = flat.narrow(0, start, length);
            start += length;
            (view, parameter)
        })
    }
}

/// The name of a shard in a checkpoint.
fn shard_name(bucket: usize, rank: usize) -> String {
    format!("bucket{bucket}.part{rank}")
}

/// Splits parameters into buckets of at most `bytes`, or of one parameter, in order; those with weight decay
/// separately.
fn into_buckets<'p>(
    parameters: impl Iterator<Item = (&'p Tensor, bool)>,
    bytes: usize,
) -> Vec<(Vec<Tensor>, bool)> {
    let mut buckets: Vec<(Vec<Tensor>, bool)> = Vec::new();
    let mut open: [Option<(usize, usize)>; 2] = [None; 2]; // (bucket, bytes in it)
    for (parameter, decays) in parameters {
        let size = parameter.numel() * parameter.kind().elt_size_in_bytes();
        let current = &mut open[usize::from(decays)];
        match current {
            Some((bucket, filled)) if *filled + size <= bytes => {
                buckets[*bucket].0.push(parameter.shallow_clone());
                *filled += size;
            }
            _ => {
                *current = Some((buckets.len(), size));
                buckets.push((vec![parameter.shallow_clone()], decays));
            }
        }
    }
    buckets
}

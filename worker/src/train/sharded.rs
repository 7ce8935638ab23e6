//! ZeRO stage 1 (Rajbhandari et al. 2020): the optimizer's state is cut over the ranks.
//!
//! Parameters are laid end to end in buckets. A bucket's gradients are summed by reduce-scatter, which leaves each rank
//! its part of the sum; the rank's AdamW moves that part of the parameters; all-gather brings the parts together. On W
//! ranks the moments and the part of the parameters take 12/W bytes per parameter, in place of 8.

use foil_common::spec::Optimizer;
use tch::{Kind, Tensor, no_grad};

use super::optimizer::{by_name, clip};
use super::snapshot::{MEAN, SQUARE, Saved};
use super::{AdamW, TrainError};
use crate::collective::Gang;
use crate::model::ModelError;

/// How many bytes of gradients travel together, and so how much memory a bucket takes while it does.
const BUCKET_BYTES: usize = 25 << 20;

/// Gradients and AdamW of a gang's parameters, one part per rank.
pub(super) struct Sharded<'a> {
    gang: &'a Gang,
    buckets: Vec<Bucket>,
    /// Over the buckets' parts.
    optimizer: AdamW,
    /// This rank's part of the summed gradient, by bucket; empty but between `reduce` and `step`.
    gradients: Vec<Tensor>,
}

/// Parameters that all decay or all do not, laid end to end and filled up to equal parts for all ranks.
struct Bucket {
    parameters: Vec<Tensor>,
    decays: bool,
    /// Numbers in all its parameters.
    numbers: i64,
    /// Numbers in a rank's part.
    part_length: i64,
    /// This rank's part of the parameters, `[part_length]`.
    part: Tensor,
}

impl<'a> Sharded<'a> {
    /// Of `parameters`, each with whether it decays; the same on every rank.
    pub(super) fn new<'p>(
        parameters: impl Iterator<Item = (&'p Tensor, bool)>,
        settings: &Optimizer,
        gang: &'a Gang,
    ) -> Self {
        let buckets: Vec<Bucket> = fill(parameters, BUCKET_BYTES)
            .into_iter()
            .map(|(parameters, decays)| Bucket::new(parameters, decays, gang.world()))
            .collect();
        let optimizer = AdamW::new(buckets.iter().map(|bucket| (&bucket.part, bucket.decays)), settings);
        Self { gang, buckets, optimizer, gradients: Vec::new() }
    }

    pub(super) fn zero(&mut self) -> Result<(), TrainError> {
        self.gradients.clear();
        for bucket in &self.buckets {
            foil_torch::autograd::clear_gradients(&bucket.parameters)?;
        }
        Ok(())
    }

    /// Runs the last backward, where there is one, and sums the gradients; a bucket's own are freed as soon as its sum stands.
    pub(super) fn reduce(&mut self, loss: Option<&Tensor>) -> Result<(), TrainError> {
        if let Some(loss) = loss {
            foil_torch::autograd::backward(loss)?;
            self.check_reached()?;
        }
        for bucket in &self.buckets {
            let whole = bucket.lay_out(self.gang.world(), |parameter| {
                let gradient = parameter.grad();
                // A rank without rows has no gradients, which count as zero.
                gradient.defined().then_some(gradient)
            });
            foil_torch::autograd::clear_gradients(&bucket.parameters)?;
            self.gradients.push(self.gang.reduce_scatter(&whole)?);
        }
        Ok(())
    }

    /// See [`super::update::Update::norm`]: the parts' squares, summed over the ranks.
    pub(super) fn norm(&self) -> Result<Tensor, TrainError> {
        let mut squares = no_grad(|| {
            let norms: Vec<Tensor> = self.gradients.iter().map(Tensor::norm).collect();
            Tensor::stack(&norms, 0).to_kind(Kind::Double).square().sum(Kind::Double).view(1)
        });
        self.gang.sum_tensor(&mut squares)?;
        Ok(squares.sqrt())
    }

    pub(super) fn step(
        &mut self,
        norm: f64,
        limit: Option<f64>,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        let mut gradients = std::mem::take(&mut self.gradients);
        no_grad(|| {
            if let Some(limit) = limit {
                clip(&mut gradients, norm, limit);
            }
            for bucket in &mut self.buckets {
                bucket.take_part(self.gang);
            }
            self.optimizer.step(&gradients, learning_rate)?;
            drop(gradients);
            for bucket in &self.buckets {
                bucket.spread(&self.gang.all_gather(&bucket.part)?);
            }
            Ok(())
        })
    }

    pub(super) fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// This rank's part of the moments of every bucket.
    pub(super) fn state(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let rank = self.gang.rank();
        self.optimizer.state().flat_map(move |(bucket, moments)| by_name(&part_name(bucket, rank), moments))
    }

    /// From the parts of all ranks that there were, which may have been others.
    pub(super) fn restore(&mut self, saved: &Saved) -> Result<(), ModelError> {
        let (rank, buckets) = (self.gang.rank() as i64, &self.buckets);
        self.optimizer.restore(saved.record.updates, |bucket| {
            let part = |moment: &str| {
                let parts = (0..saved.record.world)
                    .map(|rank| saved.read(&format!("{moment}{}", part_name(bucket, rank))));
                let whole = Tensor::cat(&parts.collect::<Result<Vec<_>, _>>()?, 0);
                let Bucket { numbers, part_length, .. } = buckets[bucket];
                // Parts were filled up with zeros, and are again.
                let whole = whole.narrow(0, 0, numbers);
                let filled =
                    Tensor::zeros([part_length * self.gang.world() as i64], (Kind::Float, whole.device()));
                filled.narrow(0, 0, numbers).copy_(&whole);
                Ok::<_, ModelError>(filled.narrow(0, rank * part_length, part_length))
            };
            Ok([part(MEAN)?, part(SQUARE)?])
        })
    }

    /// As c10d's reducer does: a parameter that the loss leaves out would silently never move.
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

    /// Numbers in this rank's part of the first moments.
    #[cfg(test)]
    pub(super) fn moments(&self) -> usize {
        self.optimizer.moments().map(|(mean, _)| mean.numel()).sum()
    }
}

impl Bucket {
    fn new(parameters: Vec<Tensor>, decays: bool, world: usize) -> Self {
        let numbers = parameters.iter().map(|parameter| parameter.numel() as i64).sum::<i64>();
        let part_length = (numbers as usize).div_ceil(world) as i64;
        let part = Tensor::zeros([part_length], (parameters[0].kind(), parameters[0].device()));
        Self { parameters, decays, numbers, part_length, part }
    }

    /// What `of` gives for each parameter, end to end, zeros where it gives nothing: `[world, part_length]`.
    fn lay_out(&self, world: usize, of: impl Fn(&Tensor) -> Option<Tensor>) -> Tensor {
        no_grad(|| {
            let options = (self.part.kind(), self.part.device());
            let whole = Tensor::zeros([world as i64 * self.part_length], options);
            for (place, parameter) in self.places(&whole) {
                if let Some(tensor) = of(parameter) {
                    place.view_as(parameter).copy_(&tensor);
                }
            }
            whole.view([world as i64, self.part_length])
        })
    }

    /// Reads this rank's part of the parameters as they are now: others than the optimizer may have moved them.
    fn take_part(&mut self, gang: &Gang) {
        let whole = self.lay_out(gang.world(), |parameter| Some(parameter.detach()));
        self.part.copy_(&whole.select(0, gang.rank() as i64));
    }

    /// Writes `[world, part_length]` back to the parameters.
    fn spread(&self, whole: &Tensor) {
        for (place, parameter) in self.places(&whole.view(-1)) {
            parameter.shallow_clone().copy_(&place.view_as(parameter));
        }
    }

    /// Each parameter's place in `whole`.
    fn places<'b>(&'b self, whole: &'b Tensor) -> impl Iterator<Item = (Tensor, &'b Tensor)> {
        let mut start = 0;
        self.parameters.iter().map(move |parameter| {
            let length = parameter.numel() as i64;
            let place = whole.narrow(0, start, length);
            start += length;
            (place, parameter)
        })
    }
}

/// A part's name in a snapshot.
fn part_name(bucket: usize, rank: usize) -> String {
    format!("bucket{bucket}.part{rank}")
}

/// Deals parameters into buckets of at most `bytes`, or of one parameter, in their order, those that decay apart.
fn fill<'p>(parameters: impl Iterator<Item = (&'p Tensor, bool)>, bytes: usize) -> Vec<(Vec<Tensor>, bool)> {
    let mut buckets: Vec<(Vec<Tensor>, bool)> = Vec::new();
    let mut open: [Option<(usize, usize)>; 2] = [None; 2]; // (bucket, bytes in it)
    for (parameter, decays) in parameters {
        let size = parameter.numel() * parameter.kind().elt_size_in_bytes();
        let slot = &mut open[usize::from(decays)];
        match slot {
            Some((bucket, filled)) if *filled + size <= bytes => {
                buckets[*bucket].0.push(parameter.shallow_clone());
                *filled += size;
            }
            _ => {
                *slot = Some((buckets.len(), size));
                buckets.push((vec![parameter.shallow_clone()], decays));
            }
        }
    }
    buckets
}

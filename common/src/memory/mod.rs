//! Estimates of a rank's peak device memory in each kind of phase, from the shape of the model.
//!
//! Estimates are meant to be slightly above the actual usage. They follow the worker's implementation; a test
//! there compares the activations with what libtorch really allocates.

mod activations;
mod job;
mod phase;
mod shape;
#[cfg(test)]
mod tests;

pub use activations::{Batch, Compute, Loss, Pass, chunk_logits};
pub use job::Estimator;
pub use phase::{
    Adapters, Decoding, Estimate, Evaluated, MAX_SAMPLED_LOGITS, Model, Training, evaluation, generation,
    inference, sampling_memory, training,
};
pub use shape::{Head, ModelShape};

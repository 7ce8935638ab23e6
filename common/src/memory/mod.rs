//! How much memory of its device a rank takes in each kind of phase, from the model's shape alone.
//!
//! Numbers are of the worst moment of a phase and are meant to lie a little above what a run takes. They hold for what the
//! worker does today; a test there holds the activations against what libtorch really allocates.

mod activations;
mod phase;
mod shape;
#[cfg(test)]
mod tests;

pub use activations::{Batch, CHUNK_LOGITS, Compute, Loss, Pass};
pub use phase::{
    Adapters, DRAWN_LOGITS, Decoding, Estimate, Model, Training, drawing, evaluating, generating, reading,
    training,
};
pub use shape::{Head, ModelShape};

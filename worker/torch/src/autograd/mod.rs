//! Autograd: backward passes, activation checkpointing, and values with precomputed gradients.

mod checkpoint;
mod gradients;
mod preset;

pub use checkpoint::checkpoint;
pub use gradients::{backward, clear_gradients, grad_enabled, zero_gradients, zero_loss};
pub use preset::with_gradients;

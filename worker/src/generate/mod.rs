//! Sampling answers: continuous batching over a KV cache.
//!
//! One prefill per prompt serves all its samples; a finished row leaves the batch and the next sample takes its slot.
//! The order of admission and the number of slots are fixed by the request alone, and each sample's noise by its
//! address, so a chunk's samples are the same bytes whoever computes it.

mod draw;
mod engine;
pub mod noise;
pub mod sampler;
mod tensor_sampler;

pub use engine::{Answering, GenerateError, GenerateRequest, Generated, Generation, Work, generate};
pub use noise::NoiseKey;

#[cfg(test)]
mod tests;

/// A token as it was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    id: u32,
    /// In nats, under the policy itself: at temperature 1, before penalties, filters and forbidden ends.
    log_prob: f32,
}

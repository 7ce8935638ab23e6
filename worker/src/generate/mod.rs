//! Sampling completions: continuous batching over a KV cache.
//!
//! One prefill per prompt serves all its completions; a finished sequence leaves the batch and the next one
//! takes its slot. The order of admission and the number of slots depend on the requests alone, and a
//! completion's noise on its prompt id and index, so a chunk's completions are the same bytes whichever rank
//! computes them.

mod device_sampler;
mod engine;
mod error;
pub mod noise;
mod sample;
pub mod sampler;

pub use engine::{Completion, GenerateRequest, Generation, GenerationConfig, GenerationStats, generate};
pub use error::GenerateError;
pub use noise::NoiseKey;

#[cfg(test)]
mod tests;

/// A sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    id: u32,
    /// In nats, of the policy itself: at temperature 1, before penalties, filters and `min_new_tokens`.
    log_prob: f32,
}

//! Sampling completions: continuous batching over a KV cache.
//!
//! One prefill per prompt serves all its completions. A finished sequence leaves the batch and the next one
//! takes its slot. The order of admission and the number of slots depend only on the requests, and a
//! completion's noise only on its prompt id and index. A chunk's completions are therefore the same bytes on
//! any rank.
//!
//! On the CPU each step's tokens are read before the next step (`host_runner`); on an accelerator the host
//! reads them one step late (`device_runner`).

mod device_runner;
mod device_sampler;
mod engine;
mod error;
mod host_runner;
pub mod noise;
mod request;
mod runner;
pub mod sampler;
mod sequence;

pub use engine::generate;
pub use error::GenerateError;
pub use noise::NoiseKey;
pub use request::{Completion, GenerateRequest, Generation, GenerationConfig, GenerationStats};

#[cfg(test)]
mod tests;

/// A sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    id: u32,
    /// Log-probability in nats under the policy itself: at temperature 1, before penalties, filters and
    /// `min_new_tokens`.
    log_prob: f32,
}

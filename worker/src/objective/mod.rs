//! Training objectives: pure functions of scores, hidden states and log-probabilities.
//!
//! Every objective returns a *sum* over its rows, never a mean. [`crate::train`] divides by the denominator
//! of the step's global batch, over all ranks and micro-batches.
//!
//! Sums are computed in fp32, or in fp64 if the inputs are fp64.

pub mod advantage;
pub mod likelihood;
pub mod metrics;
#[cfg(test)]
mod oracles;
pub mod pairing;
pub mod policy;
pub mod reward;
pub mod surrogate;
#[cfg(test)]
mod tests;

use tch::Kind;

/// The kind that losses are computed in: fp32 for anything narrower, fp64 for fp64.
pub(crate) fn accumulation_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

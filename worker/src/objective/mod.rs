//! Training objectives: pure functions of scores, hidden states and log-probabilities.
//!
//! Every objective gives a *sum* over its rows. What the sum is divided by belongs to the step's whole batch, over
//! all ranks and micro-batches, and is applied by [`crate::train`]; an objective never averages.
//!
//! Sums are taken in fp32, or in fp64 where the inputs are fp64.

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

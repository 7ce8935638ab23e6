//! Measurements of models. Values are collected per chunk as [`foil_common::stats::Moments`] and
//! [`foil_common::stats::Calibration`], which the coordinator merges.

mod divergence;
mod drift;
mod log_probs;
mod pairs;
mod scores;
mod text;

pub use divergence::{Divergence, completion_kl, token_kl};
pub use drift::Drift;
pub use log_probs::completion_log_probs;
pub use pairs::{PairMetrics, is_correct};
pub use scores::scores;
pub use text::{Diversity, completion_distinct_n, duplicates};

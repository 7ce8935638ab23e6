//! What is measured of models, and the tensor work it needs. Figures are gathered per chunk as
//! [`foil_common::stats::Moments`] and [`foil_common::stats::Calibration`]; the coordinator merges them.

mod divergence;
mod drift;
mod log_probs;
mod pairs;
mod scores;
mod text;

pub use divergence::{Divergence, answer_kl, token_kl};
pub use drift::Drift;
pub use log_probs::answer_log_probs;
pub use pairs::{PairFigures, is_right};
pub use scores::scores;
pub use text::{Variety, answer_distinct_n, repeats};

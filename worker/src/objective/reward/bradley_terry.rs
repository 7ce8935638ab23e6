//! The Bradley-Terry loss.

use foil_common::spec::BradleyTerry;
use tch::Tensor;

use super::super::accumulation_kind;
use super::{RewardObjective, ScoredPairs};

impl RewardObjective for BradleyTerry {
    fn loss(&self, _golden: &ScoredPairs<'_>, _human: &ScoredPairs<'_>, all: &ScoredPairs<'_>) -> Tensor {
        bradley_terry(self, all)
    }
}

/// Σ_i w_i · [−(1 − ε) log σ(d_i) − ε log σ(−d_i) + c · (r_i + s_i)²] with d_i = r_i − s_i − m_i, where r_i
/// and s_i are the scores of pair i's chosen and rejected completions; a scalar in fp32 (fp64 for fp64
/// scores).
///
/// With ε = c = m = 0 it is Eq. 15 of Cheng et al. (arXiv 2311.08045). The margin is that of Llama 2 (arXiv
/// 2307.09288, Eq. 2), the centering that of Eisenstein et al. (arXiv 2312.09244), the smoothing a
/// cross-entropy against 1 − ε for the probability σ(d). −log σ(d) is computed as max(−d, 0) + log(1 +
/// e^−|d|), which neither overflows nor loses its gradient at large |d|.
pub fn bradley_terry(settings: &BradleyTerry, pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    let (chosen, rejected) = (pairs.chosen.to_kind(kind), pairs.rejected.to_kind(kind));
    let mut difference = &chosen - &rejected;
    if let Some(margins) = pairs.margins {
        difference -= margins.to_kind(kind);
    }
    let losses = smoothed_nll(&difference, settings.label_smoothing) * pairs.weights.to_kind(kind);
    losses.sum(kind) + centering(settings, pairs)
}

/// Σ_i w_i · c · (r_i + s_i)².
pub(super) fn centering(settings: &BradleyTerry, pairs: &ScoredPairs<'_>) -> Tensor {
    let kind = accumulation_kind(pairs.chosen.kind());
    if settings.center_rewards_coefficient == 0.0 {
        return Tensor::zeros([], (kind, pairs.chosen.device()));
    }
    let sums = pairs.chosen.to_kind(kind) + pairs.rejected.to_kind(kind);
    (sums.square() * pairs.weights.to_kind(kind)).sum(kind) * settings.center_rewards_coefficient
}

/// −(1 − ε) log σ(d) − ε log σ(−d), element by element: the cross-entropy of σ(d) against 1 − ε.
pub(in crate::objective) fn smoothed_nll(difference: &Tensor, label_smoothing: f64) -> Tensor {
    if label_smoothing == 0.0 {
        return -difference.log_sigmoid();
    }
    -(difference.log_sigmoid() * (1.0 - label_smoothing)) - (-difference).log_sigmoid() * label_smoothing
}

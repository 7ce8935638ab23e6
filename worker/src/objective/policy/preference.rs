//! Losses of preferences between completions.
//!
//! Both measure how much more likely a completion is under the policy π than under a fixed reference π_ref,
//! as the log-ratio log π(y|x) − log π_ref(y|x); see [`log_ratio`].

use foil_common::spec::{Pairing, Reduction};
use tch::{Kind, Tensor, no_grad};

use super::super::accumulation_kind;
use super::super::metrics::{Metric, MetricSums};
use super::super::pairing::Sides;
use super::super::reward::smoothed_nll;
use super::{Group, GroupLoss, LossOutput, ScoredCompletion, ascending, members, pairs_of};

const ACCURACIES: &str = "rewards/accuracies";
const MARGINS: &str = "rewards/margins";

/// TRL's metrics, means over pairs: how often the chosen completion's implicit reward β·(log-ratio) is
/// larger, and by how much.
pub(super) const METRICS: [Metric; 2] = [Metric::per_weight(ACCURACIES), Metric::per_weight(MARGINS)];

/// Completions in at least one pair.
pub(super) fn select(completions: &[ScoredCompletion<'_>], pairing: Pairing) -> Vec<usize> {
    ascending(members(&pairs_of(completions, pairing)))
}

/// The loss of a group's pairs: `loss` sums over pairs, given the scores of their chosen and rejected
/// completions, `[pairs]` each. `score` receives a completion's position and its log-probabilities,
/// `[tokens]`. A completion's implicit reward is `beta` times its score.
pub(super) fn group_loss(
    group: &Group<'_>,
    (pairing, beta): (Pairing, f64),
    score: impl Fn(usize, &Tensor) -> Tensor + 'static,
    loss: impl Fn(&Tensor, &Tensor) -> Tensor + 'static,
) -> GroupLoss {
    let (pairs, device) = (group.pairs(pairing), group.device);
    let sides = Sides::new(&pairs, device);
    GroupLoss::new(pairs.len() as f64, move |log_probs| {
        let scores = log_probs.iter().enumerate().map(|(position, log_probs)| score(position, log_probs));
        let scores = Tensor::stack(&scores.collect::<Vec<_>>(), 0); // [completions]
        let (chosen, rejected) = sides.of(&scores);
        let margins = no_grad(|| (&chosen - &rejected).to_kind(Kind::Double) * beta);
        let accuracies = margins.gt(0.0).sum(Kind::Double);
        let metrics = [(ACCURACIES, &accuracies), (MARGINS, &margins.sum(Kind::Double))];
        LossOutput { loss: loss(&chosen, &rejected), metrics: MetricSums::from_scalars(metrics, device) }
    })
}

/// Scores completions by their log-ratios to the reference.
pub(super) fn log_ratios(
    group: &Group<'_>,
    reduction: Reduction,
) -> impl Fn(usize, &Tensor) -> Tensor + 'static {
    let reference = group.ref_log_probs();
    move |position, log_probs| log_ratio(log_probs, &reference[position], reduction)
}

/// The log-ratio of one completion, a scalar: Σ over its tokens of log π − log π_ref, or their mean.
///
/// Both tensors hold the completion's log-probabilities per token, `[tokens]`; the reference has no gradient.
/// A completion without tokens has log-ratio 0.
pub fn log_ratio(policy: &Tensor, reference: &Tensor, reduction: Reduction) -> Tensor {
    let kind = accumulation_kind(policy.kind());
    let sum = (policy.to_kind(kind) - reference.to_kind(kind)).sum(kind);
    match reduction {
        Reduction::Sum => sum,
        Reduction::Mean => sum / policy.size()[0].max(1) as f64,
    }
}

/// Direct preference optimization (Rafailov et al., arXiv 2305.18290, Eq. 7): Σ over pairs of −(1 − ε) log
/// σ(β·Δ) − ε log σ(−β·Δ), where Δ is the chosen completion's log-ratio minus the rejected one's.
///
/// `chosen` and `rejected` are log-ratios, `[pairs]`; the result is a scalar in fp32 (fp64 for fp64 ratios).
/// ε is the probability that a preference is reversed (Mitchell, "cDPO", Eq. 3). Where policy and reference
/// agree, every pair's loss is log 2, whatever β and ε.
pub fn dpo_loss(chosen: &Tensor, rejected: &Tensor, beta: f64, label_smoothing: f64) -> Tensor {
    let delta = difference(chosen, rejected);
    smoothed_nll(&(delta * beta), label_smoothing).sum(accumulation_kind(chosen.kind()))
}

/// Identity preference optimization (Azar et al., arXiv 2310.12036, Eq. 17): Σ over pairs of (Δ − 1 / (2β))²,
/// where β is the paper's τ. Arguments and result are those of [`dpo_loss`].
///
/// The paper does not specify how a log-ratio aggregates tokens. TRL takes their mean, as its authors
/// confirmed; OpenRLHF takes their sum, with which the meaning of β depends on the completions' lengths.
pub fn ipo_loss(chosen: &Tensor, rejected: &Tensor, beta: f64) -> Tensor {
    let apart = difference(chosen, rejected) - 1.0 / (2.0 * beta);
    apart.square().sum(accumulation_kind(chosen.kind()))
}

fn difference(chosen: &Tensor, rejected: &Tensor) -> Tensor {
    let kind = accumulation_kind(chosen.kind());
    chosen.to_kind(kind) - rejected.to_kind(kind)
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Reduction;
    use tch::{Device, Kind, Tensor};

    use super::{dpo_loss, ipo_loss, log_ratio};

    #[test]
    fn at_the_reference_every_pair_loses_log_2() {
        let log_probs = Tensor::randn([7], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let same = log_ratio(&log_probs, &log_probs.detach(), Reduction::Sum).view(1);
        let ratios = Tensor::cat(&[&same, &same, &same], 0);
        for (beta, label_smoothing) in [(0.1, 0.0), (2.0, 0.3)] {
            let loss = dpo_loss(&ratios, &ratios, beta, label_smoothing).double_value(&[]);
            assert!((loss - 3.0 * std::f64::consts::LN_2).abs() < 1e-12);
        }
        assert!((ipo_loss(&ratios, &ratios, 0.1).double_value(&[]) - 3.0 * 25.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_summed_or_averaged() {
        let policy = Tensor::from_slice(&[-1.0_f32, -2.0, -0.5, -0.5]);
        let reference = Tensor::from_slice(&[-1.5_f32, -2.0, -1.5, -1.0]);
        assert_eq!(log_ratio(&policy, &reference, Reduction::Sum).double_value(&[]), 2.0);
        assert_eq!(log_ratio(&policy, &reference, Reduction::Mean).double_value(&[]), 0.5);
        let none = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        assert_eq!(log_ratio(&none, &none, Reduction::Mean).double_value(&[]), 0.0);
    }

    #[test]
    fn gradients_follow_the_formula() {
        // ∂/∂Δ of −log σ(βΔ) is −β σ(−βΔ); of (Δ − 1/2β)² it is 2 (Δ − 1/2β).
        let beta = 0.3;
        let deltas = [-4.0_f64, 0.0, 0.7, 30.0];
        let chosen = Tensor::from_slice(&deltas).set_requires_grad(true);
        let rejected = Tensor::zeros_like(&chosen).set_requires_grad(true);
        let gradients = |loss: Tensor| Tensor::run_backward(&[&loss], &[&chosen, &rejected], false, false);
        let sigmoid = gradients(dpo_loss(&chosen, &rejected, beta, 0.0));
        let squared = gradients(ipo_loss(&chosen, &rejected, beta));
        for (pair, delta) in deltas.into_iter().enumerate() {
            let at = [pair as i64];
            let expected = -beta / (1.0 + (beta * delta).exp());
            assert!((sigmoid[0].double_value(&at) - expected).abs() < 1e-12);
            assert!((sigmoid[1].double_value(&at) + expected).abs() < 1e-12);
            assert!((squared[0].double_value(&at) - 2.0 * (delta - 0.5 / beta)).abs() < 1e-12);
        }
    }
}

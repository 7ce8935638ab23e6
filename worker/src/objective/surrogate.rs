//! Clipped surrogates of policy gradients.
//!
//! The policy moves along the advantages, weighted by the ratio of its own probabilities to those of the
//! policy that generated the completions. The ratio is clipped as in PPO (Schulman et al., arXiv 1707.06347,
//! Eq. 7), since several steps pass between generation and training.

use foil_common::spec::ImportanceSampling;
use tch::{Tensor, no_grad};

use super::accumulation_kind;

/// One prompt's completions for a policy gradient. All three fields are indexed by completion.
#[derive(Debug, Clone, Copy)]
pub struct Rollouts<'a> {
    /// Log-probabilities per token under the policy in training, `[tokens]` each.
    pub log_probs: &'a [Tensor],
    /// Log-probabilities under the policy that generated the completions, without a gradient.
    pub old_log_probs: &'a [Tensor],
    pub advantages: &'a [f64],
}

/// A clipped surrogate loss. Both fields are scalars.
#[derive(Debug)]
pub struct SurrogateLoss {
    pub loss: Tensor,
    /// The number of clipped completions; each counts by the fraction of its ratios that are clipped.
    /// Without a gradient.
    pub clipped: Tensor,
}

/// The denominator of a sum over a completion's tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denominator {
    /// The number of its tokens.
    Length,
    /// The same number for every completion.
    Constant(f64),
}

/// Σ over completions and their tokens of −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) / `denominator`, where A is the
/// completion's advantage and ρ is π / π_old of the token or, depending on `level`, its geometric mean over
/// the completion (Zheng et al., arXiv 2507.18071, Eq. 7). In fp32 (fp64 for fp64 log-probabilities).
pub fn token_surrogate(
    rollouts: &Rollouts<'_>,
    epsilon: f64,
    level: ImportanceSampling,
    denominator: Denominator,
) -> SurrogateLoss {
    let (log_probs, old) = (flat(rollouts.log_probs), flat(rollouts.old_log_probs)); // [tokens]
    let lengths = lengths(rollouts.log_probs);
    let log_ratios = &log_probs - old;
    let log_ratios = match level {
        ImportanceSampling::Token => log_ratios,
        ImportanceSampling::Sequence => token_means(&log_ratios, &lengths),
    };
    let advantages = per_token(&lengths, rollouts.advantages.iter().copied(), &log_probs);
    let weights = token_weights(&lengths, denominator, &log_probs);
    clipped_surrogate(&log_ratios.exp(), &advantages, &weights, epsilon)
}

/// Σ over completions of −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A), with ρ = π(y|x) / π_old(y|x) of the whole
/// completion. In fp32 (fp64 for fp64 log-probabilities).
pub fn sequence_surrogate(rollouts: &Rollouts<'_>, epsilon: f64) -> SurrogateLoss {
    let sums = |completions: &[Tensor]| {
        let sum = |completion: &Tensor| completion.sum(accumulation_kind(completion.kind()));
        Tensor::stack(&completions.iter().map(sum).collect::<Vec<_>>(), 0)
    };
    let log_ratios = sums(rollouts.log_probs) - sums(rollouts.old_log_probs); // [completions]
    let advantages =
        per_token(&vec![1; rollouts.advantages.len()], rollouts.advantages.iter().copied(), &log_ratios);
    clipped_surrogate(&log_ratios.exp(), &advantages, &log_ratios.ones_like(), epsilon)
}

/// −Σ w · min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) of ratios, advantages and weights of one shape.
fn clipped_surrogate(ratio: &Tensor, advantages: &Tensor, weights: &Tensor, epsilon: f64) -> SurrogateLoss {
    let unclipped = ratio * advantages;
    let clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantages;
    let is_clipped =
        no_grad(|| (clipped.lt_tensor(&unclipped).to_kind(weights.kind()) * weights).sum(weights.kind()));
    SurrogateLoss { loss: -(unclipped.minimum(&clipped) * weights).sum(weights.kind()), clipped: is_clipped }
}

/// Σ over completions and their tokens of the estimate π_ref/π − log(π_ref/π) − 1 of KL(π ‖ π_ref), which is
/// never negative (Schulman's k₃; arXiv 2402.03300, Eq. 4), over `denominator`. Log-probabilities are per
/// token, `[tokens]` each; the reference has no gradient.
pub fn kl_estimate(log_probs: &[Tensor], ref_log_probs: &[Tensor], denominator: Denominator) -> Tensor {
    let (lengths, log_probs) = (lengths(log_probs), flat(log_probs)); // [tokens]
    let log_ratio = flat(ref_log_probs) - &log_probs;
    let estimates = log_ratio.exp() - log_ratio - 1.0;
    (estimates * token_weights(&lengths, denominator, &log_probs)).sum(log_probs.kind())
}

/// All completions' tokens concatenated, `[tokens]`.
fn flat(completions: &[Tensor]) -> Tensor {
    let all = Tensor::cat(completions, 0);
    all.to_kind(accumulation_kind(all.kind()))
}

fn lengths(completions: &[Tensor]) -> Vec<i64> {
    completions.iter().map(|completion| completion.size()[0]).collect()
}

/// `[tokens]`: 1 / the denominator of each token's completion.
fn token_weights(lengths: &[i64], denominator: Denominator, like: &Tensor) -> Tensor {
    let weight = |&length: &i64| match denominator {
        Denominator::Length => 1.0 / length.max(1) as f64,
        Denominator::Constant(constant) => 1.0 / constant,
    };
    per_token(lengths, lengths.iter().map(weight), like)
}

/// `[tokens]`: the mean over its completion, at each token.
fn token_means(per_token: &Tensor, lengths: &[i64]) -> Tensor {
    let means = per_token.split_with_sizes(lengths, 0).into_iter().zip(lengths);
    let means = means.map(|(tokens, &length)| tokens.mean(tokens.kind()).expand([length], true));
    Tensor::cat(&means.collect::<Vec<_>>(), 0)
}

/// `[tokens]`: each completion's value, repeated for each of its tokens, with the kind and device of `like`.
fn per_token(lengths: &[i64], values: impl Iterator<Item = f64>, like: &Tensor) -> Tensor {
    // These values travel with a kernel's launch: a copy from the host would wait for the device.
    let options = (like.kind(), like.device());
    let repeated = lengths.iter().zip(values).map(|(&length, value)| Tensor::full([length], value, options));
    Tensor::cat(&repeated.collect::<Vec<_>>(), 0)
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use foil_common::spec::ImportanceSampling;

    use super::{Denominator, Rollouts, SurrogateLoss, kl_estimate, sequence_surrogate};

    fn token_surrogate(rollouts: &Rollouts<'_>, epsilon: f64) -> SurrogateLoss {
        super::token_surrogate(rollouts, epsilon, ImportanceSampling::Token, Denominator::Length)
    }

    fn completions(numbers: [&[f64]; 3]) -> [Tensor; 3] {
        numbers.map(|tokens| Tensor::from_slice(tokens).set_requires_grad(true))
    }

    #[test]
    fn where_policy_and_old_policy_agree_the_gradient_is_reinforces() {
        let policy = completions([&[-1.0, -2.0], &[-0.5], &[]]);
        let old: Vec<Tensor> = policy.iter().map(Tensor::detach).collect();
        let rollouts = Rollouts { log_probs: &policy, old_log_probs: &old, advantages: &[1.0, -3.0, 2.0] };
        let gradients = |loss: &Tensor| Tensor::run_backward(&[loss], &policy, false, false);
        let (tokens, sequences) =
            (token_surrogate(&rollouts, 0.2).loss, sequence_surrogate(&rollouts, 0.2).loss);
        assert!((tokens.double_value(&[]) - 2.0).abs() < 1e-12, "the third has no tokens to average");
        assert!(sequences.double_value(&[]).abs() < 1e-12);
        // −A / length for each token; −A for each token.
        let expected = [(tokens, [-0.5, 3.0]), (sequences, [-1.0, 3.0])];
        for (loss, [first, second]) in expected {
            let found = gradients(&loss);
            assert_eq!(Vec::<f64>::try_from(&found[0]).unwrap(), [first, first]);
            assert_eq!(Vec::<f64>::try_from(&found[1]).unwrap(), [second]);
        }
    }

    #[test]
    fn a_ratio_that_has_moved_far_enough_has_no_gradient() {
        let policy = completions([&[0.5], &[0.5], &[-0.5]]);
        let zeros = completions([&[0.0], &[0.0], &[0.0]]).map(|tokens| tokens.detach());
        let rollouts = Rollouts { log_probs: &policy, old_log_probs: &zeros, advantages: &[1.0, -1.0, 1.0] };
        let surrogate = token_surrogate(&rollouts, 0.2);
        assert_eq!(surrogate.clipped.double_value(&[]), 1.0);
        assert_eq!(sequence_surrogate(&rollouts, 0.2).clipped.double_value(&[]), 1.0);
        let found = Tensor::run_backward(&[surrogate.loss], &policy, false, false);
        let gradient: Vec<f64> = found.iter().map(|tokens| tokens.double_value(&[0])).collect();
        // A positive advantage with a ratio that is already up is clipped. If the advantage and the ratio
        // have opposite directions, the surrogate applies.
        assert_eq!(gradient[0], 0.0);
        assert!((gradient[1] - 0.5f64.exp()).abs() < 1e-12);
        assert!((gradient[2] + (-0.5f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn the_kl_term_is_zero_at_the_reference_and_positive_elsewhere() {
        let policy = completions([&[-1.0, -2.0], &[-0.5], &[-3.0]]);
        let same: Vec<Tensor> = policy.iter().map(Tensor::detach).collect();
        assert_eq!(kl_estimate(&policy, &same, Denominator::Length).double_value(&[]), 0.0);
        let moved: Vec<Tensor> = same.iter().map(|tokens| tokens + 0.1).collect();
        let expected = 3.0 * (0.1f64.exp() - 0.1 - 1.0);
        assert!(
            (kl_estimate(&policy, &moved, Denominator::Length).double_value(&[]) - expected).abs() < 1e-12
        );
    }

    #[test]
    fn a_sequence_ratio_is_the_geometric_mean_and_a_constant_counts_every_token() {
        let policy = completions([&[-1.0, -2.0], &[-0.5], &[]]);
        let old = completions([&[-1.3, -1.9], &[-0.5], &[]]).map(|tokens| tokens.detach());
        let rollouts = Rollouts { log_probs: &policy, old_log_probs: &old, advantages: &[1.0, -3.0, 2.0] };
        let surrogate =
            super::token_surrogate(&rollouts, 0.2, ImportanceSampling::Sequence, Denominator::Constant(4.0));
        // Log-ratios .3 and −.1: a mean of .1.
        let ratio = 0.1f64.exp();
        let expected = -(2.0 * ratio - 3.0) / 4.0;
        assert!((surrogate.loss.double_value(&[]) - expected).abs() < 1e-12);
        let gradients = Tensor::run_backward(&[surrogate.loss], &policy, false, false);
        assert!((gradients[0].double_value(&[0]) + ratio / 4.0).abs() < 1e-12);
        assert!((gradients[0].double_value(&[1]) + ratio / 4.0).abs() < 1e-12);
    }
}

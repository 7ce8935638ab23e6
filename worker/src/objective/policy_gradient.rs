//! Policy gradients over groups of answers to one prompt, by their rewards alone: no value model.
//!
//! An answer's advantage is its reward against the others' of its group; the policy follows it by the ratio of its own
//! probabilities to those of the policy that drew the answers, clipped as in PPO (Schulman et al., arXiv 1707.06347,
//! Eq. 7), since several steps go by between drawing and training.

use tch::{Tensor, no_grad};

use super::accumulation_kind;

/// Keeps equal rewards from dividing by nothing; TRL's value.
const DEVIATION_FLOOR: f64 = 1e-4;

/// Advantages of GRPO (Shao et al., arXiv 2402.03300, §4.1.2): rewards less their mean, over their standard deviation
/// (Bessel's, plus 1e-4). All 0 for rewards that are equal, or alone.
pub fn group_advantages(rewards: &[f64]) -> Vec<f64> {
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let scatter = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>();
    let deviation = (scatter / (count - 1.0).max(1.0)).sqrt();
    rewards.iter().map(|reward| (reward - mean) / (deviation + DEVIATION_FLOOR)).collect()
}

/// Advantages of RLOO (Ahmadian et al., arXiv 2402.14740, §2.3): each reward less the mean of the *others*. 0 for one
/// that is alone.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let others = (rewards.len() as f64 - 1.0).max(1.0);
    let sum = rewards.iter().sum::<f64>();
    let alone = rewards.len() < 2;
    rewards.iter().map(|reward| if alone { 0.0 } else { reward - (sum - reward) / others }).collect()
}

/// One prompt's answers as a policy gradient sees them; the three run over the answers.
#[derive(Debug, Clone, Copy)]
pub struct Rollouts<'a> {
    /// Log-probabilities of the policy in training, token by token, `[tokens]` each.
    pub policy: &'a [Tensor],
    /// Those of the policy that drew the answers, without a gradient.
    pub sampler: &'a [Tensor],
    pub advantages: &'a [f64],
}

/// What following the rewards costs; both scalars.
#[derive(Debug)]
pub struct Followed {
    pub loss: Tensor,
    /// Answers whose ratio is clipped; an answer counts as much as the share of its ratios that are. Without a gradient.
    pub clipped: Tensor,
}

/// Group relative policy optimisation without its KL term (arXiv 2402.03300, Eq. 3): Σ over answers of the mean over
/// their tokens of −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A), with ρ = π / π_sampler of the token and A the answer's advantage.
/// In fp32 (fp64 for fp64 log-probabilities).
///
/// The sum over answers is what the trainer divides by the answers of the global batch, those without tokens counted.
pub fn grpo(answers: &Rollouts<'_>, clip_ratio: f64) -> Followed {
    let (policy, sampler) = (flat(answers.policy), flat(answers.sampler)); // [tokens]
    let lengths = lengths(answers.policy);
    let advantages = per_token(&lengths, answers.advantages.iter().copied(), &policy);
    follow(&(&policy - sampler).exp(), &advantages, &mean_weights(&lengths, &policy), clip_ratio)
}

/// REINFORCE with a leave-one-out baseline, clipped as TRL does it: Σ over answers of
/// −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A), with ρ = π(y|x) / π_sampler(y|x) of the whole answer. In fp32 (fp64 for fp64
/// log-probabilities).
pub fn rloo(answers: &Rollouts<'_>, clip_ratio: f64) -> Followed {
    let sums = |answers: &[Tensor]| {
        let sum = |answer: &Tensor| answer.sum(accumulation_kind(answer.kind()));
        Tensor::stack(&answers.iter().map(sum).collect::<Vec<_>>(), 0)
    };
    let log_ratios = sums(answers.policy) - sums(answers.sampler); // [answers]
    let advantages = Tensor::from_slice(answers.advantages).to_kind(log_ratios.kind());
    let advantages = advantages.to_device(log_ratios.device());
    follow(&log_ratios.exp(), &advantages, &log_ratios.ones_like(), clip_ratio)
}

/// −Σ w · min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) of ratios, advantages and weights of one shape.
fn follow(ratio: &Tensor, advantages: &Tensor, weights: &Tensor, clip_ratio: f64) -> Followed {
    let free = ratio * advantages;
    let held = ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio) * advantages;
    let clipped = no_grad(|| (held.lt_tensor(&free).to_kind(weights.kind()) * weights).sum(weights.kind()));
    Followed { loss: -(free.minimum(&held) * weights).sum(weights.kind()), clipped }
}

/// Σ over answers of the mean over their tokens of the estimate π_ref/π − log(π_ref/π) − 1 of KL(π ‖ π_ref), which is
/// never negative (Schulman's k₃; arXiv 2402.03300, Eq. 4). Log-probabilities token by token, `[tokens]` each; the
/// reference's carry no gradient.
pub fn kl_term(policy: &[Tensor], reference: &[Tensor]) -> Tensor {
    let (lengths, policy) = (lengths(policy), flat(policy)); // [tokens]
    let log_ratio = flat(reference) - &policy;
    let estimates = log_ratio.exp() - log_ratio - 1.0;
    (estimates * mean_weights(&lengths, &policy)).sum(policy.kind())
}

/// Rewards less `weight` · Σ over an answer's tokens of log π_sampler − log π_ref: how RLOO pays for moving away from the
/// reference, since its baseline has to see the price. Log-probabilities run over the answers, `[tokens]` each.
pub fn penalised_rewards(
    rewards: &[f64],
    sampler: &[impl AsRef<[f32]>],
    reference: &[impl AsRef<[f32]>],
    weight: f64,
) -> Vec<f64> {
    let sum = |log_probs: &[f32]| log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>();
    let divergences = sampler.iter().zip(reference).map(|(s, r)| sum(s.as_ref()) - sum(r.as_ref()));
    rewards.iter().zip(divergences).map(|(reward, divergence)| reward - weight * divergence).collect()
}

/// All answers' tokens one after another, `[tokens]`.
fn flat(answers: &[Tensor]) -> Tensor {
    let all = Tensor::cat(answers, 0);
    all.to_kind(accumulation_kind(all.kind()))
}

fn lengths(answers: &[Tensor]) -> Vec<i64> {
    answers.iter().map(|answer| answer.size()[0]).collect()
}

/// `[tokens]`: 1 / the length of each token's answer, so that a weighted sum is a sum of means.
fn mean_weights(lengths: &[i64], like: &Tensor) -> Tensor {
    per_token(lengths, lengths.iter().map(|&length| 1.0 / length.max(1) as f64), like)
}

/// `[tokens]`: each answer's value, repeated for each of its tokens; kind and device of `like`.
fn per_token(lengths: &[i64], values: impl Iterator<Item = f64>, like: &Tensor) -> Tensor {
    let repeated: Vec<f64> =
        lengths.iter().zip(values).flat_map(|(&length, value)| vec![value; length as usize]).collect();
    Tensor::from_slice(&repeated).to_kind(like.kind()).to_device(like.device())
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::{Rollouts, group_advantages, grpo, kl_term, leave_one_out, penalised_rewards, rloo};

    fn answers(numbers: [&[f64]; 3]) -> [Tensor; 3] {
        numbers.map(|tokens| Tensor::from_slice(tokens).set_requires_grad(true))
    }

    #[test]
    fn advantages_compare_within_the_group() {
        let rewards = [1.0, 2.0, 6.0];
        let deviation = 7f64.sqrt() + 1e-4;
        for (found, expected) in group_advantages(&rewards).iter().zip([-2.0, -1.0, 3.0]) {
            assert!((found - expected / deviation).abs() < 1e-12);
        }
        assert_eq!(leave_one_out(&rewards), [-3.0, -1.5, 4.5]);
        for advantages in [group_advantages, leave_one_out] {
            assert_eq!(advantages(&[2.5, 2.5]), [0.0, 0.0]);
            assert_eq!(advantages(&[2.5]), [0.0]);
            assert_eq!(advantages(&[]), [] as [f64; 0]);
        }
    }

    #[test]
    fn where_policy_and_sampler_agree_the_gradient_is_reinforces() {
        let policy = answers([&[-1.0, -2.0], &[-0.5], &[]]);
        let sampler: Vec<Tensor> = policy.iter().map(Tensor::detach).collect();
        let rollouts = Rollouts { policy: &policy, sampler: &sampler, advantages: &[1.0, -3.0, 2.0] };
        let gradients = |loss: &Tensor| Tensor::run_backward(&[loss], &policy, false, false);
        let (tokens, sequences) = (grpo(&rollouts, 0.2).loss, rloo(&rollouts, 0.2).loss);
        assert!((tokens.double_value(&[]) - 2.0).abs() < 1e-12, "the third has no token to be means of");
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
    fn a_ratio_that_has_gone_far_enough_is_no_longer_followed() {
        let policy = answers([&[0.5], &[0.5], &[-0.5]]);
        let zeros = answers([&[0.0], &[0.0], &[0.0]]).map(|tokens| tokens.detach());
        let rollouts = Rollouts { policy: &policy, sampler: &zeros, advantages: &[1.0, -1.0, 1.0] };
        let followed = grpo(&rollouts, 0.2);
        assert_eq!(followed.clipped.double_value(&[]), 1.0);
        assert_eq!(rloo(&rollouts, 0.2).clipped.double_value(&[]), 1.0);
        let found = Tensor::run_backward(&[followed.loss], &policy, false, false);
        let gradient: Vec<f64> = found.iter().map(|tokens| tokens.double_value(&[0])).collect();
        // Up, and already up: clipped. Down, though it has gone up: followed. Up, though it has gone down: followed.
        assert_eq!(gradient[0], 0.0);
        assert!((gradient[1] - 0.5f64.exp()).abs() < 1e-12);
        assert!((gradient[2] + (-0.5f64).exp()).abs() < 1e-12);
    }

    #[test]
    fn the_kl_term_is_zero_at_the_reference_and_positive_elsewhere() {
        let policy = answers([&[-1.0, -2.0], &[-0.5], &[-3.0]]);
        let same: Vec<Tensor> = policy.iter().map(Tensor::detach).collect();
        assert_eq!(kl_term(&policy, &same).double_value(&[]), 0.0);
        let moved: Vec<Tensor> = same.iter().map(|tokens| tokens + 0.1).collect();
        let expected = 3.0 * (0.1f64.exp() - 0.1 - 1.0);
        assert!((kl_term(&policy, &moved).double_value(&[]) - expected).abs() < 1e-12);
    }

    #[test]
    fn distance_from_the_reference_is_paid_out_of_the_reward() {
        let (sampler, reference) = (vec![vec![-1.0, -1.0], vec![-2.0]], vec![vec![-2.0, -1.5], vec![-2.0]]);
        assert_eq!(penalised_rewards(&[1.0, 1.0], &sampler, &reference, 0.5), [0.25, 1.0]);
    }
}

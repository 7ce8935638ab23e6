//! Advantages of a prompt's completions relative to each other, computed from rewards without a value model.

/// Avoids a division by zero if all rewards are equal; TRL's value.
const DEVIATION_FLOOR: f64 = 1e-4;

/// Advantages of GRPO (Shao et al., arXiv 2402.03300, §4.1.2): rewards minus their mean, divided by their
/// standard deviation (with Bessel's correction, plus 1e-4). 0 if all rewards are equal or there is only one.
pub fn group_advantages(rewards: &[f64]) -> Vec<f64> {
    let centered = centered(rewards);
    let scatter = centered.iter().map(|advantage| advantage.powi(2)).sum::<f64>();
    let deviation = (scatter / (rewards.len() as f64 - 1.0).max(1.0)).sqrt();
    centered.iter().map(|advantage| advantage / (deviation + DEVIATION_FLOOR)).collect()
}

/// Advantages of Dr. GRPO (Liu et al., arXiv 2503.20783, Eq. 5): rewards minus their mean.
pub fn centered(rewards: &[f64]) -> Vec<f64> {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    rewards.iter().map(|reward| reward - mean).collect()
}

/// Advantages of RLOO (Ahmadian et al., arXiv 2402.14740, §2.3): each reward minus the mean of the *others*.
/// 0 for a single reward.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let others = (rewards.len() as f64 - 1.0).max(1.0);
    let sum = rewards.iter().sum::<f64>();
    let is_single = rewards.len() < 2;
    rewards.iter().map(|reward| if is_single { 0.0 } else { reward - (sum - reward) / others }).collect()
}

/// Rewards minus `beta` · Σ over a completion's tokens of log π_old − log π_ref. This is RLOO's KL penalty,
/// which is part of the reward from which baselines are computed. Log-probabilities are `[tokens]` for each
/// completion.
pub fn penalized_rewards(
    rewards: &[f64],
    old_log_probs: &[impl AsRef<[f32]>],
    ref_log_probs: &[impl AsRef<[f32]>],
    beta: f64,
) -> Vec<f64> {
    let sum = |log_probs: &[f32]| log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum::<f64>();
    let divergences = old_log_probs
        .iter()
        .zip(ref_log_probs)
        .map(|(old, reference)| sum(old.as_ref()) - sum(reference.as_ref()));
    rewards.iter().zip(divergences).map(|(reward, divergence)| reward - beta * divergence).collect()
}

#[cfg(test)]
mod tests {
    use super::{centered, group_advantages, leave_one_out, penalized_rewards};

    #[test]
    fn advantages_compare_within_the_group() {
        let rewards = [1.0, 2.0, 6.0];
        let deviation = 7f64.sqrt() + 1e-4;
        for (found, expected) in group_advantages(&rewards).iter().zip([-2.0, -1.0, 3.0]) {
            assert!((found - expected / deviation).abs() < 1e-12);
        }
        assert_eq!(centered(&rewards), [-2.0, -1.0, 3.0]);
        assert_eq!(leave_one_out(&rewards), [-3.0, -1.5, 4.5]);
        for advantages in [centered, group_advantages, leave_one_out] {
            assert_eq!(advantages(&[2.5, 2.5]), [0.0, 0.0]);
            assert_eq!(advantages(&[2.5]), [0.0]);
            assert_eq!(advantages(&[]), [] as [f64; 0]);
        }
    }

    #[test]
    fn divergence_from_the_reference_is_subtracted_from_the_reward() {
        let (old, reference) = (vec![vec![-1.0, -1.0], vec![-2.0]], vec![vec![-2.0, -1.5], vec![-2.0]]);
        assert_eq!(penalized_rewards(&[1.0, 1.0], &old, &reference, 0.5), [0.25, 1.0]);
    }
}

//! Pairs of completions to one prompt, by their rewards.

use std::cmp::Ordering;

use foil_common::spec::Pairing;
use tch::Tensor;

/// One completion preferred to another to the same prompt, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference {
    pub chosen: usize,
    pub rejected: usize,
}

/// The pairs that `pairing` makes of one prompt's completions.
///
/// `rewards` and `texts` run over the completions. The chosen one's reward is higher than the other's: ties
/// make no pair. A blank completion (nothing but white space) is never chosen, though it may be rejected. A
/// completion without a finite reward takes no part. Equal rewards keep the order of their completions.
///
/// - `BestWorst`: the best against the worst; one pair or none.
/// - `TopBottom(k)`: the best against the worst, the second best against the second worst, …; at most k
///   pairs, fewer where the two ends meet.
/// - `All`: every completion against every worse one.
pub fn pairs(rewards: &[f64], texts: &[impl AsRef<str>], pairing: Pairing) -> Vec<Preference> {
    let finite: Vec<usize> =
        (0..rewards.len().min(texts.len())).filter(|&index| rewards[index].is_finite()).collect();
    let by_reward = |a: usize, b: usize| rewards[a].total_cmp(&rewards[b]);
    let best =
        sorted(finite.iter().copied().filter(|&a| !is_blank(texts[a].as_ref())), |a, b| by_reward(b, a));
    let worst = sorted(finite.iter().copied(), by_reward);
    let candidates: Vec<(usize, usize)> = match pairing {
        Pairing::BestWorst => best.into_iter().zip(worst).take(1).collect(),
        Pairing::TopBottom(k) => best.into_iter().zip(worst).take(k).collect(),
        Pairing::All => {
            best.iter().flat_map(|&chosen| worst.iter().map(move |&rejected| (chosen, rejected))).collect()
        }
    };
    let preferences = candidates.into_iter().map(|(chosen, rejected)| Preference { chosen, rejected });
    preferences.filter(|pair| rewards[pair.chosen] > rewards[pair.rejected]).collect()
}

/// From a value for each completion, `[completions]`, those of the pairs' two sides: chosen and rejected,
/// `[pairs]` each.
///
/// # Panics
/// An index beyond the completions.
pub fn sides(values: &Tensor, pairs: &[Preference]) -> (Tensor, Tensor) {
    let side = |index: fn(&Preference) -> usize| {
        let indices: Vec<i64> = pairs.iter().map(|pair| index(pair) as i64).collect();
        values.index_select(0, &Tensor::from_slice(&indices).to_device(values.device()))
    };
    (side(|pair| pair.chosen), side(|pair| pair.rejected))
}

/// Whether a completion is nothing but white space.
pub fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

fn sorted(indices: impl Iterator<Item = usize>, order: impl Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut indices: Vec<usize> = indices.collect();
    indices.sort_by(|&a, &b| order(a, b));
    indices
}

#[cfg(test)]
mod tests {
    use foil_common::spec::Pairing;
    use proptest::prelude::*;

    use super::{Preference, pairs};

    fn indices(rewards: &[f64], texts: &[&str], pairing: Pairing) -> Vec<(usize, usize)> {
        let found = pairs(rewards, texts, pairing);
        found.into_iter().map(|Preference { chosen, rejected }| (chosen, rejected)).collect()
    }

    #[test]
    fn the_best_meets_the_worst() {
        let texts = ["a", "b", "c", "d"];
        assert_eq!(indices(&[1.0, 3.0, 0.0, 2.0], &texts, Pairing::BestWorst), [(1, 2)]);
        let equals = indices(&[3.0, 3.0, 0.0, 0.0], &texts, Pairing::BestWorst);
        assert_eq!(equals, [(0, 2)], "the first of equals on either side");
        assert_eq!(indices(&[1.0], &["a"], Pairing::BestWorst), []);
    }

    #[test]
    fn the_two_ends_meet_inwards() {
        let (rewards, texts) = ([4.0, 1.0, 3.0, 2.0, 0.0], ["a", "b", "c", "d", "e"]);
        assert_eq!(indices(&rewards, &texts, Pairing::TopBottom(1)), [(0, 4)]);
        assert_eq!(indices(&rewards, &texts, Pairing::TopBottom(2)), [(0, 4), (2, 1)]);
        assert_eq!(indices(&rewards, &texts, Pairing::TopBottom(5)), [(0, 4), (2, 1)]);
    }

    #[test]
    fn all_completions_meet_all_worse_ones() {
        let found = indices(&[1.0, 2.0, 0.0, 2.0], &["a", "b", "c", "d"], Pairing::All);
        assert_eq!(found, [(1, 2), (1, 0), (3, 2), (3, 0), (0, 2)]);
    }

    #[test]
    fn ties_blanks_and_nan_make_no_winner() {
        for pairing in [Pairing::BestWorst, Pairing::TopBottom(3), Pairing::All] {
            assert_eq!(indices(&[1.0, 1.0], &["a", "b"], pairing), []);
            assert_eq!(indices(&[9.0, 1.0], &[" \n", "b"], pairing), [], "a blank would win");
            assert_eq!(indices(&[0.0, 1.0], &["", "b"], pairing), [(1, 0)], "a blank may lose");
            assert_eq!(indices(&[f64::NAN, 1.0, f64::INFINITY], &["a", "b", "c"], pairing), []);
        }
    }

    proptest! {
        #[test]
        fn preferences_follow_rewards_and_use_a_completion_once(
            rewards in prop::collection::vec((-3i32..3).prop_map(f64::from), 0..9), k in 1usize..6,
        ) {
            let texts = vec!["x"; rewards.len()];
            let all = indices(&rewards, &texts, Pairing::All);
            prop_assert!(all.iter().all(|&(chosen, rejected)| rewards[chosen] > rewards[rejected]));
            let strict = rewards.iter().flat_map(|a| rewards.iter().filter(move |b| a > *b)).count();
            prop_assert_eq!(all.len(), strict);
            let matched = indices(&rewards, &texts, Pairing::TopBottom(k));
            prop_assert!(matched.len() <= k && matched.iter().all(|pair| all.contains(pair)));
            let mut used: Vec<usize> = matched.iter().flat_map(|&(a, b)| [a, b]).collect();
            used.sort_unstable();
            let before = used.len();
            used.dedup();
            prop_assert_eq!(used.len(), before, "a completion is in two pairs");
            let ends = indices(&rewards, &texts, Pairing::TopBottom(1));
            prop_assert_eq!(indices(&rewards, &texts, Pairing::BestWorst), ends);
        }
    }
}

//! Selects the completions of a prompt that training reads, by their rewards: pairs, the best one, and the
//! role that a policy method gives to each.

use std::cmp::Ordering;

use crate::spec::{Method, Pairing};

/// One completion preferred to another to the same prompt, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preference {
    pub chosen: usize,
    pub rejected: usize,
}

/// A completion with its reward.
#[derive(Debug, Clone, Copy)]
pub struct ScoredCompletion<'a> {
    pub text: &'a str,
    /// The number of its tokens.
    pub tokens: usize,
    pub reward: f64,
}

/// The role of a completion in a policy method's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The loss does not read it.
    Unused,
    /// The loss reads it, but neither prefers it to all others that it reads nor prefers all of those to it.
    Used,
    /// The best one, or the preferred one of its pairs.
    Chosen,
    /// The other one of its pairs.
    Rejected,
}

/// The role of each of a prompt's completions in the loss of `method`.
pub fn parts(method: &Method, completions: &[ScoredCompletion<'_>]) -> Vec<Part> {
    let (rewards, texts) = comparable(completions);
    let best = || best_of(&rewards, &texts);
    match method {
        Method::Rejection(_) => of_pairs(completions.len(), &[], best()),
        Method::Rrhf(_) => of_pairs(completions.len(), &pairs(&rewards, &texts, Pairing::All), best()),
        Method::Dpo(settings) => {
            of_pairs(completions.len(), &pairs(&rewards, &texts, settings.pairing), None)
        }
        Method::Ipo(settings) => {
            of_pairs(completions.len(), &pairs(&rewards, &texts, settings.pairing), None)
        }
        Method::Simpo(settings) => {
            of_pairs(completions.len(), &pairs(&rewards, &texts, settings.pairing), None)
        }
        Method::Grpo(_) | Method::Rloo(_) => {
            let part = |completion: &ScoredCompletion<'_>| match completion.tokens {
                0 => Part::Unused,
                _ => Part::Used,
            };
            completions.iter().map(part).collect()
        }
    }
}

fn of_pairs(completions: usize, pairs: &[Preference], best: Option<usize>) -> Vec<Part> {
    let part = |index: usize| {
        let wins = pairs.iter().any(|pair| pair.chosen == index) || best == Some(index);
        let loses = pairs.iter().any(|pair| pair.rejected == index);
        match (wins, loses) {
            (false, false) => Part::Unused,
            (true, false) => Part::Chosen,
            (false, true) => Part::Rejected,
            (true, true) => Part::Used,
        }
    };
    (0..completions).map(part).collect()
}

/// Rewards and texts. A completion without tokens has no likelihood: its reward is NaN, so that it is never
/// chosen.
pub fn comparable<'a>(completions: &[ScoredCompletion<'a>]) -> (Vec<f64>, Vec<&'a str>) {
    let reward = |completion: &ScoredCompletion<'_>| match completion.tokens {
        0 => f64::NAN,
        _ => completion.reward,
    };
    completions.iter().map(|completion| (reward(completion), completion.text)).unzip()
}

/// The pairs that `pairing` makes of one prompt's completions.
///
/// `rewards` and `texts` have one entry per completion. The chosen one's reward is higher than the other's:
/// ties make no pair. A blank completion (nothing but white space) is never chosen, though it may be
/// rejected. A completion without a finite reward is ignored. Equal rewards keep the order of their
/// completions.
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

/// The completion with the highest score; its index. The first one wins a tie. A completion that is blank
/// (nothing but white space) or whose score is NaN never wins; `None` if no other is left.
///
/// Scores without a text, and texts without a score, are left out.
pub fn best_of(scores: &[f64], texts: &[impl AsRef<str>]) -> Option<usize> {
    let eligible = scores
        .iter()
        .copied()
        .zip(texts)
        .enumerate()
        .filter(|(_, (score, text))| !score.is_nan() && !is_blank(text.as_ref()));
    let mut winner: Option<(usize, f64)> = None;
    for (index, (score, _)) in eligible {
        if winner.is_none_or(|(_, best)| score > best) {
            winner = Some((index, score));
        }
    }
    winner.map(|(index, _)| index)
}

/// Whether a completion consists of white space only.
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
    use proptest::prelude::*;

    use super::*;

    fn indices(rewards: &[f64], texts: &[&str], pairing: Pairing) -> Vec<(usize, usize)> {
        let found = pairs(rewards, texts, pairing);
        found.into_iter().map(|Preference { chosen, rejected }| (chosen, rejected)).collect()
    }

    #[test]
    fn the_best_meets_the_worst() {
        let texts = ["a", "b", "c", "d"];
        assert_eq!(indices(&[1.0, 3.0, 0.0, 2.0], &texts, Pairing::BestWorst), [(1, 2)]);
        let equals = indices(&[3.0, 3.0, 0.0, 0.0], &texts, Pairing::BestWorst);
        assert_eq!(equals, [(0, 2)], "the first of equals wins on either side");
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
            assert_eq!(indices(&[9.0, 1.0], &[" \n", "b"], pairing), [], "a blank must not win");
            assert_eq!(indices(&[0.0, 1.0], &["", "b"], pairing), [(1, 0)], "a blank may lose");
            assert_eq!(indices(&[f64::NAN, 1.0, f64::INFINITY], &["a", "b", "c"], pairing), []);
        }
    }

    #[test]
    fn the_best_is_found_and_the_first_wins_a_tie() {
        let texts = ["a", "b", "c"];
        assert_eq!(best_of(&[0.0, 2.0, 1.0], &texts), Some(1));
        assert_eq!(best_of(&[1.0, 3.0, 3.0], &texts), Some(1));
    }

    #[test]
    fn blank_completions_and_nan_never_win() {
        assert_eq!(best_of(&[9.0, 8.0, f64::NAN, 1.0], &["", " \n", "c", "d"]), Some(3));
        assert_eq!(best_of(&[f64::NEG_INFINITY, f64::NAN], &["a", "b"]), Some(0));
        assert_eq!(best_of(&[1.0], &[" "]), None);
        assert_eq!(best_of(&[], &[] as &[&str]), None);
    }

    #[test]
    fn each_method_gives_its_completions_their_parts() {
        use crate::spec::{Dpo, Grpo, Rejection, Rrhf};
        use Part::{Chosen, Rejected, Unused, Used};
        // The third has no tokens, the last is blank and has the highest reward that counts.
        let rewards = [1.0, 3.0, 9.0, 2.0, 8.0];
        let texts = ["a", "b", "", "c", " "];
        let completions: Vec<ScoredCompletion<'_>> = rewards
            .iter()
            .zip(texts)
            .map(|(&reward, text)| ScoredCompletion { text, tokens: text.len(), reward })
            .collect();
        let of = |method: Method| parts(&method, &completions);
        let parsed = |wire| Method::parse(Some(&wire)).unwrap();
        let dpo = |pairing: &str| {
            let settings = foil_proto::v1::DpoSpec { pairing: pairing.into(), ..Default::default() };
            parsed(foil_proto::v1::policy_step_spec::Method::Dpo(settings))
        };
        assert_eq!(of(Method::Rejection(Rejection)), [Unused, Chosen, Unused, Unused, Unused]);
        assert_eq!(of(dpo("best_worst")), [Rejected, Chosen, Unused, Unused, Unused]);
        assert_eq!(of(dpo("all")), [Rejected, Chosen, Unused, Used, Unused]);
        assert_eq!(of(Method::Grpo(Grpo::default())), [Used, Used, Unused, Used, Used]);
        let rrhf = parsed(foil_proto::v1::policy_step_spec::Method::Rrhf(Default::default()));
        assert!(matches!(rrhf, Method::Rrhf(Rrhf { .. })) && matches!(dpo("all"), Method::Dpo(Dpo { .. })));
        assert_eq!(of(rrhf), [Rejected, Chosen, Unused, Used, Unused]);
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

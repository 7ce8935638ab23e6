//! Variety of answers.

use std::collections::HashSet;

use foil_common::stats::{DUPLICATES, Distinct};
use foil_proto::v1;

/// Different n-grams as a part of the answer's n-grams ("distinct-n", Li et al. 2016, of one answer): low where it repeats
/// itself; `None` where it has fewer than n tokens.
pub fn answer_distinct_n(answer: &[u32], n: usize) -> Option<f64> {
    let grams = || answer.windows(n.max(1));
    let different = grams().collect::<HashSet<_>>().len();
    (different > 0).then(|| different as f64 / grams().count() as f64)
}

/// For each answer, whether an earlier one to the same prompt has the same tokens.
pub fn repeats<'a>(answers: impl IntoIterator<Item = (u64, &'a [u32])>) -> Vec<bool> {
    let mut seen = HashSet::new();
    answers.into_iter().map(|answer| !seen.insert(answer)).collect()
}

/// How much the answers to different prompts are alike: a policy that collapses gives the same few to all.
#[derive(Debug, Default)]
pub struct Variety {
    answers: Distinct,
    words: Distinct,
    pairs: Distinct,
}

impl Variety {
    /// Counts an answer by its text, and its 1-grams and 2-grams of tokens.
    pub fn push(&mut self, text: &str, tokens: &[u32]) {
        self.answers.push(text.as_bytes());
        for (n, grams) in [(1, &mut self.words), (2, &mut self.pairs)] {
            for gram in tokens.windows(n) {
                let bytes: Vec<u8> = gram.iter().flat_map(|token| token.to_le_bytes()).collect();
                grams.push(&bytes);
            }
        }
    }

    /// `duplicate_rate`, the share of answers whose text repeats another answer's; `distinct_1` and `distinct_2`, different
    /// n-grams as a part of all n-grams of all answers together (Li et al. 2016).
    pub fn moments(&self) -> [v1::Moments; 3] {
        [(&self.answers, DUPLICATES), (&self.words, "distinct_1"), (&self.pairs, "distinct_2")]
            .map(|(distinct, name)| distinct.to_moments(name))
    }
}

#[cfg(test)]
mod tests {
    use foil_common::stats::metrics;

    use super::{Variety, answer_distinct_n, repeats};

    #[test]
    fn n_grams_are_counted_within_answers() {
        assert_eq!(answer_distinct_n(&[1, 2, 1, 2], 1), Some(0.5));
        assert_eq!(answer_distinct_n(&[1, 2, 1, 2], 2), Some(2.0 / 3.0));
        assert_eq!(answer_distinct_n(&[1], 2), None);
    }

    #[test]
    fn only_answers_to_the_same_prompt_are_repeats() {
        let answers: [(u64, &[u32]); 4] = [(1, &[7, 8]), (2, &[7, 8]), (1, &[7, 8]), (1, &[7])];
        assert_eq!(repeats(answers), [false, false, true, false]);
    }

    #[test]
    fn a_policy_that_answers_all_prompts_alike_is_seen() {
        let mut collapsed = Variety::default();
        (0..10).for_each(|_| collapsed.push("ab", &[7, 8, 3]));
        let found = metrics(&collapsed.moments(), None);
        let values: Vec<(&str, f64)> =
            found.iter().map(|metric| (metric.name.as_str(), metric.value)).collect();
        assert_eq!(values, [("duplicate_rate", 0.9), ("distinct_1", 0.1), ("distinct_2", 0.1)]);
        let mut varied = Variety::default();
        (0..10).for_each(|n| varied.push(&n.to_string(), &[n, n + 10, 3]));
        let found = metrics(&varied.moments(), None);
        assert_eq!(found.iter().map(|metric| metric.value).collect::<Vec<_>>(), [0.0, 20.0 / 30.0, 1.0]);
    }
}

//! Diversity of completions.

use std::collections::HashSet;

use foil_common::stats::{DUPLICATES, Distinct};
use foil_proto::v1;

/// The fraction of distinct n-grams in a completion ("distinct-n", Li et al. 2016): low if it repeats itself;
/// `None` if it has fewer than n tokens.
pub fn completion_distinct_n(tokens: &[u32], n: usize) -> Option<f64> {
    let grams = || tokens.windows(n.max(1));
    let distinct = grams().collect::<HashSet<_>>().len();
    (distinct > 0).then(|| distinct as f64 / grams().count() as f64)
}

/// For each completion, whether an earlier completion of the same prompt has the same tokens.
pub fn duplicates<'a>(completions: impl IntoIterator<Item = (u64, &'a [u32])>) -> Vec<bool> {
    let mut seen = HashSet::new();
    completions.into_iter().map(|completion| !seen.insert(completion)).collect()
}

/// Diversity of completions across prompts: a collapsed policy gives the same few answers to all prompts.
#[derive(Debug, Default)]
pub struct Diversity {
    texts: Distinct,
    unigrams: Distinct,
    bigrams: Distinct,
}

impl Diversity {
    /// Adds a completion's text and the 1-grams and 2-grams of its tokens.
    pub fn push(&mut self, text: &str, tokens: &[u32]) {
        self.texts.push(text.as_bytes());
        for (n, grams) in [(1, &mut self.unigrams), (2, &mut self.bigrams)] {
            for gram in tokens.windows(n) {
                let bytes: Vec<u8> = gram.iter().flat_map(|token| token.to_le_bytes()).collect();
                grams.push(&bytes);
            }
        }
    }

    /// `duplicate_rate`, the share of answers whose text repeats another answer's, and `distinct_1` and
    /// `distinct_2`, the fraction of distinct n-grams among the n-grams of all answers (Li et al. 2016).
    pub fn moments(&self) -> [v1::Moments; 3] {
        [(&self.texts, DUPLICATES), (&self.unigrams, "distinct_1"), (&self.bigrams, "distinct_2")]
            .map(|(distinct, name)| distinct.to_moments(name))
    }
}

#[cfg(test)]
mod tests {
    use foil_common::stats::metrics;

    use super::{Diversity, completion_distinct_n, duplicates};

    #[test]
    fn n_grams_are_counted_within_completions() {
        assert_eq!(completion_distinct_n(&[1, 2, 1, 2], 1), Some(0.5));
        assert_eq!(completion_distinct_n(&[1, 2, 1, 2], 2), Some(2.0 / 3.0));
        assert_eq!(completion_distinct_n(&[1], 2), None);
    }

    #[test]
    fn only_completions_of_the_same_prompt_are_duplicates() {
        let completions: [(u64, &[u32]); 4] = [(1, &[7, 8]), (2, &[7, 8]), (1, &[7, 8]), (1, &[7])];
        assert_eq!(duplicates(completions), [false, false, true, false]);
    }

    #[test]
    fn a_policy_that_gives_the_same_completion_to_all_prompts_is_detected() {
        let mut collapsed = Diversity::default();
        (0..10).for_each(|_| collapsed.push("ab", &[7, 8, 3]));
        let found = metrics(&collapsed.moments(), None);
        let values: Vec<(&str, f64)> =
            found.iter().map(|metric| (metric.name.as_str(), metric.value)).collect();
        assert_eq!(values, [("duplicate_rate", 0.9), ("distinct_1", 0.1), ("distinct_2", 0.1)]);
        let mut diverse = Diversity::default();
        (0..10).for_each(|n| diverse.push(&n.to_string(), &[n, n + 10, 3]));
        let found = metrics(&diverse.moments(), None);
        assert_eq!(found.iter().map(|metric| metric.value).collect::<Vec<_>>(), [0.0, 20.0 / 30.0, 1.0]);
    }
}

//! Variety of answers.

use std::collections::HashSet;

/// Different n-grams as a part of all n-grams of some answers, taken together ("distinct-n", Li et al. 2016); `None`
/// where no answer has n tokens. Give one answer for its own distinct-n, which averages over chunks.
pub fn distinct_n(answers: &[&[u32]], n: usize) -> Option<f64> {
    let grams = || answers.iter().flat_map(|answer| answer.windows(n.max(1)));
    let total = grams().count();
    let different = grams().collect::<HashSet<_>>().len();
    (total > 0).then(|| different as f64 / total as f64)
}

/// For each answer, whether an earlier one to the same prompt has the same tokens.
pub fn duplicates<'a>(answers: impl IntoIterator<Item = (u64, &'a [u32])>) -> Vec<bool> {
    let mut seen = HashSet::new();
    answers.into_iter().map(|answer| !seen.insert(answer)).collect()
}

#[cfg(test)]
mod tests {
    use super::{distinct_n, duplicates};

    #[test]
    fn n_grams_are_counted_within_answers() {
        assert_eq!(distinct_n(&[&[1, 2, 1, 2]], 1), Some(0.5));
        assert_eq!(distinct_n(&[&[1, 2, 1, 2]], 2), Some(2.0 / 3.0));
        assert_eq!(distinct_n(&[&[1, 2], &[1, 2]], 2), Some(0.5));
        assert_eq!(distinct_n(&[&[1], &[]], 2), None);
    }

    #[test]
    fn only_answers_to_the_same_prompt_are_compared() {
        let answers: [(u64, &[u32]); 4] = [(1, &[7, 8]), (2, &[7, 8]), (1, &[7, 8]), (1, &[7])];
        assert_eq!(duplicates(answers), [false, false, true, false]);
    }
}

//! Choosing among several answers to one prompt by their scores: rejection sampling (best of n).

use super::pairing::is_blank;

/// The answer with the highest score; its index. The first one wins a tie. An answer that is blank (nothing but
/// white space) or whose score is NaN never wins; `None` where no other is left.
///
/// Scores without a text, and texts without a score, are left out.
pub fn select(scores: &[f64], texts: &[impl AsRef<str>]) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::select;

    #[test]
    fn the_best_is_found_and_the_first_wins_a_tie() {
        let texts = ["a", "b", "c"];
        assert_eq!(select(&[0.0, 2.0, 1.0], &texts), Some(1));
        assert_eq!(select(&[1.0, 3.0, 3.0], &texts), Some(1));
    }

    #[test]
    fn blank_answers_and_nan_never_win() {
        assert_eq!(select(&[9.0, 8.0, f64::NAN, 1.0], &["", " \n", "c", "d"]), Some(3));
        assert_eq!(select(&[f64::NEG_INFINITY, f64::NAN], &["a", "b"]), Some(0));
        assert_eq!(select(&[1.0], &[" "]), None);
        assert_eq!(select(&[], &[] as &[&str]), None);
    }
}

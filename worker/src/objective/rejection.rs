//! Choosing among several answers to one prompt by their scores: rejection sampling (best of n).

/// The answer with the highest score; its index. The first one wins a tie. An answer that is blank (nothing but
/// white space) or whose score is NaN never wins; `None` where no other is left.
///
/// Scores without a text, and texts without a score, are left out.
pub fn select(scores: &[f64], texts: &[impl AsRef<str>]) -> Option<usize> {
    choose(scores, texts, |candidate, best| candidate > best)
}

/// The answer with the *lowest* score, otherwise as [`select`]: a negative control, under which an honest experiment
/// must fail.
pub fn select_worst(scores: &[f64], texts: &[impl AsRef<str>]) -> Option<usize> {
    choose(scores, texts, |candidate, worst| candidate < worst)
}

fn choose(scores: &[f64], texts: &[impl AsRef<str>], wins: impl Fn(f64, f64) -> bool) -> Option<usize> {
    let eligible = scores
        .iter()
        .copied()
        .zip(texts)
        .enumerate()
        .filter(|(_, (score, text))| !score.is_nan() && !text.as_ref().trim().is_empty());
    let mut winner: Option<(usize, f64)> = None;
    for (index, (score, _)) in eligible {
        if winner.is_none_or(|(_, best)| wins(score, best)) {
            winner = Some((index, score));
        }
    }
    winner.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::{select, select_worst};

    #[test]
    fn the_best_and_the_worst_are_found() {
        let texts = ["a", "b", "c"];
        assert_eq!(select(&[0.0, 2.0, 1.0], &texts), Some(1));
        assert_eq!(select_worst(&[0.0, 2.0, -1.0], &texts), Some(2));
    }

    #[test]
    fn the_first_wins_a_tie() {
        assert_eq!(select(&[1.0, 3.0, 3.0], &["a", "b", "c"]), Some(1));
        assert_eq!(select_worst(&[1.0, 1.0, 3.0], &["a", "b", "c"]), Some(0));
    }

    #[test]
    fn blank_answers_and_nan_never_win() {
        assert_eq!(select(&[9.0, 8.0, f64::NAN, 1.0], &["", " \n", "c", "d"]), Some(3));
        assert_eq!(select_worst(&[-9.0, 1.0], &["\t", "b"]), Some(1));
        assert_eq!(select(&[f64::NEG_INFINITY, f64::NAN], &["a", "b"]), Some(0));
        assert_eq!(select(&[1.0], &[" "]), None);
        assert_eq!(select(&[], &[] as &[&str]), None);
    }
}

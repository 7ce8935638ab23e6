//! The expected results of each collective, computed on the host in integers.

/// Maximum magnitude of a rank's numbers. Sums over up to 42 ranks are then exact in bf16, which represents
/// integers up to 256 exactly.
const MAX: i64 = 6;

/// The number at `index` on `rank`.
pub(crate) fn number(rank: usize, index: usize) -> i64 {
    (index * 5 + rank * 7 + index / 11) as i64 % (2 * MAX + 1) - MAX
}

/// All of a rank's numbers.
pub(crate) fn numbers(rank: usize, length: usize) -> Vec<i64> {
    (0..length).map(|index| number(rank, index)).collect()
}

/// The sum over all ranks of the number at `index`.
pub(crate) fn sum(world: usize, index: usize) -> i64 {
    (0..world).map(|rank| number(rank, index)).sum()
}

/// A description of the wrong numbers, if there are any.
pub(crate) fn difference(found: &[f64], expected: impl Fn(usize) -> i64) -> Option<String> {
    let wrong = |index: &usize| found[*index] != expected(*index) as f64;
    let first = (0..found.len()).find(wrong)?;
    let count = (0..found.len()).filter(wrong).count();
    let (value, expected, length) = (found[first], expected(first), found.len());
    Some(format!("{count} of {length} numbers are wrong; number {first} is {value} but should be {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_by_rank_and_index_and_stay_small() {
        let ranks: Vec<Vec<i64>> = (0..8).map(|rank| numbers(rank, 500)).collect();
        assert!(ranks.iter().flatten().all(|number| number.abs() <= MAX));
        assert!(ranks.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(
            (0..500).all(|index| sum(8, index) == ranks.iter().map(|numbers| numbers[index]).sum::<i64>())
        );
        assert!((0..500).any(|index| sum(8, index) != sum(7, index)));
    }

    #[test]
    fn a_wrong_sum_is_reported_with_its_index() {
        let correct: Vec<f64> = (0..100).map(|index| sum(3, index) as f64).collect();
        assert_eq!(difference(&correct, |index| sum(3, index)), None);
        let mut wrong = correct.clone();
        wrong[41] += 1.0;
        let message = difference(&wrong, |index| sum(3, index)).unwrap();
        assert_eq!(
            message,
            format!("1 of 100 numbers are wrong; number 41 is {} but should be {}", wrong[41], correct[41])
        );
        wrong[7] = f64::NAN;
        assert!(
            difference(&wrong, |index| sum(3, index))
                .unwrap()
                .starts_with("2 of 100 numbers are wrong; number 7 is NaN")
        );
    }
}

//! Mixtures of sources by weight.

/// The number of rows that each source gives to a mixture: the largest numbers in proportion to the weights
/// for which every source has enough rows, rounded down, with a total of at most `limit`. Rows left over by
/// rounding go to the sources with the largest remainders, the first of equal ones. Every source that has
/// rows gives at least one.
///
/// `available` are the rows of each source, and `weights` their positive weights.
pub fn shares(available: &[usize], weights: &[f64], limit: Option<usize>) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let sources = || available.iter().zip(weights);
    let fullest = sources().filter(|(rows, _)| **rows > 0).map(|(rows, weight)| *rows as f64 / weight);
    let fullest = fullest.fold(f64::INFINITY, f64::min);
    if !fullest.is_finite() || total <= 0.0 {
        return vec![0; available.len()];
    }
    // A source without rows does not hold the others back.
    let total = sources().filter(|(rows, _)| **rows > 0).map(|(_, weight)| weight).sum::<f64>();
    let wanted = (fullest * total * (1.0 + 1e-12)).floor() as usize;
    let wanted = wanted.min(limit.unwrap_or(usize::MAX));
    let exact = |rows: usize, weight: f64| if rows == 0 { 0.0 } else { wanted as f64 * weight / total };
    let exact: Vec<f64> = sources().map(|(rows, weight)| exact(*rows, *weight)).collect();
    let mut shares: Vec<usize> = exact
        .iter()
        .zip(available)
        .map(|(exact, rows)| ((exact * (1.0 + 1e-12)).floor() as usize).min(*rows))
        .collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&one, &other| {
        let left = |source: usize| exact[source] - shares[source] as f64;
        left(other).total_cmp(&left(one)).then(one.cmp(&other))
    });
    let mut spare = wanted.saturating_sub(shares.iter().sum());
    for source in order {
        if spare > 0 && shares[source] < available[source] {
            shares[source] += 1;
            spare -= 1;
        }
    }
    for (share, rows) in shares.iter_mut().zip(available) {
        *share = (*share).max(usize::from(*rows > 0));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn shares_are_in_the_proportion_of_weights() {
        assert_eq!(shares(&[100, 100], &[1.0, 1.0], None), [100, 100]);
        assert_eq!(shares(&[100, 100], &[3.0, 1.0], None), [100, 33]);
        assert_eq!(shares(&[100, 1000], &[1.0, 2.0], None), [100, 200]);
        assert_eq!(shares(&[100, 1000], &[1.0, 2.0], Some(30)), [10, 20]);
        assert_eq!(shares(&[100, 1000], &[1.0, 2.0], Some(31)), [10, 21]);
        assert_eq!(shares(&[50, 50, 50], &[0.7, 0.2, 0.1], None), [50, 14, 7]);
        // A source without rows gives none and does not reduce the others; one with rows is never left out.
        assert_eq!(shares(&[0, 10], &[5.0, 1.0], None), [0, 10]);
        assert_eq!(shares(&[10, 10], &[1e-3, 1.0], None), [1, 10]);
        assert_eq!(shares(&[0, 0], &[1.0, 1.0], None), [0, 0]);
        assert_eq!(shares(&[], &[], None), Vec::<usize>::new());
    }

    #[test]
    fn no_share_exceeds_the_source_or_its_proportion() {
        let mut rng = rand::rng();
        for _ in 0..2000 {
            let count = rng.random_range(1..6);
            let available: Vec<usize> = (0..count).map(|_| rng.random_range(1..400)).collect();
            let weights: Vec<f64> = (0..count).map(|_| rng.random_range(0.1..10.0)).collect();
            let limit = rng.random_bool(0.5).then(|| rng.random_range(count..500));
            let shares = shares(&available, &weights, limit);
            let (total, weight): (usize, f64) = (shares.iter().sum(), weights.iter().sum());
            let context = format!("{available:?} {weights:?} {limit:?} {shares:?}");
            assert!(
                shares.iter().zip(&available).all(|(share, rows)| share <= rows && *share > 0),
                "{context}"
            );
            for (share, own) in shares.iter().zip(&weights) {
                let exact = total as f64 * own / weight;
                assert!((*share as f64 - exact).abs() <= 1.0 + count as f64 || *share == 1, "{context}");
            }
            // As many as the limit, or the scarcest source, allows.
            let scarcest =
                available.iter().zip(&weights).map(|(rows, own)| *rows as f64 / own).fold(f64::MAX, f64::min);
            let most = ((scarcest * weight) as usize).min(limit.unwrap_or(usize::MAX));
            assert!(total + 1 >= most && total <= most + count, "{context}: {most}");
        }
    }
}

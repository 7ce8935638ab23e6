//! Plausibility checks of the metric sums that a rank reports for a chunk. Only recomputation could prove the
//! sums, but sums over real rows obey certain inequalities, and reports that violate them are false.

use std::collections::BTreeSet;

use foil_common::plural::{are, counted};
use foil_common::stats::{CALIBRATION_BINS, DISTINCT_KEPT, is_rate};
use foil_proto::v1;

/// Relative tolerance of sums, which are rounded row by row.
const SLACK: f64 = 1e-6;

/// Checks the metric sums of a chunk.
///
/// # Errors
/// The rule that one of the sums violates, in words.
pub(super) fn check(result: &v1::ChunkResult) -> Result<(), String> {
    let mut names = BTreeSet::new();
    for moments in &result.moments {
        if !names.insert(&moments.name) {
            return Err(format!("its metric {} comes twice", moments.name));
        }
        check_moments(moments)
            .map_err(|rule| format!("its metric {} is not possible: {rule}", moments.name))?;
    }
    result.calibration.as_ref().map_or(Ok(()), calibration)
}

/// Accepts non-finite sums, which fail the job with an error of their own.
fn check_moments(moments: &v1::Moments) -> Result<(), String> {
    let v1::Moments { name, count, sum, sum_of_squares, clusters, distinct, .. } = moments;
    let rows = *count as f64;
    // |Σ x|² ≤ n · Σ x², by the Cauchy–Schwarz inequality.
    let max = rows * sum_of_squares;
    if sum * sum > max + SLACK * max.abs().max(1.0) {
        return Err(format!("{count} rows cannot sum to {sum} if their squares sum to {sum_of_squares}"));
    }
    if is_rate(name) && (*sum < -SLACK || *sum > rows * (1.0 + SLACK)) {
        return Err(format!("a rate of {count} rows cannot sum to {sum}"));
    }
    if let Some(clusters) = clusters {
        let open: u64 = clusters.open.iter().map(|open| open.count).fold(0, u64::saturating_add);
        let has_empty = clusters.open.iter().any(|open| open.count == 0);
        if has_empty || clusters.count.saturating_add(open) > *count {
            return Err(format!(
                "{} {} not {} and {} of others",
                counted(*count, "row"),
                are(*count),
                counted(clusters.count, "whole cluster"),
                counted(open, "row")
            ));
        }
    }
    if let Some(v1::DistinctValues { hash, count }) = distinct
        && (hash.len() != count.len() || hash.len() > DISTINCT_KEPT)
    {
        let (hashes, counts) = (hash.len(), count.len());
        return Err(format!(
            "{hashes} values with {counts} counts; expected as many, at most {DISTINCT_KEPT}"
        ));
    }
    Ok(())
}

fn calibration(calibration: &v1::Calibration) -> Result<(), String> {
    let v1::Calibration { count, confidence_sum, correct } = calibration;
    let lengths = [count.len(), confidence_sum.len(), correct.len()];
    if lengths.iter().any(|length| *length > CALIBRATION_BINS) {
        return Err(format!("its calibration has {lengths:?} bins; expected {CALIBRATION_BINS}"));
    }
    let of = |list: &[u64], bin: usize| list.get(bin).copied().unwrap_or_default();
    for bin in 0..CALIBRATION_BINS {
        let (count, right) = (of(count, bin), of(correct, bin));
        let sum = confidence_sum.get(bin).copied().unwrap_or_default();
        let max = count as f64 * (1.0 + SLACK) + SLACK;
        if right > count || sum < -SLACK || sum > max {
            return Err(format!(
                "bin {bin} of its calibration has {count} predictions, {right} of them right, that sum to {sum}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(name: &str, count: u64, sum: f64, sum_of_squares: f64) -> v1::Moments {
        v1::Moments { name: name.into(), count, sum, sum_of_squares, ..Default::default() }
    }

    fn found(moments: Vec<v1::Moments>) -> String {
        check(&v1::ChunkResult { moments, ..Default::default() }).err().unwrap_or_default()
    }

    #[test]
    fn sums_of_rows_pass() {
        let rows = [0.1, -3.0, 1e9, 7.25];
        let of = |rows: &[f64]| {
            let squares = rows.iter().map(|row| row * row).sum();
            moments("reward_mean", rows.len() as u64, rows.iter().sum(), squares)
        };
        assert_eq!(found(vec![of(&rows), moments("accuracy", 4, 3.0, 3.0), moments("kl", 0, 0.0, 0.0)]), "");
        // For equal rows the inequality holds with equality, and sums are rounded.
        for value in [0.1, 1.0 / 3.0, -1e-9, 123_456.789] {
            assert_eq!(found(vec![of(&vec![value; 10_000])]), "", "{value}");
        }
        assert_eq!(found(vec![moments("reward_mean", 3, f64::NAN, 1.0)]), "", "reported elsewhere");
    }

    #[test]
    fn impossible_sums_are_rejected() {
        assert!(found(vec![moments("gold_mean", 4, 1e9, 4.0)]).contains("squares sum to 4"));
        assert!(found(vec![moments("gold_mean", 0, 1.0, 1.0)]).contains("0 rows"));
        assert!(found(vec![moments("gold_mean", 4, 1.0, -1.0)]).contains("-1"));
        assert!(found(vec![moments("accuracy", 4, 5.0, 25.0)]).contains("a rate of 4 rows"));
        assert!(found(vec![moments("truncated_rate", 4, -1.0, 25.0)]).contains("a rate of 4 rows"));
        assert!(found(vec![moments("kl", 1, 1.0, 1.0); 2]).contains("twice"));
        let open = |count| v1::Cluster { key: 1, count, sum: 0.0 };
        for (count, open) in
            [(0, vec![open(5)]), (5, vec![]), (0, vec![open(0)]), (0, vec![open(1); 1_000_000])]
        {
            let clusters = v1::Clusters { count, open, ..Default::default() };
            let wrong = v1::Moments { clusters: Some(clusters), ..moments("accuracy", 4, 2.0, 2.0) };
            assert!(found(vec![wrong]).contains("4 rows are not"));
        }
        let distinct = v1::DistinctValues { hash: vec![1; 1_000_000], count: vec![1; 1_000_000] };
        let wrong = v1::Moments { distinct: Some(distinct), ..moments("duplicate_rate", 0, 0.0, 0.0) };
        assert!(found(vec![wrong]).contains("1000000 values"));
    }

    #[test]
    fn a_calibration_counts_predictions() {
        let of = |count: u64, confidence_sum: f64, correct: u64| {
            let bins = v1::Calibration {
                count: vec![count; 10],
                confidence_sum: vec![confidence_sum; 10],
                correct: vec![correct; 10],
            };
            check(&v1::ChunkResult { calibration: Some(bins), ..Default::default() })
        };
        of(4, 4.0, 4).unwrap();
        of(0, 0.0, 0).unwrap();
        assert!([of(4, 4.1, 4), of(4, -0.1, 0), of(4, 2.0, 5)].iter().all(Result::is_err));
        let many = v1::Calibration { count: vec![0; 11], ..Default::default() };
        assert!(check(&v1::ChunkResult { calibration: Some(many), ..Default::default() }).is_err());
    }
}

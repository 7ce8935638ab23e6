//! Means over the seeds of an arm, with their 95 % intervals.

use foil_common::stats::Moments;

/// Quantiles t(0.975) for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.96;

/// A mean over runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) runs: usize,
    pub(super) mean: f64,
    /// Half the width of the 95 % interval by Student's t; `None` for a single run.
    pub(super) half_width: Option<f64>,
}

/// The mean of `values`; `None` if there are none.
pub(super) fn over_runs(values: &[f64]) -> Option<Estimate> {
    let moments: Moments = values.iter().copied().collect();
    let t = |freedom: usize| match freedom {
        0 => None,
        _ => Some(T.get(freedom - 1).copied().unwrap_or_else(|| beyond(freedom))),
    };
    let half_width = t(values.len().saturating_sub(1)).zip(moments.standard_error()).map(|(t, se)| t * se);
    Some(Estimate { runs: values.len(), mean: moments.mean()?, half_width })
}

/// The quantile for more than 30 degrees of freedom, by the first terms of its expansion around the normal
/// one.
fn beyond(freedom: usize) -> f64 {
    let freedom = freedom as f64;
    Z + (Z.powi(3) + Z) / (4.0 * freedom)
        + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * freedom * freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        // Mean 7/3, deviation √(7/3), √3 runs: t(2) = 4.303.
        let estimate = over_runs(&[1.0, 2.0, 4.0]).unwrap();
        assert_eq!((estimate.runs, estimate.mean), (3, 7.0 / 3.0));
        assert!(
            (estimate.half_width.unwrap() - 4.303 * (7.0_f64 / 3.0).sqrt() / 3.0_f64.sqrt()).abs() < 1e-12
        );
        assert_eq!(over_runs(&[5.0]).unwrap(), Estimate { runs: 1, mean: 5.0, half_width: None });
        assert_eq!(over_runs(&[]), None);
        assert_eq!(over_runs(&[2.0, 2.0]).unwrap().half_width, Some(0.0));
    }

    #[test]
    fn quantiles_agree_with_published_ones() {
        for (freedom, expected) in [(40, 2.021), (60, 2.000), (63, 1.998), (120, 1.980)] {
            assert!((beyond(freedom) - expected).abs() < 1e-3, "{freedom}: {}", beyond(freedom));
        }
        assert!((beyond(30) - T[29]).abs() < 1e-3);
    }
}

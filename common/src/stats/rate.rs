//! Confidence intervals of rates.

use super::Moments;

/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % Wilson interval for the mean of rows that are 0 or 1; `None` without rows.
///
/// Rows in clusters count as fewer: n over the design effect, which is the cluster-robust variance over that
/// of independent rows (Kish; Korn and Graubard 1998). If all rows are equal the effect cannot be estimated,
/// and each cluster counts once.
pub fn wilson_interval(moments: &Moments) -> Option<(f64, f64)> {
    let rate = moments.mean()?;
    let rows = effective_rows(moments, rate);
    let shrunk = 1.0 + Z * Z / rows;
    let middle = (rate + Z * Z / (2.0 * rows)) / shrunk;
    let half = Z / shrunk * (rate * (1.0 - rate) / rows + Z * Z / (4.0 * rows * rows)).max(0.0).sqrt();
    // At 0 and 1, one end is exactly that value, which rounding could miss.
    let low = if rate <= 0.0 { 0.0 } else { (middle - half).max(0.0) };
    let high = if rate >= 1.0 { 1.0 } else { (middle + half).min(1.0) };
    Some((low, high))
}

fn effective_rows(moments: &Moments, rate: f64) -> f64 {
    let rows = moments.count as f64;
    let Some(clusters) = &moments.clusters else { return rows };
    let independent = rate * (1.0 - rate) / (rows - 1.0);
    match clusters.standard_error(moments.count, moments.sum) {
        Some(se) if independent > 0.0 => {
            let effect = (se * se / independent).max(1.0);
            (rows / effect).max(1.0)
        }
        _ => clusters.count() as f64,
    }
}

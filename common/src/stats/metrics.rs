//! The metrics of a phase, from merged statistics.

use foil_proto::v1;

use super::rate;
use super::{Calibration, Distinct, Moments};

/// Wire name of the [`Distinct`] completions; its metric is the fraction of completions that repeat another
/// one.
pub const DUPLICATES: &str = "duplicate_rate";

/// A policy's reward minus the start policy's on the same prompt, under one reward model.
pub const REWARD_DIFFERENCE: &str = "reward_difference_mean";
/// The start policy's reward under the round's reward model.
pub const START_REWARD: &str = "start_reward_mean";
/// The mean reward difference in standard deviations of the start policy's rewards under that reward model:
/// it can be compared between rounds, whose reward models have different offsets and scales.
pub const REWARD_GAIN: &str = "reward_gain";

/// A policy's reward and gold reward minus those of the round before on the same prompt.
pub const REWARD_STEP: &str = "reward_step_mean";
pub const GOLD_STEP: &str = "gold_step_mean";
/// Accuracy on human pairs minus that of round 1's reward model on the same pairs.
pub const ACCURACY_CHANGE: &str = "accuracy_change";

/// Name of the accuracy on the pairs of a part of a benchmark.
pub fn group_accuracy(group: &str) -> String {
    format!("subset_{group}_accuracy")
}

/// The metrics of a phase: each mean under its own name, with its standard error. In addition
/// - for a `…_mean`, the rows' standard deviation as `…_sd`, and their maximum as `…_max` if it was tracked;
/// - for a rate (`accuracy` and `…_rate`), the 95 % Wilson interval as `…_low` and `…_high`. A rate of 0 or 1
///   has no standard error: the formula would claim certainty;
/// - for one half of the rows (`selection_…`, `report_…`), their number as `…_n`.
///
/// [`REWARD_GAIN`] if both of its inputs are present, for all rows or for a half; and `ece`, `ace` and `mce`
/// if pairs were counted. A quantity without rows has no metric.
pub fn metrics(moments: &[v1::Moments], calibration: Option<&v1::Calibration>) -> Vec<v1::Metric> {
    let mut metrics: Vec<v1::Metric> = moments.iter().flat_map(metrics_of).collect();
    metrics.extend(["", super::SELECTION, super::REPORT].into_iter().filter_map(|half| gain(moments, half)));
    if let Some(calibration) = calibration.map(Calibration::from) {
        let errors = [("ece", calibration.ece()), ("ace", calibration.ace()), ("mce", calibration.mce())];
        metrics.extend(errors.into_iter().filter_map(|(name, error)| Some(plain(name.to_owned(), error?))));
    }
    metrics
}

fn plain(name: String, value: f64) -> v1::Metric {
    v1::Metric { name, value, se: None }
}

fn metrics_of(wire: &v1::Moments) -> Vec<v1::Metric> {
    let name = &wire.name;
    if let Some(distinct) = &wire.distinct {
        let fraction = Distinct::from(distinct).fraction();
        let value = if name == DUPLICATES { fraction.map(|fraction| 1.0 - fraction) } else { fraction };
        return value.map(|value| plain(name.clone(), value)).into_iter().collect();
    }
    let moments = Moments::from(wire);
    let Some(mean) = moments.mean() else { return Vec::new() };
    let interval = is_rate(name).then(|| rate::wilson_interval(&moments)).flatten();
    let is_certain = interval.is_some() && (mean == 0.0 || mean == 1.0);
    let se = moments.standard_error().filter(|_| !is_certain);
    let mut metrics = vec![v1::Metric { name: name.clone(), value: mean, se }];
    let mut add = |stem: &str, suffix: &str, value: Option<f64>| {
        metrics.extend(value.map(|value| plain(format!("{stem}_{suffix}"), value)));
    };
    if let Some(stem) = name.strip_suffix("_mean") {
        add(stem, "sd", moments.standard_deviation());
        add(stem, "max", moments.max);
    }
    add(name, "low", interval.map(|(low, _)| low));
    add(name, "high", interval.map(|(_, high)| high));
    let is_half = name.starts_with(super::SELECTION) || name.starts_with(super::REPORT);
    add(name, "n", is_half.then_some(moments.count as f64));
    metrics
}

/// Whether a metric is a fraction of rows.
pub fn is_rate(name: &str) -> bool {
    name.ends_with("accuracy") || name.ends_with("_rate")
}

/// The standard error treats the start policy's standard deviation as exact.
fn gain(moments: &[v1::Moments], half: &str) -> Option<v1::Metric> {
    let moments_of = |name: &str| {
        let found = moments.iter().find(|moments| moments.name.strip_prefix(half) == Some(name));
        found.map(Moments::from)
    };
    let (difference, start) = (moments_of(REWARD_DIFFERENCE)?, moments_of(START_REWARD)?);
    let unit = start.standard_deviation().filter(|unit| *unit > 0.0)?;
    let se = difference.standard_error().map(|se| se / unit);
    Some(v1::Metric { name: format!("{half}{REWARD_GAIN}"), value: difference.mean()? / unit, se })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::close;
    use crate::stats::{merge_calibration, merge_moments};

    fn value(metrics: &[v1::Metric], name: &str) -> f64 {
        metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}")).value
    }

    #[test]
    fn a_reward_gain_is_in_standard_deviations_of_the_start_policy() {
        let moments = [
            [3.0, 1.0, 2.0].into_iter().collect::<Moments>().to_wire(REWARD_DIFFERENCE),
            [10.0, 14.0, 12.0].into_iter().collect::<Moments>().to_wire(START_REWARD),
            [1.0, 1.0].into_iter().collect::<Moments>().to_wire("selection_reward_difference_mean"),
            [5.0, 5.0].into_iter().collect::<Moments>().to_wire("selection_start_reward_mean"),
        ];
        let found = metrics(&moments, None);
        assert!(close(value(&found, REWARD_GAIN), 1.0));
        let gain = found.iter().find(|metric| metric.name == REWARD_GAIN).unwrap();
        assert!(close(gain.se.unwrap(), (1.0f64 / 3.0).sqrt() / 2.0));
        // All start rewards are equal, so there is no unit.
        assert!(!found.iter().any(|metric| metric.name == "selection_reward_gain"));
        assert_eq!(value(&found, "selection_reward_difference_mean_n"), 2.0);
    }

    #[test]
    fn a_rate_at_its_end_has_an_interval_and_no_standard_error() {
        let moments = [
            [1.0; 20].into_iter().collect::<Moments>().to_wire("fresh_accuracy"),
            [0.0; 20].into_iter().collect::<Moments>().to_wire("truncated_rate"),
            [1.0, 0.0, 1.0, 1.0].into_iter().collect::<Moments>().to_wire("accuracy"),
        ];
        let found = metrics(&moments, None);
        let se = |name: &str| found.iter().find(|metric| metric.name == name).unwrap().se;
        assert_eq!((se("fresh_accuracy"), se("truncated_rate")), (None, None));
        // 20 of 20: 1 / (1 + z²/20), z² = 3.841458821.
        assert!((value(&found, "fresh_accuracy_low") - 20.0 / 23.841_458_821).abs() < 1e-9);
        assert_eq!((value(&found, "fresh_accuracy_high"), value(&found, "truncated_rate_low")), (1.0, 0.0));
        assert!(se("accuracy").is_some() && value(&found, "accuracy_low") < 0.75);
        let [lone] = [[1.0].into_iter().collect::<Moments>().to_wire("accuracy")];
        assert!(value(&metrics(&[lone], None), "accuracy_low") < 0.3);
    }

    #[test]
    fn chunks_merge_by_name_and_become_metrics() {
        let accuracy: Moments = [1.0, 0.0].into_iter().collect();
        let reward: Moments = [2.0, 4.0].into_iter().collect();
        let mut merged = vec![accuracy.to_wire("accuracy")];
        merge_moments(&mut merged, &[reward.to_wire("reward_mean"), accuracy.to_wire("accuracy")]);
        let mut calibration = v1::Calibration::default();
        let mut pairs = Calibration::default();
        pairs.push_difference(1.0);
        merge_calibration(&mut calibration, &pairs.to_wire());
        let metrics = metrics(&merged, Some(&calibration));
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let expected =
            ["accuracy", "accuracy_low", "accuracy_high", "reward_mean", "reward_sd", "ece", "ace", "mce"];
        assert_eq!(names, expected);
        assert!(close(metrics[0].value, 0.5));
        assert!(close(metrics[0].se.unwrap(), (1.0f64 / 3.0).sqrt() / 2.0));
        assert!(close(metrics[4].value, 2f64.sqrt()));
    }

    #[test]
    fn the_maximum_of_parts_is_that_of_the_whole() {
        let part = |values: &[f64]| {
            let mut moments = Moments::default();
            values.iter().for_each(|value| moments.push_with_max(*value));
            moments.to_wire("drift_mean")
        };
        let mut merged = vec![part(&[0.5, 3.0])];
        merge_moments(&mut merged, &[part(&[1.0]), part(&[])]);
        let found = metrics(&merged, None);
        let names: Vec<&str> = found.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["drift_mean", "drift_sd", "drift_max"]);
        assert_eq!((found[0].value, found[2].value), (1.5, 3.0));
        merge_moments(&mut merged, &[part(&[f64::NAN])]);
        assert!(merged[0].max.unwrap().is_nan());
    }

    #[test]
    fn a_quantity_without_rows_has_no_metric() {
        assert!(metrics(&[Moments::default().to_wire("kl")], Some(&v1::Calibration::default())).is_empty());
    }
}

//! Figures that are made in parts and put together: means with their standard errors, and the
//! calibration of a reward model. Workers fill them, one part per chunk; the coordinator merges the
//! parts in chunk order and turns them into metrics. Plain `f64` arithmetic, no tensors.

use foil_proto::v1;

/// Equal bins of the calibration figures.
pub const CALIBRATION_BINS: usize = 10;

/// Count, sum and sum of squares of a figure over rows: enough for its mean and standard error, and
/// merged by addition. With them the greatest value, where that is watched.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
    /// Of the values that were pushed watched.
    pub greatest: Option<f64>,
}

impl Moments {
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.sum_of_squares += value * value;
    }

    /// Counts a value of a figure whose greatest value matters too.
    pub fn push_watched(&mut self, value: f64) {
        self.push(value);
        self.greatest = greater(self.greatest, Some(value));
    }

    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
        self.greatest = greater(self.greatest, other.greatest);
    }

    /// `None` where nothing was counted.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Of one row, with Bessel's correction; `None` under two rows.
    pub fn standard_deviation(&self) -> Option<f64> {
        if self.count < 2 {
            return None;
        }
        let count = self.count as f64;
        let scatter = self.sum_of_squares - self.sum * self.sum / count;
        Some((scatter.max(0.0) / (count - 1.0)).sqrt())
    }

    /// Of the mean, taking the rows for independent; `None` under two rows.
    pub fn standard_error(&self) -> Option<f64> {
        self.standard_deviation().map(|deviation| deviation / (self.count as f64).sqrt())
    }

    pub fn to_wire(&self, name: &str) -> v1::Moments {
        v1::Moments {
            name: name.to_owned(),
            count: self.count,
            sum: self.sum,
            sum_of_squares: self.sum_of_squares,
            greatest: self.greatest,
        }
    }
}

/// A NaN counts as the greatest: it must not be lost.
fn greater(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    [a, b].into_iter().flatten().reduce(|a, b| if a.is_nan() || a > b { a } else { b })
}

impl From<&v1::Moments> for Moments {
    fn from(wire: &v1::Moments) -> Self {
        let v1::Moments { name: _, count, sum, sum_of_squares, greatest } = *wire;
        Self { count, sum, sum_of_squares, greatest }
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.push(value));
        moments
    }
}

/// How far predicted preference probabilities are from how often they come true.
///
/// A pair with score difference d = r(chosen) − r(rejected) counts in both orders: the prediction σ(d)
/// came true, and the prediction σ(−d) did not. Predictions fall into ten equal bins of (0, 1], closed on
/// the right (bin b holds b/10 < p ≤ (b+1)/10, and p = 0 is in the first). With n_b predictions in a bin,
/// their mean p̄_b and the part a_b of them that came true:
///
/// - ECE = Σ_b (n_b / Σ n) · |a_b − p̄_b|  (Guo et al. 2017)
/// - ACE = the plain mean of |a_b − p̄_b| over bins that hold anything, which is what the code of
///   Cheng et al. (arXiv 2311.08045) computes as its calibration error
/// - MCE = the largest |a_b − p̄_b|
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Calibration {
    bins: [Bin; CALIBRATION_BINS],
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bin {
    count: u64,
    confidence_sum: f64,
    correct: u64,
}

impl Bin {
    fn gap(&self) -> Option<f64> {
        let count = self.count as f64;
        (self.count > 0).then(|| (self.correct as f64 / count - self.confidence_sum / count).abs())
    }
}

impl Calibration {
    /// Counts a pair by its score difference r(chosen) − r(rejected), in both orders.
    pub fn push_difference(&mut self, difference: f64) {
        self.push(sigmoid(difference), true);
        self.push(sigmoid(-difference), false);
    }

    /// Counts one prediction, a probability, and whether it came true. NaN counts in the first bin.
    pub fn push(&mut self, probability: f64, came_true: bool) {
        // The edges that numpy's linspace gives, so that a probability on an edge falls as it does there.
        let index = (1..CALIBRATION_BINS).filter(|&edge| probability > edge as f64 * 0.1).count();
        let bin = &mut self.bins[index];
        bin.count += 1;
        bin.confidence_sum += probability;
        bin.correct += u64::from(came_true);
    }

    pub fn merge(&mut self, other: &Self) {
        for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
            bin.count += more.count;
            bin.confidence_sum += more.confidence_sum;
            bin.correct += more.correct;
        }
    }

    /// Predictions counted: twice the pairs.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|bin| bin.count).sum()
    }

    /// Expected calibration error; `None` where nothing was counted, as for the next two.
    pub fn ece(&self) -> Option<f64> {
        let total = self.count() as f64;
        let weighted = |bin: &Bin| bin.gap().map(|gap| gap * bin.count as f64 / total);
        (total > 0.0).then(|| self.bins.iter().filter_map(weighted).sum())
    }

    /// Calibration error averaged over bins that hold anything.
    pub fn ace(&self) -> Option<f64> {
        self.bins.iter().filter_map(Bin::gap).collect::<Moments>().mean()
    }

    /// Maximum calibration error.
    pub fn mce(&self) -> Option<f64> {
        self.bins.iter().filter_map(Bin::gap).reduce(f64::max)
    }

    pub fn to_wire(&self) -> v1::Calibration {
        v1::Calibration {
            count: self.bins.iter().map(|bin| bin.count).collect(),
            confidence_sum: self.bins.iter().map(|bin| bin.confidence_sum).collect(),
            correct: self.bins.iter().map(|bin| bin.correct).collect(),
        }
    }
}

/// Bins that the wire leaves out count as empty; more than ten are ignored.
impl From<&v1::Calibration> for Calibration {
    fn from(wire: &v1::Calibration) -> Self {
        let mut calibration = Self::default();
        for (index, bin) in calibration.bins.iter_mut().enumerate() {
            bin.count = wire.count.get(index).copied().unwrap_or_default();
            bin.confidence_sum = wire.confidence_sum.get(index).copied().unwrap_or_default();
            bin.correct = wire.correct.get(index).copied().unwrap_or_default();
        }
        calibration
    }
}

/// Adds one chunk's moments to a phase's, by name. Names keep the order in which they first come.
pub fn merge_moments(into: &mut Vec<v1::Moments>, chunk: &[v1::Moments]) {
    for more in chunk {
        match into.iter_mut().find(|moments| moments.name == more.name) {
            Some(moments) => {
                let mut sum = Moments::from(&*moments);
                sum.merge(&Moments::from(more));
                *moments = sum.to_wire(&more.name);
            }
            None => into.push(more.clone()),
        }
    }
}

/// Adds one chunk's calibration to a phase's.
pub fn merge_calibration(into: &mut v1::Calibration, chunk: &v1::Calibration) {
    let mut sum = Calibration::from(&*into);
    sum.merge(&Calibration::from(chunk));
    *into = sum.to_wire();
}

/// The metrics of a phase: each figure's mean under the figure's own name with its standard error; beside a
/// `…_mean` the rows' standard deviation as `…_sd`, and where it was watched their greatest value as `…_max`; and
/// `ece`, `ace` and `mce` where pairs were counted.
/// A figure without rows has no metric.
pub fn metrics(moments: &[v1::Moments], calibration: Option<&v1::Calibration>) -> Vec<v1::Metric> {
    let plain = |name: String, value: f64| v1::Metric { name, value, se: None };
    let mut metrics = Vec::new();
    for wire in moments {
        let figure = Moments::from(wire);
        let Some(mean) = figure.mean() else { continue };
        metrics.push(v1::Metric { name: wire.name.clone(), value: mean, se: figure.standard_error() });
        let Some(stem) = wire.name.strip_suffix("_mean") else { continue };
        let beside = [("sd", figure.standard_deviation()), ("max", figure.greatest)];
        metrics.extend(beside.into_iter().filter_map(|(name, v)| Some(plain(format!("{stem}_{name}"), v?))));
    }
    if let Some(calibration) = calibration.map(Calibration::from) {
        let errors = [("ece", calibration.ece()), ("ace", calibration.ace()), ("mce", calibration.mce())];
        let errors = errors.into_iter().filter_map(|(name, error)| Some(plain(name.to_owned(), error?)));
        metrics.extend(errors);
    }
    metrics
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let exp = x.exp();
        exp / (1.0 + exp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn moments_of_parts_are_those_of_the_whole() {
        let values = [1.5, -2.0, 0.25, 4.0, 4.0];
        let whole: Moments = values.into_iter().collect();
        let mut parts: Moments = values[..2].iter().copied().collect();
        parts.merge(&values[2..].iter().copied().collect());
        assert_eq!(whole, parts);
        assert!(close(whole.mean().unwrap(), 1.55));
        // Squares of the deviations from the mean sum to 26.3: a variance of 26.3 / 4, over 5 rows.
        assert!(close(whole.standard_error().unwrap(), (26.3f64 / 4.0 / 5.0).sqrt()));
        assert_eq!(Moments::default().mean(), None);
        assert_eq!([3.0].into_iter().collect::<Moments>().standard_error(), None);
    }

    #[test]
    fn calibration_weights_bins_by_what_they_hold() {
        let mut calibration = Calibration::default();
        // Bin (0.7, 0.8]: 4 predictions of 0.75, 3 true. Bin (0.2, 0.3]: 1 prediction of 0.3, true.
        (0..4).for_each(|row| calibration.push(0.75, row < 3));
        calibration.push(0.3, true);
        assert!(close(calibration.ece().unwrap(), 0.7 / 5.0));
        assert!(close(calibration.ace().unwrap(), 0.35));
        assert!(close(calibration.mce().unwrap(), 0.7));
    }

    #[test]
    fn both_orders_of_a_pair_count() {
        let mut calibration = Calibration::default();
        calibration.push_difference(0.0);
        assert_eq!(calibration.count(), 2);
        assert!(close(calibration.ece().unwrap(), 0.0));
        let mut sure = Calibration::default();
        sure.push_difference(800.0);
        sure.push_difference(-800.0);
        assert!(close(sure.ece().unwrap(), 0.5));
        assert_eq!(Calibration::from(&sure.to_wire()), sure);
    }

    #[test]
    fn calibration_errors_are_the_references() {
        let fixture = include_str!("../../tests/fixtures/train/calibration.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let mut calibration = Calibration::default();
        for difference in fixture["differences"].as_array().unwrap() {
            calibration.push_difference(difference.as_f64().unwrap());
        }
        assert!(close(calibration.ece().unwrap(), fixture["ece"].as_f64().unwrap()));
        assert!(close(calibration.ace().unwrap(), fixture["ace"].as_f64().unwrap()));
        assert!(close(calibration.mce().unwrap(), fixture["mce"].as_f64().unwrap()));
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
        assert_eq!(names, ["accuracy", "reward_mean", "reward_sd", "ece", "ace", "mce"]);
        assert!(close(metrics[0].value, 0.5));
        assert!(close(metrics[0].se.unwrap(), (1.0f64 / 3.0).sqrt() / 2.0));
        assert!(close(metrics[2].value, 2f64.sqrt()));
    }

    #[test]
    fn the_greatest_of_parts_is_that_of_the_whole() {
        let part = |values: &[f64]| {
            let mut moments = Moments::default();
            values.iter().for_each(|value| moments.push_watched(*value));
            moments.to_wire("drift_mean")
        };
        let mut merged = vec![part(&[0.5, 3.0])];
        merge_moments(&mut merged, &[part(&[1.0]), part(&[])]);
        let found = metrics(&merged, None);
        let names: Vec<&str> = found.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["drift_mean", "drift_sd", "drift_max"]);
        assert_eq!((found[0].value, found[2].value), (1.5, 3.0));
        merge_moments(&mut merged, &[part(&[f64::NAN])]);
        assert!(merged[0].greatest.unwrap().is_nan());
    }

    #[test]
    fn an_empty_figure_has_no_metric() {
        assert!(metrics(&[Moments::default().to_wire("kl")], Some(&v1::Calibration::default())).is_empty());
    }
}

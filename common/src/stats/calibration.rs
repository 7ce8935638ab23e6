//! The calibration of a reward model.

use foil_proto::v1;

use super::Moments;

/// Number of equal bins of predicted probability.
pub const CALIBRATION_BINS: usize = 10;

/// How far predicted preference probabilities are from the observed frequencies.
///
/// A pair with score difference d = r(chosen) − r(rejected) counts in both orders: the prediction σ(d)
/// came true, and the prediction σ(−d) did not. Predictions fall into ten equal bins of (0, 1], closed on
/// the right (bin b holds b/10 < p ≤ (b+1)/10, and p = 0 is in the first). With n_b predictions in a bin,
/// their mean p̄_b and the part a_b of them that came true:
///
/// - ECE = Σ_b (n_b / Σ n) · |a_b − p̄_b|  (Guo et al. 2017)
/// - ACE = the plain mean of |a_b − p̄_b| over bins that hold anything, which is what the code of Cheng et al.
///   (arXiv 2311.08045) computes as its calibration error
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

    /// Expected calibration error; `None` if nothing was counted, as with [`Self::ace`] and [`Self::mce`].
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

/// Adds one chunk's calibration to a phase's.
pub fn merge_calibration(into: &mut v1::Calibration, chunk: &v1::Calibration) {
    let mut sum = Calibration::from(&*into);
    sum.merge(&Calibration::from(chunk));
    *into = sum.to_wire();
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
    use crate::stats::tests::close;

    #[test]
    fn calibration_weights_bins_by_their_counts() {
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
    fn calibration_errors_equal_the_reference_values() {
        let fixture = include_str!("../../../tests/fixtures/train/calibration.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let mut calibration = Calibration::default();
        for difference in fixture["differences"].as_array().unwrap() {
            calibration.push_difference(difference.as_f64().unwrap());
        }
        assert!(close(calibration.ece().unwrap(), fixture["ece"].as_f64().unwrap()));
        assert!(close(calibration.ace().unwrap(), fixture["ace"].as_f64().unwrap()));
        assert!(close(calibration.mce().unwrap(), fixture["mce"].as_f64().unwrap()));
    }
}

//! How a reward model ranks pairs.

use foil_common::figures::{Calibration, Moments};
use foil_proto::v1;

/// Accuracy, margin, scores and calibration over pairs of (chosen, rejected) scores.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairFigures {
    accuracy: Moments,
    loss: Moments,
    margin: Moments,
    reward: Moments,
    calibration: Calibration,
}

impl PairFigures {
    /// Counts a pair. A tie is no success.
    pub fn push(&mut self, chosen: f64, rejected: f64) {
        let difference = chosen - rejected;
        self.accuracy.push(f64::from(u8::from(difference > 0.0)));
        self.loss.push((-difference).max(0.0) + (-difference.abs()).exp().ln_1p());
        self.margin.push(difference);
        self.reward.push(chosen);
        self.reward.push(rejected);
        self.calibration.push_difference(difference);
    }

    /// `accuracy`, `loss` (−log σ(r_w − r_l)), `margin_mean` (r_w − r_l) and `reward_mean` (of both answers), as named
    /// on the wire.
    pub fn moments(&self) -> Vec<v1::Moments> {
        vec![
            self.accuracy.to_wire("accuracy"),
            self.loss.to_wire("loss"),
            self.margin.to_wire("margin_mean"),
            self.reward.to_wire("reward_mean"),
        ]
    }

    pub fn calibration(&self) -> v1::Calibration {
        self.calibration.to_wire()
    }
}

#[cfg(test)]
mod tests {
    use foil_common::figures::metrics;

    use super::PairFigures;

    #[test]
    fn pairs_become_metrics() {
        let mut figures = PairFigures::default();
        figures.push(2.0, 1.0);
        figures.push(0.0, 0.0);
        figures.push(-1.0, 3.0);
        let metrics = metrics(&figures.moments(), Some(&figures.calibration()));
        let value = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().value;
        assert!((value("accuracy") - 1.0 / 3.0).abs() < 1e-12);
        let loss = [-1.0_f64, 0.0, 4.0].iter().map(|d| d.exp().ln_1p()).sum::<f64>() / 3.0;
        assert!((value("loss") - loss).abs() < 1e-12);
        assert!((value("margin_mean") + 1.0).abs() < 1e-12);
        assert!((value("reward_mean") - 5.0 / 6.0).abs() < 1e-12);
        assert!(value("ece") > 0.0);
    }
}

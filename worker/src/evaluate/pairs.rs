//! Metrics of a reward model's ranking of pairs.

use foil_common::stats::{Calibration, Cluster, ClusteredMoments};
use foil_proto::v1;

/// Accuracy, margin, scores and calibration over pairs of a chosen text and one or more rejected ones. Pairs
/// of one cluster are not treated as independent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairMetrics {
    accuracy: ClusteredMoments,
    loss: ClusteredMoments,
    margin: ClusteredMoments,
    chosen: ClusteredMoments,
    rejected: ClusteredMoments,
    reward: ClusteredMoments,
    calibration: Calibration,
}

/// 1 if the pair is ranked correctly, otherwise 0; a tie is not correct.
pub fn is_correct(chosen: f64, rejected: f64) -> f64 {
    f64::from(u8::from(chosen > rejected))
}

impl PairMetrics {
    /// Adds a pair for each rejected score, and each score once.
    pub fn push(&mut self, cluster: Cluster, chosen: f64, rejected: &[f64]) {
        self.chosen.push(cluster, chosen);
        self.reward.push(cluster, chosen);
        for &other in rejected {
            let difference = chosen - other;
            self.accuracy.push(cluster, is_correct(chosen, other));
            self.loss.push(cluster, (-difference).max(0.0) + (-difference.abs()).exp().ln_1p());
            self.margin.push(cluster, difference);
            self.rejected.push(cluster, other);
            self.reward.push(cluster, other);
            self.calibration.push_difference(difference);
        }
    }

    /// `accuracy`, `loss` (−log σ(r_w − r_l)) and `margin_mean` (r_w − r_l) over pairs, and
    /// `chosen_reward_mean`, `rejected_reward_mean` and `reward_mean` over the chosen, the rejected and all
    /// texts, with their names on the wire.
    pub fn moments(&self) -> Vec<v1::Moments> {
        let figures = [
            (&self.accuracy, "accuracy"),
            (&self.loss, "loss"),
            (&self.margin, "margin_mean"),
            (&self.chosen, "chosen_reward_mean"),
            (&self.rejected, "rejected_reward_mean"),
            (&self.reward, "reward_mean"),
        ];
        figures.into_iter().map(|(figure, name)| figure.moments().to_wire(name)).collect()
    }

    pub fn calibration(&self) -> v1::Calibration {
        self.calibration.to_wire()
    }
}

#[cfg(test)]
mod tests {
    use foil_common::stats::{Cluster, metrics};
    use foil_proto::v1;

    use super::PairMetrics;

    fn find<'a>(metrics: &'a [v1::Metric], name: &str) -> &'a v1::Metric {
        metrics.iter().find(|metric| metric.name == name).unwrap()
    }

    #[test]
    fn pairs_become_metrics() {
        let mut figures = PairMetrics::default();
        for (key, chosen, rejected) in [(0, 2.0, 1.0), (1, 0.0, 0.0), (2, -1.0, 3.0)] {
            figures.push(Cluster { key, is_open: false }, chosen, &[rejected]);
        }
        let metrics = metrics(&figures.moments(), Some(&figures.calibration()));
        let value = |name: &str| find(&metrics, name).value;
        assert!((value("accuracy") - 1.0 / 3.0).abs() < 1e-12);
        let loss = [-1.0_f64, 0.0, 4.0].iter().map(|d| d.exp().ln_1p()).sum::<f64>() / 3.0;
        assert!((value("loss") - loss).abs() < 1e-12);
        assert!((value("margin_mean") + 1.0).abs() < 1e-12);
        assert!((value("reward_mean") - 5.0 / 6.0).abs() < 1e-12);
        assert!(value("ece") > 0.0);
    }

    /// Two golden answers against two completions each, one of which loses to both.
    #[test]
    fn the_completions_against_one_golden_answer_are_one_cluster() {
        let mut figures = PairMetrics::default();
        figures.push(Cluster { key: 4, is_open: false }, 3.0, &[1.0, 2.0]);
        figures.push(Cluster { key: 5, is_open: false }, 0.0, &[1.0, 2.0]);
        let metrics = metrics(&figures.moments(), None);
        // Residuals ±1/2 twice in each cluster: √(2/1 · (1 + 1)) / 4. Independent rows would give √(1/12).
        let accuracy = find(&metrics, "accuracy");
        assert!((accuracy.value, accuracy.se.unwrap()) == (0.5, 0.5), "{accuracy:?}");
        // A golden answer's score counts once, no matter how many completions it is compared with.
        let chosen = find(&metrics, "chosen_reward_mean");
        assert!((chosen.value, chosen.se.unwrap()) == (1.5, 1.5), "{chosen:?}");
        assert_eq!(find(&metrics, "rejected_reward_mean").value, 1.5);
        assert_eq!(find(&metrics, "reward_mean").value, 9.0 / 6.0);
    }
}

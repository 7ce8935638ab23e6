//! Mergeable statistics: means with their standard errors, the diversity of completions, and the calibration
//! of a reward model. Workers compute one part per chunk; the coordinator merges the parts in chunk order and
//! turns them into metrics. Plain `f64` arithmetic, no tensors.

mod calibration;
mod clusters;
mod distinct;
mod metrics;
mod rate;

use foil_proto::v1;

pub use calibration::{CALIBRATION_BINS, Calibration, merge_calibration};
pub use clusters::{Cluster, ClusteredMoments, Clusters};
pub use distinct::{DISTINCT_KEPT, Distinct};
pub use metrics::{
    ACCURACY_CHANGE, DUPLICATES, GOLD_STEP, REWARD_DIFFERENCE, REWARD_GAIN, REWARD_STEP, START_REWARD,
    group_accuracy, is_rate, metrics,
};
pub use rate::wilson_interval;

/// Prefixes of metrics measured on the rows that select the best round, and on the rows that it is reported
/// on.
pub const SELECTION: &str = "selection_";
pub const REPORT: &str = "report_";

/// Minimum number of rows to split in two: with fewer, neither half would be informative.
pub const MIN_SPLIT_ROWS: u64 = 40;

/// The half of a set of `rows` that a row is in. The best of several rounds must not be selected on the rows
/// that it is reported on, or the luckiest round would look like the best one. `id` comes from the row's
/// content, and so does its half.
pub fn half_of(id: u64, rows: u64) -> Option<&'static str> {
    (rows >= MIN_SPLIT_ROWS).then_some(if id.is_multiple_of(2) { SELECTION } else { REPORT })
}

/// Count, sum and sum of squares of a quantity over rows: enough for its mean and standard error, and merged
/// by addition. Also its maximum, if that is tracked, and the sums of clusters, if rows come in clusters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
    /// Maximum of the values counted by [`Moments::push_with_max`].
    pub max: Option<f64>,
    /// `None` if each row is a separate cluster.
    pub clusters: Option<Clusters>,
}

impl Moments {
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.sum_of_squares += value * value;
    }

    /// Counts a value of a quantity whose maximum matters too.
    pub fn push_with_max(&mut self, value: f64) {
        self.push(value);
        self.max = max(self.max, Some(value));
    }

    pub fn merge(&mut self, other: &Self) {
        if self.clusters.is_some() || other.clusters.is_some() {
            let mut clusters = self.clusters_or_rows();
            clusters.merge(&other.clusters_or_rows());
            self.clusters = Some(clusters);
        }
        self.count += other.count;
        self.sum += other.sum;
        self.sum_of_squares += other.sum_of_squares;
        self.max = max(self.max, other.max);
    }

    /// `None` if nothing was counted.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    /// Standard deviation of a row, with Bessel's correction; `None` under two rows.
    pub fn standard_deviation(&self) -> Option<f64> {
        if self.count < 2 {
            return None;
        }
        let count = self.count as f64;
        let scatter = self.sum_of_squares - self.sum * self.sum / count;
        Some((scatter.max(0.0) / (count - 1.0)).sqrt())
    }

    /// Standard error of the mean. Clusters are independent; rows of one cluster may depend on each other in
    /// any way. `None` under two clusters. If each row is a separate cluster, it is the standard deviation
    /// over √count.
    pub fn standard_error(&self) -> Option<f64> {
        match &self.clusters {
            Some(clusters) => clusters.standard_error(self.count, self.sum),
            None => self.standard_deviation().map(|deviation| deviation / (self.count as f64).sqrt()),
        }
    }

    fn clusters_or_rows(&self) -> Clusters {
        self.clusters.clone().unwrap_or_else(|| Clusters::of_rows(self.count, self.sum, self.sum_of_squares))
    }

    pub fn to_wire(&self, name: &str) -> v1::Moments {
        v1::Moments {
            name: name.to_owned(),
            count: self.count,
            sum: self.sum,
            sum_of_squares: self.sum_of_squares,
            max: self.max,
            clusters: self.clusters.as_ref().map(Clusters::to_wire),
            distinct: None,
        }
    }
}

/// The maximum, where NaN exceeds every number: it must not be lost.
fn max(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    [a, b].into_iter().flatten().reduce(|a, b| if a.is_nan() || a > b { a } else { b })
}

impl From<&v1::Moments> for Moments {
    fn from(wire: &v1::Moments) -> Self {
        let v1::Moments { count, sum, sum_of_squares, max, .. } = *wire;
        Self { count, sum, sum_of_squares, max, clusters: wire.clusters.as_ref().map(Clusters::from) }
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.push(value));
        moments
    }
}

/// Adds one chunk's moments to a phase's, by name. Names keep the order in which they first appear.
pub fn merge_moments(into: &mut Vec<v1::Moments>, chunk: &[v1::Moments]) {
    for more in chunk {
        match into.iter_mut().find(|moments| moments.name == more.name) {
            Some(moments) => {
                let mut sum = Moments::from(&*moments);
                sum.merge(&Moments::from(more));
                let distinct = merge_distinct(moments.distinct.as_ref(), more.distinct.as_ref());
                *moments = v1::Moments { distinct, ..sum.to_wire(&more.name) };
            }
            None => into.push(more.clone()),
        }
    }
}

fn merge_distinct(
    a: Option<&v1::DistinctValues>,
    b: Option<&v1::DistinctValues>,
) -> Option<v1::DistinctValues> {
    let sets = [a, b].into_iter().flatten().map(Distinct::from);
    let merged = sets.reduce(|mut a, b| {
        a.merge(&b);
        a
    });
    merged.as_ref().map(Distinct::to_wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn close(a: f64, b: f64) -> bool {
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
}

//! Rows that are not independent: the samples of one golden answer, the pairs of one prompt.
//!
//! The mean of all rows is m = Σ_g s_g / Σ_g n_g over clusters g with n_g rows that sum to s_g. Its
//! cluster-robust standard error (linearized ratio, as in survey packages and "CR1" sandwich estimators) is
//!
//! ```text
//! √( G/(G−1) · Σ_g (s_g − m·n_g)² ) / Σ_g n_g
//! ```
//!
//! which for clusters of one row is the usual one. The sums Σ_g s_g², Σ_g n_g·s_g and Σ_g n_g² suffice for it
//! and merge by addition. A cluster whose rows are in several chunks is kept by its key until all chunks have
//! arrived.

use std::collections::BTreeMap;

use foil_proto::v1;

use super::Moments;

/// The cluster that a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    pub key: u64,
    /// Whether other chunks also hold rows of it.
    pub is_open: bool,
}

/// Sum over the rows of one cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct ClusterSum {
    count: u64,
    sum: f64,
}

/// Sums over clusters, to be merged by addition.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clusters {
    closed: Sums,
    open: BTreeMap<u64, ClusterSum>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    clusters: u64,
    /// Σ s².
    squared_sums: f64,
    /// Σ n·s.
    sums_by_count: f64,
    /// Σ n².
    squared_counts: f64,
}

impl Sums {
    fn push(&mut self, part: &ClusterSum) {
        let count = part.count as f64;
        self.clusters += 1;
        self.squared_sums += part.sum * part.sum;
        self.sums_by_count += count * part.sum;
        self.squared_counts += count * count;
    }
}

impl Clusters {
    /// The sums if each row is a separate cluster.
    pub(super) fn of_rows(count: u64, sum: f64, sum_of_squares: f64) -> Self {
        let closed = Sums {
            clusters: count,
            squared_sums: sum_of_squares,
            sums_by_count: sum,
            squared_counts: count as f64,
        };
        Self { closed, open: BTreeMap::new() }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        let (closed, more) = (&mut self.closed, &other.closed);
        closed.clusters += more.clusters;
        closed.squared_sums += more.squared_sums;
        closed.sums_by_count += more.sums_by_count;
        closed.squared_counts += more.squared_counts;
        for (key, part) in &other.open {
            let whole = self.open.entry(*key).or_default();
            whole.count += part.count;
            whole.sum += part.sum;
        }
    }

    /// The sums of all clusters, treating open ones as complete.
    fn all(&self) -> Sums {
        let mut all = self.closed;
        self.open.values().for_each(|part| all.push(part));
        all
    }

    pub(super) fn count(&self) -> u64 {
        self.closed.clusters + self.open.len() as u64
    }

    /// Standard error of the mean of `count` rows that sum to `sum`; `None` under two clusters.
    pub(super) fn standard_error(&self, count: u64, sum: f64) -> Option<f64> {
        let Sums { clusters, squared_sums, sums_by_count, squared_counts } = self.all();
        if clusters < 2 {
            return None;
        }
        let (clusters, count) = (clusters as f64, count as f64);
        let mean = sum / count;
        let scatter = squared_sums - 2.0 * mean * sums_by_count + mean * mean * squared_counts;
        Some((clusters / (clusters - 1.0) * scatter.max(0.0)).sqrt() / count)
    }

    pub(super) fn to_wire(&self) -> v1::Clusters {
        let Sums { clusters, squared_sums, sums_by_count, squared_counts } = self.closed;
        let open = self.open.iter().map(|(&key, &ClusterSum { count, sum })| v1::Cluster { key, count, sum });
        v1::Clusters { count: clusters, squared_sums, sums_by_count, squared_counts, open: open.collect() }
    }
}

impl From<&v1::Clusters> for Clusters {
    fn from(wire: &v1::Clusters) -> Self {
        let v1::Clusters { count, squared_sums, sums_by_count, squared_counts, .. } = *wire;
        let closed = Sums { clusters: count, squared_sums, sums_by_count, squared_counts };
        let open = wire.open.iter().map(|part| (part.key, ClusterSum { count: part.count, sum: part.sum }));
        Self { closed, open: open.collect() }
    }
}

/// Collects one quantity over rows in clusters, which may come in any order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClusteredMoments {
    rows: Moments,
    closed: BTreeMap<u64, ClusterSum>,
    open: BTreeMap<u64, ClusterSum>,
}

impl ClusteredMoments {
    pub fn push(&mut self, cluster: Cluster, value: f64) {
        self.rows.push(value);
        let parts = if cluster.is_open { &mut self.open } else { &mut self.closed };
        let part = parts.entry(cluster.key).or_default();
        part.count += 1;
        part.sum += value;
    }

    pub fn moments(&self) -> Moments {
        let mut closed = Sums::default();
        self.closed.values().for_each(|part| closed.push(part));
        Moments { clusters: Some(Clusters { closed, open: self.open.clone() }), ..self.rows.clone() }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha12Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;
    use crate::stats::{merge_moments, metrics};

    /// Rows (cluster, value) as one quantity, the first `cut` of them in a separate chunk.
    fn in_two_chunks(name: &str, rows: &[(u64, f64)], cut: usize) -> Vec<v1::Moments> {
        let mut merged = Vec::new();
        for (chunk, others) in [(&rows[..cut], &rows[cut..]), (&rows[cut..], &rows[..cut])] {
            let mut moments = ClusteredMoments::default();
            for &(key, value) in chunk {
                let is_open = others.iter().any(|(other, _)| *other == key);
                moments.push(Cluster { key, is_open }, value);
            }
            merge_moments(&mut merged, &[moments.moments().to_wire(name)]);
        }
        merged
    }

    #[test]
    fn standard_errors_and_intervals_equal_the_reference_however_chunks_cut_the_clusters() {
        let fixture = include_str!("../../../tests/fixtures/stats/clusters.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        for case in fixture.as_array().unwrap() {
            let numbers = |name: &str| {
                let list = case[name].as_array().unwrap().iter();
                list.map(|number| number.as_f64().unwrap()).collect::<Vec<_>>()
            };
            let keys = numbers("cluster");
            let rows: Vec<(u64, f64)> = keys.iter().map(|key| *key as u64).zip(numbers("value")).collect();
            for cut in [0, 1, rows.len() / 3, rows.len() / 2, rows.len()] {
                let found = metrics(&in_two_chunks("accuracy", &rows, cut), None);
                let of = |name: &str| found.iter().find(|metric| metric.name == name).unwrap();
                let near = |found: f64, name: &str| {
                    let expected = case[name].as_f64().unwrap();
                    assert!((found - expected).abs() < 1e-9, "{} cut at {cut}: {name} {found}", case["name"]);
                };
                near(of("accuracy").value, "mean");
                match case["se"].as_f64() {
                    Some(_) => near(of("accuracy").se.unwrap(), "se"),
                    None => assert_eq!(of("accuracy").se, None, "{}", case["name"]),
                }
                near(of("accuracy_low").value, "low");
                near(of("accuracy_high").value, "high");
            }
        }
    }

    #[test]
    fn clusters_of_one_row_are_rows() {
        let values = [1.5, -2.0, 0.25, 4.0, 4.0];
        let rows: Moments = values.into_iter().collect();
        let mut clustered = ClusteredMoments::default();
        for (key, value) in (0..).zip(values) {
            clustered.push(Cluster { key, is_open: false }, value);
        }
        let clustered = clustered.moments();
        assert!((rows.standard_error().unwrap() - clustered.standard_error().unwrap()).abs() < 1e-12);
        // Moments of both kinds merge, whichever comes first.
        for (mut first, second) in [(rows.clone(), clustered.clone()), (clustered, rows)] {
            first.merge(&second);
            let expected: Moments = values.into_iter().chain(values).collect();
            assert!((first.standard_error().unwrap() - expected.standard_error().unwrap()).abs() < 1e-12);
        }
        let mut alone = ClusteredMoments::default();
        (0..4).for_each(|value| alone.push(Cluster { key: 7, is_open: false }, f64::from(value)));
        assert_eq!(alone.moments().standard_error(), None, "one cluster says nothing about others");
    }

    fn fraction(random: &mut ChaCha12Rng) -> f64 {
        (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Golden answers of different difficulty with four samples each: how often the interval holds the true
    /// share.
    fn coverage(golden: u64, spread: f64, covers: impl Fn(&[v1::Metric]) -> bool) -> f64 {
        let mut random = ChaCha12Rng::seed_from_u64(11);
        let trials = 2000;
        let covered = (0..trials).filter(|_| {
            let mut moments = ClusteredMoments::default();
            for key in 0..golden {
                let share = 0.8 + spread * if fraction(&mut random) < 0.5 { 1.0 } else { -1.0 };
                for _ in 0..4 {
                    let won = fraction(&mut random) < share;
                    moments.push(Cluster { key, is_open: false }, f64::from(u8::from(won)));
                }
            }
            covers(&metrics(&[moments.moments().to_wire("accuracy")], None))
        });
        covered.count() as f64 / f64::from(trials)
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let value = |metrics: &[v1::Metric], name: &str| {
            metrics.iter().find(|metric| metric.name == name).map_or(f64::NAN, |metric| metric.value)
        };
        let wilson = |metrics: &[v1::Metric]| {
            value(metrics, "accuracy_low") <= 0.8 && 0.8 <= value(metrics, "accuracy_high")
        };
        for (golden, spread) in [(12, 0.0), (12, 0.2), (100, 0.2), (100, 0.0)] {
            let found = coverage(golden, spread, wilson);
            assert!((0.92..0.985).contains(&found), "{golden} golden answers, spread {spread}: {found}");
        }
        let by_error = |metrics: &[v1::Metric]| {
            let accuracy = metrics.iter().find(|metric| metric.name == "accuracy").unwrap();
            accuracy.se.is_some_and(|se| (accuracy.value - 0.8).abs() < 1.96 * se)
        };
        assert!((0.92..0.97).contains(&coverage(100, 0.2, by_error)));
        // Treating rows as independent overstates the certainty.
        let naive = |metrics: &[v1::Metric]| {
            let accuracy = value(metrics, "accuracy");
            (accuracy - 0.8).abs() < 1.96 * (accuracy * (1.0 - accuracy) / 399.0).sqrt()
        };
        assert!(coverage(100, 0.2, naive) < 0.92);
    }
}

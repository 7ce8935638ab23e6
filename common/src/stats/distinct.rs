//! The fraction of distinct values, over chunks that cannot see each other's values.

use std::collections::BTreeMap;

use foil_proto::v1;

/// Number of distinct values kept. Up to this number the fraction is exact; beyond it, the relative error is
/// about 3 %.
pub const DISTINCT_KEPT: usize = 1024;

/// A KMV (k minimum values) sketch: the distinct values of the lowest hashes, with their counts. Sketches
/// merge exactly, since a value among the lowest of the whole is among the lowest of every part that contains
/// it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distinct(BTreeMap<u32, u32>);

impl Distinct {
    /// Counts a value by its bytes.
    pub fn push(&mut self, value: &[u8]) {
        let mut low = [0; 4];
        low.copy_from_slice(&blake3::hash(value).as_bytes()[..4]);
        self.add(u32::from_le_bytes(low), 1);
    }

    fn add(&mut self, hash: u32, count: u32) {
        let whole = self.0.entry(hash).or_default();
        *whole = whole.saturating_add(count);
        if self.0.len() > DISTINCT_KEPT {
            self.0.pop_last();
        }
    }

    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(&hash, &count)| self.add(hash, count));
    }

    /// Distinct values as a fraction of all; `None` if there are none.
    pub fn fraction(&self) -> Option<f64> {
        let all: u64 = self.0.values().map(|&count| u64::from(count)).sum();
        (all > 0).then(|| self.0.len() as f64 / all as f64)
    }

    pub fn to_wire(&self) -> v1::DistinctValues {
        v1::DistinctValues {
            hash: self.0.keys().copied().collect(),
            count: self.0.values().copied().collect(),
        }
    }

    /// The wire form under a metric's name.
    pub fn to_moments(&self, name: &str) -> v1::Moments {
        v1::Moments { name: name.to_owned(), distinct: Some(self.to_wire()), ..Default::default() }
    }
}

impl From<&v1::DistinctValues> for Distinct {
    fn from(wire: &v1::DistinctValues) -> Self {
        let mut distinct = Self::default();
        wire.hash.iter().zip(&wire.count).for_each(|(&hash, &count)| distinct.add(hash, count));
        distinct
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{DUPLICATES, merge_moments, metrics};

    fn of(values: impl Iterator<Item = u64>) -> Distinct {
        let mut distinct = Distinct::default();
        values.for_each(|value| distinct.push(&value.to_le_bytes()));
        distinct
    }

    #[test]
    fn values_are_counted_across_chunks() {
        let mut merged = Vec::new();
        for chunk in [[1, 2, 3, 3], [3, 4, 1, 5]] {
            merge_moments(&mut merged, &[of(chunk.into_iter()).to_moments(DUPLICATES)]);
        }
        merge_moments(&mut merged, &[of([7, 7, 8].into_iter()).to_moments("distinct_2")]);
        let found = metrics(&merged, None);
        assert_eq!((found[0].name.as_str(), found[0].value, found[0].se), (DUPLICATES, 3.0 / 8.0, None));
        assert_eq!((found[1].name.as_str(), found[1].value), ("distinct_2", 2.0 / 3.0));
        assert!(metrics(&[Distinct::default().to_moments(DUPLICATES)], None).is_empty());
    }

    #[test]
    fn the_sketch_of_many_values_does_not_depend_on_the_chunks() {
        let all = of(0..50_000);
        assert_eq!((all.0.len(), all.fraction()), (DISTINCT_KEPT, Some(1.0)), "nothing repeats");
        // Value v comes v mod 4 + 1 times: 2.5 times on average.
        let values = || (0..40_000u64).flat_map(|value| std::iter::repeat_n(value, value as usize % 4 + 1));
        let whole = of(values());
        assert!((whole.fraction().unwrap() - 0.4).abs() < 0.4 * 0.05, "{:?}", whole.fraction());
        let mut merged = of(values().filter(|value| value % 3 == 0));
        merged.merge(&of(values().filter(|value| value % 3 != 0)));
        assert_eq!(merged, whole);
        let halves = values().collect::<Vec<_>>();
        let mut merged = of(halves[33_333..].iter().copied());
        merged.merge(&of(halves[..33_333].iter().copied()));
        assert_eq!(merged, whole);
    }
}

//! The order of a phase's rows, which is a function of (seed, round, epoch) alone.

use std::ops::Range;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The seed and round that determine a phase's order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderKey {
    /// The job's seed.
    pub seed: u64,
    /// The round; 0 before the first.
    pub round: u32,
}

/// Splits one epoch over several sets into global batches of `batch` rows; the last one may be smaller.
///
/// Row numbers count through the sets: the first has rows 0 … n₀ − 1, the next n₀ … n₀ + n₁ − 1. Every row
/// occurs exactly once. Each set is shuffled separately (Fisher–Yates, ChaCha12). The sets are then
/// interleaved in fixed proportion: row j of a shuffled set of n rows is at (j + ½)/n of the epoch, and ties
/// go to the earlier set. So any k consecutive rows contain k·n/Σn rows of a set of n rows, within one row
/// for two sets.
///
/// Ranks, lengths and token budgets have no influence, so global batches are the same on any number of
/// machines.
pub fn global_batches(key: OrderKey, epoch: u32, sets: &[usize], batch: usize) -> Vec<Vec<usize>> {
    let mut positioned = Vec::with_capacity(sets.iter().sum());
    let mut first = 0;
    for (set, &rows) in sets.iter().enumerate() {
        for (place, row) in shuffled(first..first + rows, generator(key, epoch, set)).into_iter().enumerate()
        {
            positioned.push(PositionedRow {
                numerator: 2 * place as u128 + 1,
                denominator: rows as u128,
                set,
                row,
            });
        }
        first += rows;
    }
    positioned.sort_by(PositionedRow::compare);
    let rows: Vec<usize> = positioned.into_iter().map(|positioned| positioned.row).collect();
    rows.chunks(batch.max(1)).map(<[usize]>::to_vec).collect()
}

/// A row at numerator / (2 · denominator) of its epoch.
struct PositionedRow {
    numerator: u128,
    denominator: u128,
    set: usize,
    row: usize,
}

impl PositionedRow {
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let (own, others) = (self.numerator * other.denominator, other.numerator * self.denominator);
        own.cmp(&others).then(self.set.cmp(&other.set))
    }
}

/// ChaCha12 with a key of 8 bytes of the seed and 4 bytes each of round, epoch and set, all little-endian,
/// then `foil.order` and zeros.
fn generator(key: OrderKey, epoch: u32, set: usize) -> ChaCha12Rng {
    let mut bytes = [0; 32];
    bytes[0..8].copy_from_slice(&key.seed.to_le_bytes());
    bytes[8..12].copy_from_slice(&key.round.to_le_bytes());
    bytes[12..16].copy_from_slice(&epoch.to_le_bytes());
    bytes[16..20].copy_from_slice(&(set as u32).to_le_bytes());
    bytes[20..30].copy_from_slice(b"foil.order");
    ChaCha12Rng::from_seed(bytes)
}

/// A Fisher–Yates shuffle, implemented here so that a new version of a library cannot change a job's order.
fn shuffled(rows: Range<usize>, mut random: ChaCha12Rng) -> Vec<usize> {
    let mut rows: Vec<usize> = rows.collect();
    for last in (1..rows.len()).rev() {
        let chosen = below(&mut random, last as u64 + 1) as usize;
        rows.swap(last, chosen);
    }
    rows
}

/// A uniform number below `bound`. Unbiased, because it rejects numbers beyond the last complete multiple of
/// `bound` below 2⁶⁴.
fn below(random: &mut ChaCha12Rng, bound: u64) -> u64 {
    let reject_from = u64::MAX - u64::MAX % bound;
    loop {
        let draw = random.next_u64();
        if draw < reject_from {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{OrderKey, global_batches};

    const KEY: OrderKey = OrderKey { seed: 17, round: 2 };

    proptest! {
        #[test]
        fn every_row_occurs_once_in_fixed_proportion(human in 0usize..200, golden in 0usize..200, batch in 1usize..40) {
            let batches = global_batches(KEY, 0, &[human, golden], batch);
            let mut rows: Vec<usize> = batches.concat();
            prop_assert_eq!(batches.len(), (human + golden).div_ceil(batch));
            for (index, rows) in batches.iter().enumerate() {
                prop_assert!(rows.len() == batch || index + 1 == batches.len());
                let share = rows.len() as f64 * human as f64 / (human + golden) as f64;
                let found = rows.iter().filter(|&&row| row < human).count() as f64;
                prop_assert!((found - share).abs() <= 1.0, "{} human rows, {} expected", found, share);
            }
            rows.sort_unstable();
            prop_assert!(rows.into_iter().eq(0..human + golden));
        }
    }

    #[test]
    fn seed_round_and_epoch_each_change_the_order() {
        let order = |key, epoch| global_batches(key, epoch, &[50], 50).concat();
        let first = order(KEY, 0);
        assert_eq!(first, order(KEY, 0));
        assert_ne!(first, order(KEY, 1));
        assert_ne!(first, order(OrderKey { round: 3, ..KEY }, 0));
        assert_ne!(first, order(OrderKey { seed: 18, ..KEY }, 0));
    }

    #[test]
    fn a_set_keeps_its_order_whatever_it_is_mixed_with() {
        let single = global_batches(KEY, 1, &[20], 20).concat();
        let mixed = global_batches(KEY, 1, &[20, 7], 27).concat();
        let kept: Vec<usize> = mixed.into_iter().filter(|&row| row < 20).collect();
        assert_eq!(single, kept);
    }
}

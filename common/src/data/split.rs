//! Seeded limits and hold-outs. The selection depends on the rows' content, the seed and the purpose only,
//! never on the order of the files; selected rows keep that order.

use super::rows::{PromptKey, Row};
use std::collections::{BTreeSet, HashSet};

/// The first `limit` rows in the pseudo-random order of (seed, purpose); all of them for `None`.
pub fn take<T: Row>(rows: Vec<T>, limit: Option<usize>, seed: u64, purpose: &str) -> Vec<T> {
    let Some(limit) = limit.filter(|&limit| limit < rows.len()) else {
        return rows;
    };
    let kept = draw(rows.iter().map(Row::id), Some(limit), seed, purpose);
    rows.into_iter().filter(|row| kept.contains(&row.id())).collect()
}

/// The first `limit` of some rows' ids in the pseudo-random order of (seed, purpose); all of them for `None`.
pub fn draw(
    ids: impl IntoIterator<Item = u64>,
    limit: Option<usize>,
    seed: u64,
    purpose: &str,
) -> HashSet<u64> {
    let Some(limit) = limit else { return ids.into_iter().collect() };
    let lottery = Lottery::new(seed, purpose);
    let mut drawn: Vec<_> = ids.into_iter().map(|id| (lottery.of_row(id), id)).collect();
    drawn.sort_unstable();
    drawn.truncate(limit);
    drawn.into_iter().map(|(_, id)| id).collect()
}

/// Splits off the rows of `fraction` of the distinct prompts: (rest, held out). All rows of a prompt stay on
/// one side. A fraction above 0 holds out at least one prompt and leaves at least one, if there are two.
pub fn hold_out<T: Row>(rows: Vec<T>, fraction: f64, seed: u64, purpose: &str) -> (Vec<T>, Vec<T>) {
    let prompts: BTreeSet<PromptKey> = rows.iter().map(|row| row.prompt().key()).collect();
    if prompts.len() < 2 || fraction.is_nan() || fraction <= 0.0 {
        return (rows, Vec::new());
    }
    let count = ((fraction * prompts.len() as f64).round() as usize).clamp(1, prompts.len() - 1);
    let lottery = Lottery::new(seed, purpose);
    let mut drawn: Vec<_> = prompts.into_iter().map(|key| (lottery.ticket(&key.0), key)).collect();
    drawn.sort_unstable();
    let held: HashSet<PromptKey> = drawn[..count].iter().map(|(_, key)| *key).collect();
    rows.into_iter().partition(|row| !held.contains(&row.prompt().key()))
}

/// A pseudo-random order of byte strings: BLAKE3 keyed by (seed, purpose).
#[derive(Debug)]
pub struct Lottery {
    key: [u8; 32],
}

impl Lottery {
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("foil data split v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(purpose.as_bytes());
        Lottery { key: *hasher.finalize().as_bytes() }
    }

    /// The place of a row in the order, by its id.
    pub fn of_row(&self, id: u64) -> [u8; 32] {
        self.ticket(&id.to_le_bytes())
    }

    fn ticket(&self, item: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.key, item).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::{PairRow, Prompt, PromptRow, assign_ids};

    fn prompts(count: usize) -> Vec<PromptRow> {
        let mut rows: Vec<_> =
            (0..count).map(|n| PromptRow { id: 0, prompt: Prompt::user(n.to_string()) }).collect();
        assign_ids(&mut rows);
        rows
    }

    #[test]
    fn a_limit_takes_the_same_rows_whatever_their_order() {
        let rows = prompts(100);
        let mut reversed = rows.clone();
        reversed.reverse();
        let taken = take(rows.clone(), Some(10), 3, "prompts");
        let mut other = take(reversed, Some(10), 3, "prompts");
        other.reverse();
        assert_eq!(taken, other);
        assert_eq!(taken.len(), 10);
        assert_ne!(taken, take(rows.clone(), Some(10), 4, "prompts"));
        assert_ne!(taken, take(rows.clone(), Some(10), 3, "golden"));
        assert_eq!(take(rows.clone(), Some(100), 3, "prompts"), rows);
        assert_eq!(take(rows.clone(), None, 3, "prompts"), rows);
        // A smaller limit takes a subset of a larger one's rows.
        let fewer = take(rows, Some(4), 3, "prompts");
        assert!(fewer.iter().all(|row| taken.contains(row)));
    }

    #[test]
    fn a_hold_out_keeps_the_pairs_of_a_prompt_together() {
        let mut rows: Vec<_> = (0..200)
            .map(|n| PairRow {
                id: 0,
                prompt: Prompt::user((n % 50).to_string()),
                chosen: n.to_string(),
                rejected: "no".into(),
                margin: None,
                groups: Vec::new(),
            })
            .collect();
        assign_ids(&mut rows);
        let (rest, held) = hold_out(rows.clone(), 0.1, 7, "holdout");
        assert_eq!((rest.len(), held.len()), (180, 20));
        let prompts = |rows: &[PairRow]| rows.iter().map(|row| row.prompt.key()).collect::<BTreeSet<_>>();
        assert_eq!((prompts(&rest).len(), prompts(&held).len()), (45, 5));
        assert!(prompts(&rest).is_disjoint(&prompts(&held)));
        assert!(hold_out(rows.clone(), 0.0, 7, "holdout").1.is_empty());
        assert_eq!(hold_out(rows.clone(), 0.0001, 7, "holdout").1.len(), 4);
        assert_eq!(hold_out(rows, 0.9999, 7, "holdout").0.len(), 4);
    }
}

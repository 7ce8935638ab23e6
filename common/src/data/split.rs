//! Seeded limits and hold-outs. The selection depends on the rows' content, the seed and the purpose only,
//! never on the order of the files; selected rows keep that order.

use super::row_set::RowSet;
use super::rows::Row;

/// Keeps the first `limit` rows in the pseudo-random order of (seed, purpose); all of them for `None`.
pub fn take<T: Row>(rows: &mut RowSet<T>, limit: Option<usize>, seed: u64, purpose: &str) {
    if let Some(limit) = limit.filter(|&limit| limit < rows.len()) {
        let lottery = Lottery::new(seed, purpose);
        let drawn = lottery.draw(rows.ids().map(|id| lottery.of_row(id)).collect(), limit);
        rows.retain(|_, id| drawn.has(&lottery.of_row(id)));
    }
}

/// Splits off the rows of `fraction` of the distinct prompts: (rest, held out). All rows of a prompt stay on
/// one side. A fraction above 0 holds out at least one prompt and leaves at least one, if there are two.
pub fn hold_out<T: Row>(rows: RowSet<T>, fraction: f64, seed: u64, purpose: &str) -> (RowSet<T>, RowSet<T>) {
    let lottery = Lottery::new(seed, purpose);
    // Prompts are equal if their tickets are.
    let mut prompts: Vec<Ticket> = rows.lines().keys().map(|key| lottery.ticket(&key.0)).collect();
    prompts.sort_unstable();
    prompts.dedup();
    if prompts.len() < 2 || fraction.is_nan() || fraction <= 0.0 {
        return (rows, RowSet::default());
    }
    let count = ((fraction * prompts.len() as f64).round() as usize).clamp(1, prompts.len() - 1);
    let held = lottery.draw(prompts, count);
    rows.partition(|key| held.has(&lottery.ticket(&key.0)))
}

/// The place of an item in a pseudo-random order.
pub type Ticket = [u8; 32];

/// The items that were drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// The last ticket among them; `None` if there are none.
    last: Option<Ticket>,
}

impl Drawn {
    pub fn has(&self, ticket: &Ticket) -> bool {
        self.last.is_some_and(|last| *ticket <= last)
    }
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
    pub fn of_row(&self, id: u64) -> Ticket {
        self.ticket(&id.to_le_bytes())
    }

    /// Draws the first `count` of some tickets.
    pub fn draw(&self, mut tickets: Vec<Ticket>, count: usize) -> Drawn {
        let last = match count.min(tickets.len()) {
            0 => None,
            count => Some(*tickets.select_nth_unstable(count - 1).1),
        };
        Drawn { last }
    }

    fn ticket(&self, item: &[u8]) -> Ticket {
        *blake3::keyed_hash(&self.key, item).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::rows::{PairRow, Prompt, PromptRow, assign_ids};

    fn prompts(count: usize) -> Vec<PromptRow> {
        let mut rows: Vec<_> =
            (0..count).map(|n| PromptRow { id: 0, prompt: Prompt::user(n.to_string()) }).collect();
        assign_ids(&mut rows);
        rows
    }

    fn taken(rows: &[PromptRow], limit: Option<usize>, seed: u64, purpose: &str) -> Vec<PromptRow> {
        let mut set = RowSet::of(rows.to_vec()).unwrap();
        take(&mut set, limit, seed, purpose);
        set.to_vec().unwrap()
    }

    #[test]
    fn a_limit_takes_the_same_rows_whatever_their_order() {
        let rows = prompts(100);
        let mut reversed = rows.clone();
        reversed.reverse();
        let ten = taken(&rows, Some(10), 3, "prompts");
        let mut other = taken(&reversed, Some(10), 3, "prompts");
        other.reverse();
        assert_eq!(ten, other);
        assert_eq!(ten.len(), 10);
        assert_ne!(ten, taken(&rows, Some(10), 4, "prompts"));
        assert_ne!(ten, taken(&rows, Some(10), 3, "golden"));
        assert_eq!(taken(&rows, Some(100), 3, "prompts"), rows);
        assert_eq!(taken(&rows, None, 3, "prompts"), rows);
        assert!(taken(&rows, Some(0), 3, "prompts").is_empty());
        // A smaller limit takes a subset of a larger one's rows.
        let fewer = taken(&rows, Some(4), 3, "prompts");
        assert!(fewer.iter().all(|row| ten.contains(row)));
        // The order is that of the keyed hashes.
        let lottery = Lottery::new(3, "prompts");
        let mut sorted = rows;
        sorted.sort_by_key(|row| lottery.of_row(row.id));
        assert!(ten.iter().all(|row| sorted[..10].contains(row)));
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
        let rows = RowSet::of(rows).unwrap();
        let (rest, held) = hold_out(rows.clone(), 0.1, 7, "holdout");
        assert_eq!((rest.len(), held.len()), (180, 20));
        let prompts = |rows: &RowSet<PairRow>| {
            rows.iter().map(|row| row.unwrap().prompt.key()).collect::<BTreeSet<_>>()
        };
        assert_eq!((prompts(&rest).len(), prompts(&held).len()), (45, 5));
        assert!(prompts(&rest).is_disjoint(&prompts(&held)));
        assert!(hold_out(rows.clone(), 0.0, 7, "holdout").1.is_empty());
        assert_eq!(hold_out(rows.clone(), 0.0001, 7, "holdout").1.len(), 4);
        assert_eq!(hold_out(rows, 0.9999, 7, "holdout").0.len(), 4);
    }
}

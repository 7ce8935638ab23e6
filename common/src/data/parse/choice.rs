//! The choice of a set's rows while its files are read, so that few rows of large files take little memory.

use super::places::Origin;
use super::{Budget, Unkept};
use crate::data::row_set::{Entry, RowSet, RowWriter, SpillError};
use crate::data::rows::{Row, content_id};

/// Number and size of the rows that are offered to a choice together.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: u64 = 8 << 20;

/// Chooses rows of a set.
pub trait Choice<T> {
    /// Which of a source's new rows may be kept, one verdict for each. Every row that equals no earlier one
    /// is offered once, in the order of the files.
    fn admit(&mut self, source: usize, rows: &[T]) -> Vec<bool>;

    /// The number of a source's admitted rows that are kept, the first ones by [`Self::ticket`]; `None` for
    /// all.
    fn most(&self, source: usize) -> Option<usize>;

    /// The position of a row, by its id, in the order in which rows are kept.
    fn ticket(&self, id: u64) -> [u8; 32];
}

/// Keeps every row.
#[derive(Debug)]
pub struct Everything;

impl<T> Choice<T> for Everything {
    fn admit(&mut self, _: usize, rows: &[T]) -> Vec<bool> {
        vec![true; rows.len()]
    }

    fn most(&self, _: usize) -> Option<usize> {
        None
    }

    fn ticket(&self, _: u64) -> [u8; 32] {
        [0; 32]
    }
}

/// The rows that are kept so far.
pub(super) struct Kept<'a, T> {
    choice: &'a mut dyn Choice<T>,
    source: usize,
    /// Number of admitted rows of the source.
    admitted: u64,
    writer: RowWriter,
    /// Rows of all sources; those of the current one start at `first`.
    rows: Vec<KeptRow>,
    first: usize,
    /// Tickets of the current source's rows, if it keeps a limited number.
    tickets: Vec<[u8; 32]>,
    /// The last ticket that was kept when rows were last discarded: none above it can be kept.
    last: Option<[u8; 32]>,
    /// New rows that the choice has not seen, and their size.
    batch: Vec<(T, Origin)>,
    batch_bytes: u64,
}

struct KeptRow {
    entry: Entry,
    origin: Origin,
    /// Its charge to the budget.
    cost: u32,
}

impl<'a, T: Row> Kept<'a, T> {
    pub(super) fn new(choice: &'a mut dyn Choice<T>) -> Self {
        Self {
            choice,
            source: 0,
            admitted: 0,
            writer: RowWriter::default(),
            rows: Vec::new(),
            first: 0,
            tickets: Vec::new(),
            last: None,
            batch: Vec::new(),
            batch_bytes: 0,
        }
    }

    /// Starts a source.
    pub(super) fn start(&mut self, source: usize) {
        (self.source, self.admitted, self.first) = (source, 0, self.rows.len());
        self.tickets.clear();
        self.last = None;
    }

    /// Adds a row.
    pub(super) fn add(&mut self, row: T, origin: Origin, budget: &mut Budget) -> Result<(), Unkept> {
        if !budget.charge(&row) {
            return Err(Unkept::TooLarge);
        }
        self.batch_bytes += u64::from(Budget::cost(&row));
        self.batch.push((row, origin));
        if self.batch.len() >= BATCH_ROWS || self.batch_bytes >= BATCH_BYTES {
            self.offer(budget)?;
        }
        Ok(())
    }

    /// Ends the source; returns the number of its admitted rows.
    pub(super) fn finish(&mut self, budget: &mut Budget) -> Result<u64, SpillError> {
        self.offer(budget)?;
        self.discard(budget);
        Ok(self.admitted)
    }

    /// The rows, with ids of their content, and their origins.
    pub(super) fn into_rows(self) -> Result<(RowSet<T>, Vec<Origin>), SpillError> {
        let (entries, origins) = self.rows.into_iter().map(|row| (row.entry, row.origin)).unzip();
        Ok((self.writer.finish(entries)?.with_distinct_ids()?, origins))
    }

    /// Offers the batch to the choice.
    fn offer(&mut self, budget: &mut Budget) -> Result<(), SpillError> {
        self.batch_bytes = 0;
        let (rows, origins): (Vec<T>, Vec<Origin>) = std::mem::take(&mut self.batch).into_iter().unzip();
        let admitted = self.choice.admit(self.source, &rows);
        let most = self.choice.most(self.source);
        for ((mut row, origin), is_admitted) in rows.into_iter().zip(origins).zip(admitted) {
            let cost = Budget::cost(&row);
            if !is_admitted {
                budget.refund(cost);
                continue;
            }
            self.admitted += 1;
            row.set_id(content_id(&row, 0));
            let ticket = most.map(|_| self.choice.ticket(row.id()));
            if ticket.zip(self.last).is_some_and(|(ticket, last)| ticket > last) {
                budget.refund(cost);
                continue;
            }
            self.rows.push(KeptRow { entry: self.writer.push(&row)?, origin, cost });
            self.tickets.extend(ticket);
        }
        // Discarding now and then keeps its cost in proportion to the number of rows.
        if most.is_some_and(|most| self.tickets.len() > most.saturating_mul(2).max(most + BATCH_ROWS)) {
            self.discard(budget);
        }
        Ok(())
    }

    /// Discards the source's rows beyond those that it keeps.
    fn discard(&mut self, budget: &mut Budget) {
        let Some(most) = self.choice.most(self.source).filter(|most| *most < self.tickets.len()) else {
            return;
        };
        if most == 0 {
            self.rows.drain(self.first..).for_each(|row| budget.refund(row.cost));
            self.tickets.clear();
            self.last = Some([0; 32]);
            return;
        }
        let mut sorted = self.tickets.clone();
        let last = *sorted.select_nth_unstable(most - 1).1;
        let tickets = std::mem::take(&mut self.tickets);
        let rows = self.rows.split_off(self.first);
        for (row, ticket) in rows.into_iter().zip(tickets) {
            if ticket > last {
                budget.refund(row.cost);
            } else {
                self.rows.push(row);
                self.tickets.push(ticket);
            }
        }
        self.last = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ColumnNames, Content, SourceFiles, parse_sources};
    use super::*;
    use crate::data::rows::PromptRow;
    use crate::data::split::Lottery;
    use std::collections::HashSet;

    /// Rows whose prompt has an even length, the first ones of each source in a seeded order.
    struct Even(Lottery, Vec<Option<usize>>);

    fn is_even(row: &PromptRow) -> bool {
        row.prompt.messages[0].content.len().is_multiple_of(2)
    }

    impl Choice<PromptRow> for Even {
        fn admit(&mut self, _: usize, rows: &[PromptRow]) -> Vec<bool> {
            rows.iter().map(is_even).collect()
        }

        fn most(&self, source: usize) -> Option<usize> {
            self.1[source]
        }

        fn ticket(&self, id: u64) -> [u8; 32] {
            self.0.of_row(id)
        }
    }

    fn sources(texts: &[String]) -> Vec<SourceFiles<'_>> {
        static NAMES: std::sync::OnceLock<ColumnNames> = std::sync::OnceLock::new();
        let names = NAMES.get_or_init(ColumnNames::default);
        let files = |text: &String| vec![("f", Content::from(bytes::Bytes::from(text.clone())))];
        texts.iter().map(|text| SourceFiles { files: files(text), names }).collect()
    }

    #[test]
    fn the_rows_kept_while_reading_are_those_of_a_choice_after_it() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        // Repetitions within and between the sources, of which the later ones do not count.
        let texts: Vec<String> = [9_000, 3, 20_000]
            .map(|rows| {
                let row = |_| format!("{{\"prompt\": \"{}\"}}\n", random.u64(..) % 60_000 * 7);
                (0..rows).map(row).collect()
            })
            .to_vec();
        let limits = vec![Some(random.usize(1..2000)), Some(5), None];
        let all =
            parse_sources::<PromptRow>(sources(&texts), &mut Budget::default(), &mut Everything).unwrap();
        let all = all.in_memory().unwrap();
        let mut choice = Even(Lottery::new(seed, "set"), limits.clone());
        let chosen = parse_sources(sources(&texts), &mut Budget::default(), &mut choice).unwrap();
        let chosen = chosen.in_memory().unwrap();
        let mut expected = HashSet::new();
        for (source, limit) in limits.iter().enumerate() {
            let of_source = all.rows.iter().filter(|row| all.places.source(row.id) == Some(source));
            let mut ids: Vec<u64> = of_source.filter(|row| is_even(row)).map(|row| row.id).collect();
            assert_eq!(chosen.sources[source].admitted, ids.len() as u64, "seed {seed}");
            ids.sort_by_key(|id| Lottery::new(seed, "set").of_row(*id));
            expected.extend(ids.into_iter().take(limit.unwrap_or(usize::MAX)));
        }
        let expected: Vec<_> = all.rows.iter().filter(|row| expected.contains(&row.id)).collect();
        assert_eq!(chosen.rows.iter().collect::<Vec<_>>(), expected, "seed {seed}");
        let place = |parsed: &super::super::Parsed<Vec<PromptRow>>, id| parsed.places.of(id);
        assert!(chosen.rows.iter().all(|row| place(&chosen, row.id) == place(&all, row.id)));
        assert_eq!((chosen.records, chosen.skipped), (all.records, all.skipped));
    }

    #[test]
    fn rows_that_are_not_kept_take_no_budget() {
        let long = "x".repeat(2000);
        let text: String = (0..20_000).map(|row| format!("{{\"prompt\": \"{long}{row}\"}}\n")).collect();
        let mut choice = Even(Lottery::new(0, "set"), vec![Some(10)]);
        // A batch, and the keys of all rows.
        let budget = BATCH_BYTES * 2 + 20_000 * 48;
        assert!((budget as usize) < text.len());
        let mut all = Budget::of(budget);
        assert!(
            parse_sources::<PromptRow>(sources(std::slice::from_ref(&text)), &mut all, &mut Everything)
                .is_err()
        );
        let kept = parse_sources(sources(&[text]), &mut Budget::of(budget), &mut choice).unwrap();
        assert_eq!(kept.rows.len(), 10);
    }
}

//! Selects the rows of a set from its sources: rows that are not near-duplicates, that pass the filters, and
//! that remain after limits and weights.

use foil_common::data::mixture;
use foil_common::data::near::NearDuplicates;
use foil_common::data::parse::{Choice, Places};
use foil_common::data::row_set::{RowSet, SpillError};
use foil_common::data::rows::Row;
use foil_common::data::split::Lottery;
use foil_common::spec::{Bounds, DataSource, RowFilter};
use foil_common::text::{Encoder, Limits, Response};

use super::parallel::map_in_parallel;
use super::source_counts::{LIMIT, NEAR_DUPLICATE, SourceCount, WEIGHT};

/// How a set is selected from its sources.
pub(super) struct Selection<'a> {
    pub(super) sources: &'a [DataSource],
    pub(super) seed: u64,
    /// Name of the set, which also names its seeded order.
    pub(super) set: &'static str,
    /// The set's entry in `data.limits`.
    pub(super) limit: Option<usize>,
    pub(super) near: Option<NearDuplicates>,
    /// The encoder of the model that reads the set, if filters count tokens.
    pub(super) encoder: Option<&'a Encoder>,
}

impl Selection<'_> {
    /// What is selected from as files are read. The selection keeps the first rows of each source in the
    /// seeded order, unless near-duplicates are to be dropped before that, which takes all rows.
    pub(super) fn choice(&self) -> Chosen<'_> {
        let lottery = Lottery::new(self.seed, self.set);
        Chosen { selection: self, lottery, dropped: vec![Vec::new(); self.sources.len()] }
    }

    /// Keeps the selected rows; returns the number from each source, of which those beyond the set's limit
    /// are not among them. `admitted` has the number of rows of each source that the choice admitted,
    /// `places` maps each row to its source, and `counts` has one entry per source.
    pub(super) fn select<T: Row + Sync>(
        &self,
        rows: &mut RowSet<T>,
        mut admitted: Vec<u64>,
        places: &Places,
        counts: &mut [SourceCount],
    ) -> Result<Vec<u64>, SpillError> {
        if let Some(near) = &self.near {
            let earlier = near.of_rows(rows)?.into_iter();
            retain(rows, earlier.map(|earlier| earlier.map(|_| NEAR_DUPLICATE)), places, counts);
            if self.has_filters() {
                let mut reasons = Vec::with_capacity(rows.len());
                for batch in rows.batches() {
                    reasons.extend(map_in_parallel(&batch?, |row| {
                        self.fault(self.sources.get(places.source(row.id())?)?.filter, row)
                    }));
                }
                retain(rows, reasons, places, counts);
            }
            admitted = per_source(rows, places, self.sources.len());
        }
        let limits: Vec<_> = self.sources.iter().map(|source| source.limit).collect();
        let mut selected = bounded(&admitted, &limits, LIMIT, counts);
        self.draw(rows, &limits, places);
        if self.sources.iter().any(|source| source.weight.is_some()) {
            let available: Vec<usize> =
                selected.iter().map(|rows| usize::try_from(*rows).unwrap_or(usize::MAX)).collect();
            let weights: Vec<_> = self.sources.iter().map(|source| source.weight.unwrap_or(1.0)).collect();
            let shares = mixture::shares(&available, &weights, self.limit);
            let shares: Vec<_> = shares.into_iter().map(Some).collect();
            selected = bounded(&selected, &shares, WEIGHT, counts);
            self.draw(rows, &shares, places);
        }
        Ok(selected)
    }

    fn has_filters(&self) -> bool {
        self.sources.iter().any(|source| source.filter != RowFilter::default())
    }

    /// Keeps at most the given number of rows from each source, taken first in the set's seeded order.
    fn draw<T: Row>(&self, rows: &mut RowSet<T>, limits: &[Option<usize>], places: &Places) {
        let lottery = Lottery::new(self.seed, self.set);
        let drawn = |(source, limit): (usize, &Option<usize>)| {
            limit.map(|limit| {
                let ids = rows.ids().filter(|id| places.source(*id) == Some(source));
                lottery.draw(ids.map(|id| lottery.of_row(id)).collect(), limit)
            })
        };
        let drawn: Vec<_> = limits.iter().enumerate().map(drawn).collect();
        if drawn.iter().any(Option::is_some) {
            rows.retain(|_, id| {
                let of_source = places.source(id).and_then(|source| drawn.get(source).copied().flatten());
                of_source.is_none_or(|drawn| drawn.has(&lottery.of_row(id)))
            });
        }
    }

    /// The filter that the row fails, if any.
    fn fault<T: Row>(&self, filter: RowFilter, row: &T) -> Option<&'static str> {
        let outside = |bounds: Bounds, length: usize, names: [&'static str; 2]| {
            bounds.violated(length).map(|end| names[usize::from(end == "max")])
        };
        let prompt: usize = row.prompt().messages.iter().map(|message| message.content.chars().count()).sum();
        let characters = ["min_prompt_characters", "max_prompt_characters"];
        if let Some(fault) = outside(filter.prompt_characters, prompt, characters) {
            return Some(fault);
        }
        for answer in row.responses() {
            let characters = ["min_answer_characters", "max_answer_characters"];
            if let Some(fault) = outside(filter.answer_characters, answer.chars().count(), characters) {
                return Some(fault);
            }
        }
        let encoder = self.encoder.filter(|_| filter.needs_tokens())?;
        // A row that cannot be encoded is a bad row, which is found and reported later.
        let prompt = encoder.prompt(row.prompt(), usize::MAX).ok()?.ids.len();
        if let Some(fault) = outside(filter.prompt_tokens, prompt, ["min_prompt_tokens", "max_prompt_tokens"])
        {
            return Some(fault);
        }
        if filter.answer_tokens.is_unbounded() {
            return None;
        }
        let whole = Limits::of(usize::MAX, usize::MAX);
        row.responses().into_iter().find_map(|answer| {
            let encoded = encoder.dialogue(row.prompt(), Response::finished(answer), whole).ok()?;
            let names = ["min_answer_tokens", "max_answer_tokens"];
            outside(filter.answer_tokens, encoded.response().len(), names)
        })
    }
}

/// Filters rows and keeps the first of each source while files are read.
pub(super) struct Chosen<'a> {
    selection: &'a Selection<'a>,
    lottery: Lottery,
    /// Number of dropped rows of each source, by reason.
    dropped: Vec<Vec<(&'static str, u64)>>,
}

impl Chosen<'_> {
    /// Adds the dropped rows to the counts of their sources.
    pub(super) fn count(self, counts: &mut [SourceCount]) {
        for (count, dropped) in counts.iter_mut().zip(self.dropped) {
            dropped.into_iter().for_each(|(reason, rows)| count.drop(reason, rows));
        }
    }
}

impl<T: Row + Sync> Choice<T> for Chosen<'_> {
    fn admit(&mut self, source: usize, rows: &[T]) -> Vec<bool> {
        let filter = self.selection.sources.get(source).map(|source| source.filter).unwrap_or_default();
        if self.selection.near.is_some() || filter == RowFilter::default() {
            return vec![true; rows.len()];
        }
        let faults = map_in_parallel(rows, |row| self.selection.fault(filter, row));
        let dropped = &mut self.dropped[source];
        for reason in faults.iter().flatten() {
            match dropped.iter_mut().find(|(known, _)| *known == *reason) {
                Some((_, count)) => *count += 1,
                None => dropped.push((*reason, 1)),
            }
        }
        faults.into_iter().map(|fault| fault.is_none()).collect()
    }

    fn most(&self, source: usize) -> Option<usize> {
        let own = self.selection.sources.get(source).and_then(|source| source.limit);
        let limits = own.into_iter().chain(self.selection.limit);
        limits.min().filter(|_| self.selection.near.is_none())
    }

    fn ticket(&self, id: u64) -> [u8; 32] {
        self.lottery.of_row(id)
    }
}

/// The number of rows from each source.
pub(super) fn per_source<T: Row>(rows: &RowSet<T>, places: &Places, sources: usize) -> Vec<u64> {
    let mut found = vec![0; sources];
    for source in rows.ids().filter_map(|id| places.source(id)) {
        found[source] += 1;
    }
    found
}

/// The number of rows from each source within its limit; those beyond it are counted as dropped.
fn bounded(
    rows: &[u64],
    limits: &[Option<usize>],
    reason: &'static str,
    counts: &mut [SourceCount],
) -> Vec<u64> {
    let bound = |((rows, limit), count): ((&u64, &Option<usize>), &mut SourceCount)| {
        let kept = limit.map_or(*rows, |limit| (*rows).min(limit as u64));
        count.drop(reason, *rows - kept);
        kept
    };
    rows.iter().zip(limits).zip(counts).map(bound).collect()
}

/// Keeps the rows without a reason to drop them; dropped rows are counted by source.
fn retain<T: Row>(
    rows: &mut RowSet<T>,
    reasons: impl IntoIterator<Item = Option<&'static str>>,
    places: &Places,
    counts: &mut [SourceCount],
) {
    let mut reasons = reasons.into_iter();
    rows.retain(|_, id| {
        let reason = reasons.next().flatten();
        if let Some(reason) = reason
            && let Some(count) = places.source(id).and_then(|source| counts.get_mut(source))
        {
            count.drop(reason, 1);
        }
        reason.is_none()
    });
}

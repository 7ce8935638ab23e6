//! Selects the rows of a set from its sources: rows that are not near-duplicates, that pass the filters, and
//! that remain after limits and weights.

use std::collections::HashSet;

use foil_common::data::mixture;
use foil_common::data::near::NearDuplicates;
use foil_common::data::parse::Places;
use foil_common::data::rows::Row;
use foil_common::data::split::draw;
use foil_common::spec::{Bounds, DataSource, RowFilter};
use foil_common::text::{Encoder, Limits, Response};

use super::check::map_in_parallel;
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
    /// The selected rows, in order. `places` maps each row to its source, and `counts` has one entry per
    /// source.
    pub(super) fn select<T: Row + Sync>(
        &self,
        mut rows: Vec<T>,
        places: &Places,
        counts: &mut [SourceCount],
    ) -> Vec<T> {
        if let Some(near) = &self.near {
            let reasons = near.of_rows(&rows).into_iter().map(|earlier| earlier.map(|_| NEAR_DUPLICATE));
            rows = retain(rows, reasons.collect(), places, counts);
        }
        if self.sources.iter().any(|source| source.filter != RowFilter::default()) {
            let filter = |row: &T| {
                let source = self.sources.get(places.source(row.id()).unwrap_or_default());
                source.and_then(|source| self.fault(source.filter, row))
            };
            let reasons = map_in_parallel(&rows, filter);
            rows = retain(rows, reasons, places, counts);
        }
        let limits: Vec<_> = self.sources.iter().map(|source| source.limit).collect();
        rows = self.draw(rows, &limits, LIMIT, places, counts);
        if self.sources.iter().any(|source| source.weight.is_some()) {
            let mut available = vec![0; self.sources.len()];
            for source in rows.iter().filter_map(|row| places.source(row.id())) {
                available[source] += 1;
            }
            let weights: Vec<_> = self.sources.iter().map(|source| source.weight.unwrap_or(1.0)).collect();
            let shares = mixture::shares(&available, &weights, self.limit);
            let shares: Vec<_> = shares.into_iter().map(Some).collect();
            rows = self.draw(rows, &shares, WEIGHT, places, counts);
        }
        rows
    }

    /// At most the given number of rows from each source, taken first in the set's seeded order.
    fn draw<T: Row>(
        &self,
        rows: Vec<T>,
        limits: &[Option<usize>],
        reason: &'static str,
        places: &Places,
        counts: &mut [SourceCount],
    ) -> Vec<T> {
        if limits.iter().all(Option::is_none) {
            return rows;
        }
        let mut kept = HashSet::new();
        for (source, limit) in limits.iter().enumerate() {
            let ids = rows.iter().map(Row::id).filter(|id| places.source(*id) == Some(source));
            kept.extend(draw(ids, *limit, self.seed, self.set));
        }
        let reasons = rows.iter().map(|row| (!kept.contains(&row.id())).then_some(reason)).collect();
        retain(rows, reasons, places, counts)
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

/// The rows without a reason to drop them; dropped rows are counted by source.
pub(super) fn retain<T: Row>(
    rows: Vec<T>,
    reasons: Vec<Option<&'static str>>,
    places: &Places,
    counts: &mut [SourceCount],
) -> Vec<T> {
    let mut kept = Vec::with_capacity(rows.len());
    for (row, reason) in rows.into_iter().zip(reasons) {
        match reason {
            None => kept.push(row),
            Some(reason) => {
                if let Some(count) = places.source(row.id()).and_then(|source| counts.get_mut(source)) {
                    count.drop(reason, 1);
                }
            }
        }
    }
    kept
}

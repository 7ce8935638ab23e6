//! How many rows of a job's sets come from each source, and how many were dropped.

use foil_common::data::parse::ReadSource;
use foil_common::data::row_set::Lines;
use foil_common::datasets;
use foil_common::plural::{are, counted};
use foil_common::spec::SourceSet;
use foil_proto::v1;

use super::sets::Sets;

/// Reasons for dropping rows, as shown in summaries.
pub(super) const NEAR_DUPLICATE: &str = "near_duplicate";
pub(super) const LIMIT: &str = "limit";
pub(super) const WEIGHT: &str = "weight";
pub(super) const UNENCODABLE: &str = "unencodable";
pub(super) const EQUAL_TOKENS: &str = "equal_tokens";
/// The reasons that follow from the job's own settings.
const ASKED: [&str; 11] = [
    NEAR_DUPLICATE,
    "min_prompt_tokens",
    "max_prompt_tokens",
    "min_answer_tokens",
    "max_answer_tokens",
    "min_prompt_characters",
    "max_prompt_characters",
    "min_answer_characters",
    "max_answer_characters",
    LIMIT,
    WEIGHT,
];

/// A source of a set, with its dropped rows by reason.
#[derive(Debug, Clone, Default)]
pub(super) struct SourceCount {
    pub(super) name: String,
    pub(super) weight: Option<f64>,
    dropped: Vec<(&'static str, u64)>,
}

impl SourceCount {
    pub(super) fn new(read: &ReadSource, weight: Option<f64>) -> Self {
        let more = read.files.saturating_sub(1);
        let name = match more {
            0 => read.first_file.clone(),
            more => format!("{} and {more} more", read.first_file),
        };
        let mut count = Self { name, weight, dropped: Vec::new() };
        let skipped = read.skipped;
        for (reason, rows) in [
            ("bad", read.bad_rows),
            ("duplicate", skipped.duplicates),
            ("tie", skipped.ties),
            ("spare_answer", skipped.spare_answers),
            ("undesirable", skipped.undesirable),
        ] {
            count.drop(reason, rows);
        }
        count
    }

    pub(super) fn drop(&mut self, reason: &'static str, rows: u64) {
        match self.dropped.iter_mut().find(|(name, _)| *name == reason) {
            _ if rows == 0 => {}
            Some((_, count)) => *count += rows,
            None => self.dropped.push((reason, rows)),
        }
    }

    pub(super) fn dropped(&self) -> Vec<v1::DroppedRows> {
        let row = |(reason, rows): &(&'static str, u64)| v1::DroppedRows {
            reason: (*reason).to_owned(),
            rows: *rows,
        };
        self.dropped.iter().map(row).collect()
    }

    /// Whether a length filter dropped rows.
    pub(super) fn is_filtered(&self) -> bool {
        self.dropped.iter().any(|(reason, _)| reason.starts_with("min_") || reason.starts_with("max_"))
    }

    /// A sentence about the rows that were dropped because the job's settings ask for it.
    pub(super) fn warning(&self) -> Option<String> {
        let asked: Vec<_> = self.dropped.iter().filter(|(reason, _)| ASKED.contains(reason)).collect();
        let total: u64 = asked.iter().map(|(_, rows)| rows).sum();
        let reasons: Vec<String> = asked.iter().map(|(reason, rows)| format!("{rows} by {reason}")).collect();
        let name = &self.name;
        (total > 0).then(|| {
            let rows = counted(total, "row");
            format!("{rows} of {name} {} left out: {}", are(total), reasons.join(", "))
        })
    }
}

impl Sets {
    /// Counts rows of a field, by id, that were dropped after reading.
    pub(super) fn count_lost(&mut self, field: &str, lost: &[(u64, &'static str)]) {
        let (Some(places), Some(counts)) = (self.places.get(field), self.sources.get_mut(field)) else {
            return;
        };
        for (id, reason) in lost {
            if let Some(count) = places.source(*id).and_then(|source| counts.get_mut(source)) {
                count.drop(reason, 1);
            }
        }
    }

    /// Records how many rows of each set come from each source.
    pub(super) fn summarize_sources(&mut self) {
        let sets = self.all().into_iter();
        let counted: Vec<_> =
            sets.filter_map(|(name, lines)| Some((name, self.sources_of(name, lines)?))).collect();
        for (name, sources) in counted {
            if let Some(summary) = self.summaries.iter_mut().find(|summary| summary.name == name) {
                summary.sources = sources;
            }
        }
    }

    fn sources_of(&self, name: &str, lines: &Lines) -> Option<Vec<v1::DataSourceSummary>> {
        let (own, parent) = origins(name)?;
        let own = own.field();
        let is_held_out =
            parent.is_some_and(|parent| parent.field() == own || !self.places.contains_key(own));
        let field = if is_held_out { parent.map_or(own, SourceSet::field) } else { own };
        let (places, counts) = (self.places.get(field)?, self.sources.get(field)?);
        let mut rows = vec![0; counts.len()];
        for source in lines.ids().filter_map(|id| places.source(id)) {
            rows[source] += 1;
        }
        let summary = |(count, rows): (&SourceCount, u64)| v1::DataSourceSummary {
            name: count.name.clone(),
            rows,
            weight: count.weight,
            dropped: if is_held_out { Vec::new() } else { count.dropped() },
        };
        Some(counts.iter().zip(rows).map(summary).collect())
    }
}

/// The sources of a set: its own, and those that it is held out of if it has none; `None` for a set that
/// comes from no file.
pub(super) fn origins(set: &str) -> Option<(SourceSet, Option<SourceSet>)> {
    Some(match set {
        datasets::SFT => (SourceSet::Sft, None),
        datasets::PREFERENCES => (SourceSet::Preferences, None),
        datasets::EVALUATION_PREFERENCES => (SourceSet::EvaluationPreferences, Some(SourceSet::Preferences)),
        datasets::GOLDEN => (SourceSet::Golden, None),
        datasets::GOLDEN_HOLDOUT => (SourceSet::Golden, Some(SourceSet::Golden)),
        datasets::PROMPTS => (SourceSet::Prompts, None),
        datasets::EVALUATION_PROMPTS => (SourceSet::EvaluationPrompts, Some(SourceSet::Prompts)),
        _ => return None,
    })
}

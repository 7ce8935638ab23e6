//! Builds the data sets that phases use, from files or a generator.

use std::collections::BTreeMap;

use foil_common::data::parse::{Budget, Parsed, Places, Wanted};
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};
use foil_common::data::split::{hold_out, take};
use foil_common::datasets;
use foil_common::letters;
use foil_common::spec::{self, GeneratorName};
use foil_proto::v1;

use super::ResolveError;
use super::load::{Source, Sources};

/// Number of bad rows examples of each set.
const SHOWN_BAD: usize = 5;

/// Fraction of a training set held out if a job gives no evaluation set.
const EVALUATION_FRACTION: f64 = 0.1;

/// A job's data sets; those that it does not use are empty.
#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) sft: Vec<DemonstrationRow>,
    pub(super) preferences: Vec<PairRow>,
    pub(super) golden: Vec<GoldenRow>,
    pub(super) golden_holdout: Vec<GoldenRow>,
    pub(super) prompts: Vec<PromptRow>,
    pub(super) evaluation_preferences: Vec<PairRow>,
    pub(super) evaluation_prompts: Vec<PromptRow>,
    pub(super) gold_preference_prompts: Vec<PromptRow>,
    pub(super) gold_preference_evaluation_prompts: Vec<PromptRow>,
    /// File and line of the rows of each field.
    pub(super) places: BTreeMap<&'static str, Places>,
    pub(super) summaries: Vec<v1::DatasetSummary>,
    pub(super) warnings: Vec<String>,
}

impl Sets {
    pub(super) fn build(job: &spec::Job, sources: &Sources) -> Result<Self, ResolveError> {
        let mut sets = Self::default();
        let (data, limits, seed) = (&job.data, &job.data.limits, u64::from(job.seed));
        let mut budget = Budget::default();
        let mut bounds = (data.max_bad_fraction, &mut budget);
        let bounds = &mut bounds;
        if let Some(generator) = &data.generator {
            sets.generate(generator, seed);
        }
        sets.read(&sources.sft, datasets::SFT, bounds, |sets| &mut sets.sft)?;
        sets.read(&sources.preferences, datasets::PREFERENCES, bounds, |sets| &mut sets.preferences)?;
        sets.read(&sources.golden, datasets::GOLDEN, bounds, |sets| &mut sets.golden)?;
        sets.read(&sources.prompts, datasets::PROMPTS, bounds, |sets| &mut sets.prompts)?;
        sets.read(&sources.evaluation_preferences, datasets::EVALUATION_PREFERENCES, bounds, |sets| {
            &mut sets.evaluation_preferences
        })?;
        sets.read(&sources.evaluation_prompts, datasets::EVALUATION_PROMPTS, bounds, |sets| {
            &mut sets.evaluation_prompts
        })?;

        limit(&mut sets.sft, limits.sft, seed, datasets::SFT);
        limit(&mut sets.preferences, limits.preferences, seed, datasets::PREFERENCES);
        limit(&mut sets.golden, limits.golden, seed, datasets::GOLDEN);
        limit(&mut sets.prompts, limits.prompts, seed, datasets::PROMPTS);
        sets.hold_out(data, seed);
        let (pairs, prompts) = (limits.evaluation_preferences, limits.evaluation_prompts);
        limit(&mut sets.evaluation_preferences, pairs, seed, datasets::EVALUATION_PREFERENCES);
        limit(&mut sets.evaluation_prompts, prompts, seed, datasets::EVALUATION_PROMPTS);
        if let Some(gold) = &data.gold_preferences {
            sets.gold_preference_prompts = letters::preference_prompts(seed, &sets.golden, gold.pairs);
            sets.gold_preference_evaluation_prompts =
                letters::preference_evaluation_prompts(seed, gold.evaluation_pairs);
        }
        Ok(sets)
    }

    fn generate(&mut self, generator: &spec::Generator, seed: u64) {
        let spec::Generator { name: GeneratorName::Letters, sft, golden, prompts, evaluation } = *generator;
        let generated = letters::generate(seed, letters::Counts { sft, golden, prompts, evaluation });
        self.sft = generated.sft;
        self.golden = generated.golden;
        self.prompts = generated.prompts;
        self.evaluation_prompts = generated.evaluation_prompts;
    }

    fn read<T: Wanted>(
        &mut self,
        source: &Source,
        name: &'static str,
        (max_bad_fraction, budget): &mut (f64, &mut Budget),
        set: impl Fn(&mut Self) -> &mut Vec<T>,
    ) -> Result<(), ResolveError> {
        let Some(parsed) = source.parse::<T>(*max_bad_fraction, budget)? else { return Ok(()) };
        self.warn_skipped(source.field, &parsed);
        let examples: Vec<String> = parsed.bad.iter().map(ToString::to_string).collect();
        self.record_bad_rows(name, parsed.bad_rows, &examples);
        if !parsed.ignored.is_empty() {
            self.summary(name).ignored_columns = parsed.ignored.into_keys().collect();
        }
        self.places.insert(source.field, parsed.places);
        *set(self) = parsed.rows;
        Ok(())
    }

    fn warn_skipped<T>(&mut self, field: &str, parsed: &Parsed<T>) {
        let skipped = parsed.skipped;
        let counts = [
            (skipped.duplicates, "duplicate rows"),
            (skipped.ties, "comparisons of equal score"),
            (skipped.spare_answers, "golden answers beside a prompt's first"),
            (skipped.undesirable, "answers labeled as bad ones"),
        ];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            self.warnings.push(format!("{field}: {count} {what} are left out"));
        }
    }

    /// Counts a set's bad rows, keeps the first ones to show, and adds a warning.
    pub(super) fn record_bad_rows(&mut self, name: &str, bad: u64, examples: &[String]) {
        if bad == 0 {
            return;
        }
        let summary = self.summary(name);
        summary.bad_rows += bad;
        let room = SHOWN_BAD.saturating_sub(summary.first_bad.len());
        summary.first_bad.extend(examples.iter().take(room).cloned());
        let first = examples.first().map(String::as_str).unwrap_or_default();
        self.warnings.push(format!("{name}: {bad} bad rows are left out; the first is {first}"));
    }

    fn summary(&mut self, name: &str) -> &mut v1::DatasetSummary {
        let index = match self.summaries.iter().position(|summary| summary.name == name) {
            Some(index) => index,
            None => {
                self.summaries.push(v1::DatasetSummary { name: name.to_owned(), ..Default::default() });
                self.summaries.len() - 1
            }
        };
        &mut self.summaries[index]
    }

    /// Splits off evaluation sets that were not given, and the golden prompts for "fresh" accuracy. All rows
    /// of one prompt stay on one side.
    fn hold_out(&mut self, data: &spec::Data, seed: u64) {
        if data.evaluation.preferences.is_empty() {
            split(
                &mut self.preferences,
                &mut self.evaluation_preferences,
                EVALUATION_FRACTION,
                seed,
                "preferences",
            );
        }
        if data.evaluation.prompts.is_empty() && data.generator.is_none() {
            split(&mut self.prompts, &mut self.evaluation_prompts, EVALUATION_FRACTION, seed, "prompts");
        }
        split(&mut self.golden, &mut self.golden_holdout, data.golden_holdout, seed, "golden");
    }

    /// Checks that every set that the job needs has rows. Fills in the summaries' counts.
    pub(super) fn require(&mut self, job: &spec::Job) -> Result<(), ResolveError> {
        for (name, rows) in self.counts() {
            if rows > 0 || self.summaries.iter().any(|summary| summary.name == name) {
                self.summary(name).rows = rows;
            }
        }
        let order = |name: &str| self.counts().iter().position(|(set, _)| *set == name);
        let mut summaries = self.summaries.clone();
        summaries.sort_by_key(|summary| order(&summary.name));
        self.summaries = summaries;
        self.require_rows(job)
    }

    fn require_rows(&self, job: &spec::Job) -> Result<(), ResolveError> {
        let human = job.reward_step.human_weight > 0.0;
        let labeled = job.data.gold_preferences.is_some();
        let more = "give a file with more rows";
        let held_out =
            "give an evaluation set of its own, or rows with more distinct prompts to hold some out";
        let needs = [
            (job.has_sft(), "data.sft", datasets::SFT, more),
            (human && !labeled, "data.preferences", datasets::PREFERENCES, more),
            (
                !self.preferences.is_empty(),
                "data.evaluation.preferences",
                datasets::EVALUATION_PREFERENCES,
                held_out,
            ),
            (job.reward_step.apo_weight > 0.0, "data.golden", datasets::GOLDEN, more),
            (true, "data.prompts", datasets::PROMPTS, more),
            (true, "data.evaluation.prompts", datasets::EVALUATION_PROMPTS, held_out),
            (
                labeled,
                "data.golden",
                datasets::GOLD_PREFERENCE_PROMPTS,
                "gold-labeled pairs use the golden prompts",
            ),
        ];
        let counts = self.counts();
        let rows = |set: &str| counts.iter().find(|(name, _)| *name == set).map_or(0, |(_, rows)| *rows);
        match needs.into_iter().find(|(needed, _, set, _)| *needed && rows(set) == 0) {
            None => Ok(()),
            Some((_, field, set, advice)) => {
                let about = |warning: &&String| {
                    [field, set].iter().any(|name| warning.starts_with(&format!("{name}: ")))
                };
                let lost: Vec<&str> = self.warnings.iter().filter(about).map(String::as_str).collect();
                let lost = if lost.is_empty() { String::new() } else { format!(" ({})", lost.join("; ")) };
                Err(ResolveError::Empty { field, set, lost, advice })
            }
        }
    }

    /// Number of rows of each set, in display order.
    pub(super) fn counts(&self) -> [(&'static str, u64); 9] {
        [
            (datasets::SFT, self.sft.len() as u64),
            (datasets::PREFERENCES, self.preferences.len() as u64),
            (datasets::EVALUATION_PREFERENCES, self.evaluation_preferences.len() as u64),
            (datasets::GOLD_PREFERENCE_PROMPTS, self.gold_preference_prompts.len() as u64),
            (
                datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS,
                self.gold_preference_evaluation_prompts.len() as u64,
            ),
            (datasets::GOLDEN, self.golden.len() as u64),
            (datasets::GOLDEN_HOLDOUT, self.golden_holdout.len() as u64),
            (datasets::PROMPTS, self.prompts.len() as u64),
            (datasets::EVALUATION_PROMPTS, self.evaluation_prompts.len() as u64),
        ]
    }
}

fn limit<T: Row>(rows: &mut Vec<T>, limit: Option<usize>, seed: u64, name: &str) {
    *rows = take(std::mem::take(rows), limit, seed, name);
}

fn split<T: Row>(rows: &mut Vec<T>, held: &mut Vec<T>, fraction: f64, seed: u64, name: &str) {
    (*rows, *held) = hold_out(std::mem::take(rows), fraction, seed, name);
}

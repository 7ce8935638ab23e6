//! Builds the data sets that phases use, from files or a generator.

use std::collections::{BTreeMap, HashSet};

use foil_common::data::near::NearDuplicates;
use foil_common::data::parse::{self, Budget, ParseError, Parsed, Place, Places, Position, ReadFile};
use foil_common::data::row_set::{Lines, RowSet, SpillError};
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};
use foil_common::data::split::{hold_out, take};
use foil_common::datasets;
use foil_common::letters;
use foil_common::plural::{are, counted};
use foil_common::spec::{self, GeneratorName};
use foil_common::text::Encoder;
use foil_proto::v1;

use super::encoders::Encoders;
use super::load::{Source, Sources};
use super::select::{Selection, per_source};
use super::source_counts::{LIMIT, SourceCount};
use super::{EXAMPLE, Models, ResolveError};

/// Maximum number of benchmark subsets for which accuracy is measured.
const MAX_GROUPS: usize = 128;

/// Number of example bad rows shown per set.
pub(super) const SHOWN_BAD: usize = 5;

/// Fraction of a training set held out if a job gives no evaluation set.
const EVALUATION_FRACTION: f64 = 0.1;

/// A job's data sets; those that it does not use are empty.
#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) sft: RowSet<DemonstrationRow>,
    pub(super) preferences: RowSet<PairRow>,
    pub(super) golden: RowSet<GoldenRow>,
    pub(super) golden_holdout: RowSet<GoldenRow>,
    pub(super) prompts: RowSet<PromptRow>,
    pub(super) evaluation_preferences: RowSet<PairRow>,
    pub(super) evaluation_prompts: RowSet<PromptRow>,
    pub(super) gold_preference_prompts: RowSet<PromptRow>,
    pub(super) gold_preference_evaluation_prompts: RowSet<PromptRow>,
    /// File and line of the rows of each field.
    pub(super) places: BTreeMap<&'static str, Places>,
    /// The sources of each field, in order.
    pub(super) sources: BTreeMap<&'static str, Vec<SourceCount>>,
    pub(super) summaries: Vec<v1::DatasetSummary>,
    pub(super) warnings: Vec<String>,
}

/// A set to read: its files, its entry in `data.limits`, and the encoder of the model that reads it.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    source: &'a Source,
    set: &'static str,
    limit: Option<usize>,
    encoder: Option<&'a Encoder>,
}

impl<'a> Wanted<'a> {
    fn new(
        source: &'a Source,
        set: &'static str,
        limit: Option<usize>,
        encoder: Option<&'a Encoder>,
    ) -> Self {
        Self { source, set, limit, encoder }
    }
}

/// Settings and budgets shared by all data sets of a job.
struct Reading<'a> {
    max_bad_fraction: f64,
    budget: &'a mut Budget,
    seed: u64,
    near: Option<NearDuplicates>,
}

impl Reading<'_> {
    /// Charges the memory needed to find near-duplicates.
    fn charge_near<T: Row>(
        &mut self,
        field: &'static str,
        parsed: &Parsed<RowSet<T>>,
    ) -> Result<(), ResolveError> {
        let Some((near, last)) = self.near.zip(parsed.rows.ids().last()) else { return Ok(()) };
        if self.budget.charge_bytes(near.bytes_per_row() * parsed.rows.len() as u64) {
            return Ok(());
        }
        let place = parsed.places.of(last);
        let place = place.unwrap_or_else(|| Place { file: field.to_owned(), position: Position::Row(0) });
        Err(ResolveError::Data { field, fault: ParseError::TooLarge { place } })
    }
}

impl Sets {
    pub(super) fn build(
        job: &spec::Job,
        sources: &Sources,
        models: &Models<'_>,
    ) -> Result<Self, ResolveError> {
        let mut sets = Self::default();
        let (data, limits, seed) = (&job.data, &job.data.limits, u64::from(job.seed));
        if let Some(generator) = &data.generator {
            sets.generate(generator, seed)?;
        }
        let all = data.sources();
        let needs_tokens = all.iter().flat_map(|(_, sources)| *sources).any(|one| one.filter.needs_tokens());
        let encoders = needs_tokens.then(|| Encoders::load(job, models)).transpose()?;
        let policy = encoders.as_ref().map(|encoders| &encoders.policy);
        let reward = encoders.as_ref().map(Encoders::reward);
        let near = Some(data.deduplication).filter(|deduplication| deduplication.threshold > 0.0);
        let near = near.map(|wanted| NearDuplicates::new(wanted.threshold, wanted.ngram));
        let mut budget = Budget::default();
        let mut reading =
            Reading { max_bad_fraction: data.max_bad_fraction, budget: &mut budget, seed, near };
        let reading = &mut reading;

        let sft = Wanted::new(&sources.sft, datasets::SFT, limits.sft, policy);
        sets.read(sft, reading, |sets| &mut sets.sft)?;
        let pairs = Wanted::new(&sources.preferences, datasets::PREFERENCES, limits.preferences, reward);
        sets.read(pairs, reading, |sets| &mut sets.preferences)?;
        let golden = Wanted::new(&sources.golden, datasets::GOLDEN, limits.golden, reward);
        sets.read(golden, reading, |sets| &mut sets.golden)?;
        let prompts = Wanted::new(&sources.prompts, datasets::PROMPTS, limits.prompts, policy);
        sets.read(prompts, reading, |sets| &mut sets.prompts)?;
        sets.hold_out(data, seed);
        let (source, limit) = (&sources.evaluation_preferences, limits.evaluation_preferences);
        let held = Wanted::new(source, datasets::EVALUATION_PREFERENCES, limit, reward);
        sets.read(held, reading, |sets| &mut sets.evaluation_preferences)?;
        let (source, limit) = (&sources.evaluation_prompts, limits.evaluation_prompts);
        let held = Wanted::new(source, datasets::EVALUATION_PROMPTS, limit, policy);
        sets.read(held, reading, |sets| &mut sets.evaluation_prompts)?;
        if let Some(gold) = &data.gold_preferences {
            let prompts = letters::preference_prompts(seed, &sets.golden, gold.pairs)?;
            sets.gold_preference_prompts = RowSet::of(prompts)?;
            let prompts = letters::preference_evaluation_prompts(seed, gold.evaluation_pairs);
            sets.gold_preference_evaluation_prompts = RowSet::of(prompts)?;
        }
        sets.bound_groups()?;
        Ok(sets)
    }

    fn generate(&mut self, generator: &spec::Generator, seed: u64) -> Result<(), SpillError> {
        let spec::Generator { name: GeneratorName::Letters, sft, golden, prompts, evaluation } = *generator;
        let generated = letters::generate(seed, letters::Counts { sft, golden, prompts, evaluation });
        self.sft = RowSet::of(generated.sft)?;
        self.golden = RowSet::of(generated.golden)?;
        self.prompts = RowSet::of(generated.prompts)?;
        self.evaluation_prompts = RowSet::of(generated.evaluation_prompts)?;
        Ok(())
    }

    /// Reads a set if there are files for it, and applies its limit in either case.
    fn read<T: parse::Wanted + Sync>(
        &mut self,
        wanted: Wanted<'_>,
        reading: &mut Reading<'_>,
        set: impl Fn(&mut Self) -> &mut RowSet<T>,
    ) -> Result<(), ResolveError> {
        let Wanted { source, set: name, limit, encoder } = wanted;
        let field = source.field;
        let selection = Selection {
            sources: &source.sources,
            seed: reading.seed,
            set: name,
            limit,
            near: reading.near,
            encoder,
        };
        let mut choice = selection.choice();
        let parsed = source.parse::<T>(reading.max_bad_fraction, reading.budget, &mut choice)?;
        let Some(mut parsed) = parsed else {
            take(set(self), limit, reading.seed, name);
            return Ok(());
        };
        reading.charge_near(field, &parsed)?;
        self.warn_skipped(field, &parsed);
        let examples: Vec<String> = parsed.bad.iter().map(ToString::to_string).collect();
        self.record_bad_rows(name, parsed.bad_rows, &examples);
        if !parsed.ignored.is_empty() {
            self.summary(name).ignored_columns = parsed.ignored.into_keys().collect();
        }
        self.summary(name).files = parsed.files.into_iter().map(file_summary).collect();
        let weighted = source.sources.iter().any(|source| source.weight.is_some());
        let weights = source.sources.iter().map(|source| weighted.then(|| source.weight.unwrap_or(1.0)));
        let read = parsed.sources.iter().zip(weights);
        let mut counts: Vec<_> = read.map(|(read, weight)| SourceCount::new(read, weight)).collect();
        choice.count(&mut counts);
        let admitted = parsed.sources.iter().map(|read| read.admitted).collect();
        let mut rows = std::mem::take(&mut parsed.rows);
        let selected = selection.select(&mut rows, admitted, &parsed.places, &mut counts)?;
        take(&mut rows, limit, reading.seed, name);
        let warnings = counts.iter().filter_map(SourceCount::warning);
        self.warnings.extend(warnings.map(|warning| format!("{field}: {warning}")));
        let kept = per_source(&rows, &parsed.places, counts.len());
        for (count, (selected, kept)) in counts.iter_mut().zip(selected.into_iter().zip(kept)) {
            count.drop(LIMIT, selected.saturating_sub(kept));
        }
        *set(self) = rows;
        self.places.insert(field, parsed.places);
        self.sources.insert(field, counts);
        Ok(())
    }

    /// Keeps groups only on the pairs that accuracy is measured on, unless they are too many for metrics.
    fn bound_groups(&mut self) -> Result<(), SpillError> {
        if self.preferences.has_groups() {
            self.preferences = self.preferences.changed(|pair| pair.groups.clear())?;
        }
        let pairs = &self.evaluation_preferences;
        if pairs.has_groups() && has_too_many_groups(pairs)? {
            self.evaluation_preferences = pairs.changed(|pair| pair.groups.clear())?;
            self.warnings.push(format!(
                "{}: accuracy is not measured for each subset or domain, of which there are more than {MAX_GROUPS}",
                datasets::EVALUATION_PREFERENCES
            ));
        }
        Ok(())
    }

    fn warn_skipped<R>(&mut self, field: &str, parsed: &Parsed<R>) {
        let skipped = parsed.skipped;
        let counts = [
            (skipped.duplicates, "duplicate row", ""),
            (skipped.ties, "comparison", " of equal score"),
            (skipped.spare_answers, "golden answer", " beside a prompt's first"),
            (skipped.undesirable, "answer", " labeled as bad"),
        ];
        for (count, noun, which) in counts.into_iter().filter(|(count, ..)| *count > 0) {
            let what = counted(count, noun);
            self.warnings.push(format!("{field}: {what}{which} {} left out", are(count)));
        }
    }

    /// Counts a set's bad rows, keeps the first ones as examples, and adds a warning.
    pub(super) fn record_bad_rows(&mut self, name: &str, bad: u64, examples: &[String]) {
        if bad == 0 {
            return;
        }
        let summary = self.summary(name);
        summary.bad_rows += bad;
        let room = SHOWN_BAD.saturating_sub(summary.first_bad.len());
        summary.first_bad.extend(examples.iter().take(room).cloned());
        let first = examples.first().map(String::as_str).unwrap_or_default();
        self.warnings.push(format!(
            "{name}: {} {} left out{EXAMPLE}{first}",
            counted(bad, "bad row"),
            are(bad)
        ));
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
    /// of a prompt stay on the same side.
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
        self.summarize_sources();
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
                // The field that the set's rows come from: its own, or that of the set it was held out of.
                let (origin, advice) = match (field, self.sources.contains_key(field)) {
                    ("data.evaluation.preferences", false) => ("data.preferences", advice),
                    ("data.evaluation.prompts", false) => ("data.prompts", advice),
                    ("data.evaluation.preferences" | "data.evaluation.prompts", true) => (field, more),
                    _ => (field, advice),
                };
                let about = |warning: &&String| {
                    [origin, set].iter().any(|name| warning.starts_with(&format!("{name}: ")))
                };
                let lost: Vec<&str> = self.warnings.iter().filter(about).map(String::as_str).collect();
                let lost = if lost.is_empty() { String::new() } else { format!(" ({})", lost.join("; ")) };
                let advice = match self.filters(origin).as_slice() {
                    [] => advice.to_owned(),
                    filters => format!("loosen {}, or {advice}", filters.join(" and ")),
                };
                Err(ResolveError::Empty { field, set, lost, advice })
            }
        }
    }

    /// The filters of a field that dropped rows.
    fn filters(&self, field: &str) -> Vec<String> {
        let counts = self.sources.get(field).into_iter().flatten().enumerate();
        let filtered = counts.filter(|(_, count)| count.is_filtered());
        filtered.map(|(index, _)| format!("{field}[{index}].filter")).collect()
    }

    /// The rows of each set, in display order.
    pub(super) fn all(&self) -> [(&'static str, &Lines); 9] {
        [
            (datasets::SFT, self.sft.lines()),
            (datasets::PREFERENCES, self.preferences.lines()),
            (datasets::EVALUATION_PREFERENCES, self.evaluation_preferences.lines()),
            (datasets::GOLD_PREFERENCE_PROMPTS, self.gold_preference_prompts.lines()),
            (datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS, self.gold_preference_evaluation_prompts.lines()),
            (datasets::GOLDEN, self.golden.lines()),
            (datasets::GOLDEN_HOLDOUT, self.golden_holdout.lines()),
            (datasets::PROMPTS, self.prompts.lines()),
            (datasets::EVALUATION_PROMPTS, self.evaluation_prompts.lines()),
        ]
    }

    /// Number of rows of each set, in display order.
    pub(super) fn counts(&self) -> [(&'static str, u64); 9] {
        self.all().map(|(name, lines)| (name, lines.len() as u64))
    }
}

fn has_too_many_groups(pairs: &RowSet<PairRow>) -> Result<bool, SpillError> {
    let mut groups = HashSet::new();
    for pair in pairs.iter() {
        groups.extend(pair?.groups);
        if groups.len() > MAX_GROUPS {
            return Ok(true);
        }
    }
    Ok(false)
}

fn file_summary(file: ReadFile) -> v1::DataFileSummary {
    let ReadFile { name, format, records, bad_rows } = file;
    v1::DataFileSummary { name, format, rows: records, bad_rows }
}

fn split<T: Row>(rows: &mut RowSet<T>, held: &mut RowSet<T>, fraction: f64, seed: u64, name: &str) {
    (*rows, *held) = hold_out(std::mem::take(rows), fraction, seed, name);
}

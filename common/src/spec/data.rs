use foil_proto::v1;

use super::SpecError;
use super::check::{Range, real, size, unknown_choice, wire_size};
use super::choice::choices;
use super::reference::InputRef;
use super::sources::{DataSource, Given, SourceSet, to_wire};

/// The sources of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Generates the sets sft, golden, prompts and evaluation prompts.
    pub generator: Option<Generator>,
    pub preferences: Vec<DataSource>,
    pub golden: Vec<DataSource>,
    pub prompts: Vec<DataSource>,
    pub sft: Vec<DataSource>,
    pub evaluation: EvaluationData,
    pub gold_preferences: Option<GoldPreferences>,
    /// Fraction of golden prompts held out to measure "fresh" accuracy.
    pub golden_holdout: f64,
    pub limits: Limits,
    pub max_bad_fraction: f64,
    pub deduplication: Deduplication,
}

/// Number of rows of each generated set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generator {
    pub name: GeneratorName,
    pub sft: usize,
    pub golden: usize,
    pub prompts: usize,
    pub evaluation: usize,
}

choices! {
    GeneratorName:
    #[default]
    Letters = "letters",
}

/// Evaluation data. If a list is empty, a tenth of the training set is held out instead.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EvaluationData {
    pub preferences: Vec<DataSource>,
    pub prompts: Vec<DataSource>,
}

/// Treatment of rows that are nearly equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deduplication {
    /// Jaccard similarity of word n-grams from which the later row is left out; 0 for equal rows only.
    pub threshold: f64,
    /// Number of words in an n-gram.
    pub ngram: usize,
}

/// Pairs drawn from the start policy and labeled by the gold reward:
/// P(first preferred) = σ(beta · (gold₁ − gold₂)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoldPreferences {
    pub pairs: usize,
    pub evaluation_pairs: usize,
    pub beta: f64,
}

/// Maximum number of rows of each set; `None` for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub preferences: Option<usize>,
    pub golden: Option<usize>,
    pub prompts: Option<usize>,
    pub sft: Option<usize>,
    pub evaluation_preferences: Option<usize>,
    pub evaluation_prompts: Option<usize>,
}

impl Data {
    pub(crate) fn parse(wire: v1::DataSpec) -> Result<Self, SpecError> {
        let evaluation = wire.evaluation.unwrap_or_default();
        let mut given = Given::parse(wire.sources)?;
        Ok(Self {
            generator: wire.generator.as_ref().map(Generator::parse).transpose()?,
            preferences: given.with_list(SourceSet::Preferences, &wire.preferences)?,
            golden: given.with_list(SourceSet::Golden, &wire.golden)?,
            prompts: given.with_list(SourceSet::Prompts, &wire.prompts)?,
            sft: given.with_list(SourceSet::Sft, &wire.sft)?,
            evaluation: EvaluationData {
                preferences: given.with_list(SourceSet::EvaluationPreferences, &evaluation.preferences)?,
                prompts: given.with_list(SourceSet::EvaluationPrompts, &evaluation.prompts)?,
            },
            gold_preferences: wire.gold_preferences.as_ref().map(GoldPreferences::parse).transpose()?,
            golden_holdout: real("data", "golden_holdout", wire.golden_holdout, 0.1, Range::BelowOne)?,
            limits: Limits::from(wire.limits.unwrap_or_default()),
            max_bad_fraction: real("data", "max_bad_fraction", wire.max_bad_fraction, 0.1, Range::Unit)?,
            deduplication: Deduplication::parse(wire.deduplication.unwrap_or_default())?,
        })
    }

    /// All input files, with the field that names each.
    pub fn inputs(&self) -> Vec<(&'static str, &InputRef)> {
        let files = self.sources().into_iter().flat_map(|(set, sources)| {
            let inputs = sources.iter().flat_map(|source| &source.inputs);
            inputs.map(move |input| (set.field(), input))
        });
        files.collect()
    }

    /// The sources of every set.
    pub fn sources(&self) -> [(SourceSet, &[DataSource]); 6] {
        [
            (SourceSet::Preferences, &self.preferences),
            (SourceSet::Golden, &self.golden),
            (SourceSet::Prompts, &self.prompts),
            (SourceSet::Sft, &self.sft),
            (SourceSet::EvaluationPreferences, &self.evaluation.preferences),
            (SourceSet::EvaluationPrompts, &self.evaluation.prompts),
        ]
    }

    /// Like [`Self::sources`], to replace local inputs with uploaded ones.
    pub fn sources_mut(&mut self) -> [(SourceSet, &mut [DataSource]); 6] {
        [
            (SourceSet::Preferences, &mut self.preferences),
            (SourceSet::Golden, &mut self.golden),
            (SourceSet::Prompts, &mut self.prompts),
            (SourceSet::Sft, &mut self.sft),
            (SourceSet::EvaluationPreferences, &mut self.evaluation.preferences),
            (SourceSet::EvaluationPrompts, &mut self.evaluation.prompts),
        ]
    }

    /// Checks that every required set has one source.
    pub(super) fn cross_check(&self, apo_weight: f64, human_weight: f64) -> Result<(), SpecError> {
        if self.generator.is_some() {
            for (field, list) in [
                ("data.golden", &self.golden),
                ("data.prompts", &self.prompts),
                ("data.sft", &self.sft),
                ("data.evaluation.prompts", &self.evaluation.prompts),
            ] {
                if !list.is_empty() {
                    return Err(SpecError::field(field, "files", "nothing beside data.generator")
                        .advice("the generator makes this set; remove one of the two"));
                }
            }
        } else {
            if self.prompts.is_empty() {
                return Err(SpecError::missing("data.prompts")
                    .advice("give the policy's prompts: any accepted file, its distinct prompts are taken"));
            }
            if self.golden.is_empty() && apo_weight > 0.0 {
                return Err(SpecError::missing("data.golden").advice(
                    "give golden answers, or set reward_step.apo_weight: 0 to train on human pairs only",
                ));
            }
        }
        let labeled = self.gold_preferences.is_some();
        if labeled && !(self.preferences.is_empty() && self.evaluation.preferences.is_empty()) {
            return Err(SpecError::field(
                "data.preferences",
                "files",
                "nothing beside data.gold_preferences",
            )
            .advice("both would be D_P; remove one of the two"));
        }
        if !labeled && self.preferences.is_empty() && human_weight > 0.0 {
            return Err(SpecError::missing("data.preferences")
                .advice("give human preference pairs, or set reward_step.human_weight: 0"));
        }
        Ok(())
    }
}

impl Deduplication {
    /// Similarity from which a warning names evaluation prompts, if the job sets no threshold.
    pub const OVERLAP: f64 = 0.8;

    fn parse(wire: v1::DeduplicationSpec) -> Result<Self, SpecError> {
        let at = "data.deduplication";
        Ok(Self {
            threshold: real(at, "threshold", wire.threshold, 0.0, Range::Unit)?,
            ngram: size(at, "ngram", wire.ngram, 5, 1)?,
        })
    }
}

impl Generator {
    fn parse(wire: &v1::GeneratorSpec) -> Result<Self, SpecError> {
        let at = "data.generator";
        if wire.name.is_empty() {
            return Err(unknown_choice(at, "name", "", GeneratorName::NAMES));
        }
        Ok(Self {
            name: GeneratorName::parse(at, "name", &wire.name)?,
            sft: size(at, "sft", wire.sft, 4000, 1)?,
            golden: size(at, "golden", wire.golden, 1000, 2)?,
            prompts: size(at, "prompts", wire.prompts, 1000, 1)?,
            evaluation: size(at, "evaluation", wire.evaluation, 500, 1)?,
        })
    }
}

impl GoldPreferences {
    fn parse(wire: &v1::GoldPreferencesSpec) -> Result<Self, SpecError> {
        let at = "data.gold_preferences";
        Ok(Self {
            pairs: size(at, "pairs", wire.pairs, 2000, 1)?,
            evaluation_pairs: size(at, "evaluation_pairs", wire.evaluation_pairs, 500, 1)?,
            beta: real(at, "beta", wire.beta, 2.0, Range::NonNegative)?,
        })
    }
}

impl From<v1::LimitSpec> for Limits {
    fn from(wire: v1::LimitSpec) -> Self {
        let limit = |rows: u32| (rows > 0).then_some(rows as usize);
        Self {
            preferences: limit(wire.preferences),
            golden: limit(wire.golden),
            prompts: limit(wire.prompts),
            sft: limit(wire.sft),
            evaluation_preferences: limit(wire.evaluation_preferences),
            evaluation_prompts: limit(wire.evaluation_prompts),
        }
    }
}

impl From<&Data> for v1::DataSpec {
    fn from(data: &Data) -> Self {
        let mut sources = Vec::new();
        let mut list = |set: SourceSet, given: &[DataSource]| to_wire(set, given, &mut sources);
        let preferences = list(SourceSet::Preferences, &data.preferences);
        let golden = list(SourceSet::Golden, &data.golden);
        let prompts = list(SourceSet::Prompts, &data.prompts);
        let sft = list(SourceSet::Sft, &data.sft);
        let evaluation = v1::EvaluationDataSpec {
            preferences: list(SourceSet::EvaluationPreferences, &data.evaluation.preferences),
            prompts: list(SourceSet::EvaluationPrompts, &data.evaluation.prompts),
        };
        Self {
            generator: data.generator.map(|generator| v1::GeneratorSpec {
                name: generator.name.to_string(),
                sft: Some(wire_size(generator.sft)),
                golden: Some(wire_size(generator.golden)),
                prompts: Some(wire_size(generator.prompts)),
                evaluation: Some(wire_size(generator.evaluation)),
            }),
            preferences,
            golden,
            prompts,
            sft,
            evaluation: Some(evaluation),
            gold_preferences: data.gold_preferences.map(|gold| v1::GoldPreferencesSpec {
                pairs: Some(wire_size(gold.pairs)),
                evaluation_pairs: Some(wire_size(gold.evaluation_pairs)),
                beta: Some(gold.beta),
            }),
            golden_holdout: Some(data.golden_holdout),
            limits: Some(wire_limits(&data.limits)),
            max_bad_fraction: Some(data.max_bad_fraction),
            sources,
            deduplication: (data.deduplication.threshold > 0.0 || data.deduplication.ngram != 5).then(|| {
                v1::DeduplicationSpec {
                    threshold: Some(data.deduplication.threshold),
                    ngram: Some(wire_size(data.deduplication.ngram)),
                }
            }),
        }
    }
}

fn wire_limits(limits: &Limits) -> v1::LimitSpec {
    let rows = |limit: Option<usize>| limit.map_or(0, wire_size);
    v1::LimitSpec {
        preferences: rows(limits.preferences),
        golden: rows(limits.golden),
        prompts: rows(limits.prompts),
        sft: rows(limits.sft),
        evaluation_preferences: rows(limits.evaluation_preferences),
        evaluation_prompts: rows(limits.evaluation_prompts),
    }
}

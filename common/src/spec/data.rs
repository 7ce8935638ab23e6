use foil_proto::v1;

use super::SpecError;
use super::check::{Range, real, size, unknown_choice, wire_size};
use super::choice::choices;
use super::reference::InputRef;

/// The sources of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Generates the sets sft, golden, prompts and evaluation prompts.
    pub generator: Option<Generator>,
    pub preferences: Vec<InputRef>,
    pub golden: Vec<InputRef>,
    pub prompts: Vec<InputRef>,
    pub sft: Vec<InputRef>,
    pub evaluation: EvaluationData,
    pub gold_preferences: Option<GoldPreferences>,
    /// Fraction of golden prompts held out to measure "fresh" accuracy.
    pub golden_holdout: f64,
    pub limits: Limits,
    pub max_bad_fraction: f64,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EvaluationData {
    pub preferences: Vec<InputRef>,
    pub prompts: Vec<InputRef>,
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
        Ok(Self {
            generator: wire.generator.as_ref().map(Generator::parse).transpose()?,
            preferences: inputs("data.preferences", &wire.preferences)?,
            golden: inputs("data.golden", &wire.golden)?,
            prompts: inputs("data.prompts", &wire.prompts)?,
            sft: inputs("data.sft", &wire.sft)?,
            evaluation: EvaluationData {
                preferences: inputs("data.evaluation.preferences", &evaluation.preferences)?,
                prompts: inputs("data.evaluation.prompts", &evaluation.prompts)?,
            },
            gold_preferences: wire.gold_preferences.as_ref().map(GoldPreferences::parse).transpose()?,
            golden_holdout: real("data", "golden_holdout", wire.golden_holdout, 0.1, Range::BelowOne)?,
            limits: Limits::from(wire.limits.unwrap_or_default()),
            max_bad_fraction: real("data", "max_bad_fraction", wire.max_bad_fraction, 0.1, Range::Unit)?,
        })
    }

    /// All input files, with the field that names each.
    pub fn inputs(&self) -> Vec<(&'static str, &InputRef)> {
        let lists = [
            ("data.preferences", &self.preferences),
            ("data.golden", &self.golden),
            ("data.prompts", &self.prompts),
            ("data.sft", &self.sft),
            ("data.evaluation.preferences", &self.evaluation.preferences),
            ("data.evaluation.prompts", &self.evaluation.prompts),
        ];
        lists.into_iter().flat_map(|(field, list)| list.iter().map(move |input| (field, input))).collect()
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

fn inputs(field: &str, paths: &[String]) -> Result<Vec<InputRef>, SpecError> {
    paths
        .iter()
        .enumerate()
        .map(|(index, path)| InputRef::parse("", &format!("{field}[{index}]"), path))
        .collect()
}

fn names(inputs: &[InputRef]) -> Vec<String> {
    inputs.iter().map(ToString::to_string).collect()
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
        Self {
            generator: data.generator.map(|generator| v1::GeneratorSpec {
                name: generator.name.to_string(),
                sft: Some(wire_size(generator.sft)),
                golden: Some(wire_size(generator.golden)),
                prompts: Some(wire_size(generator.prompts)),
                evaluation: Some(wire_size(generator.evaluation)),
            }),
            preferences: names(&data.preferences),
            golden: names(&data.golden),
            prompts: names(&data.prompts),
            sft: names(&data.sft),
            evaluation: Some(v1::EvaluationDataSpec {
                preferences: names(&data.evaluation.preferences),
                prompts: names(&data.evaluation.prompts),
            }),
            gold_preferences: data.gold_preferences.map(|gold| v1::GoldPreferencesSpec {
                pairs: Some(wire_size(gold.pairs)),
                evaluation_pairs: Some(wire_size(gold.evaluation_pairs)),
                beta: Some(gold.beta),
            }),
            golden_holdout: Some(data.golden_holdout),
            limits: Some(wire_limits(&data.limits)),
            max_bad_fraction: Some(data.max_bad_fraction),
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

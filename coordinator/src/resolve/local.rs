//! The same sets on a client's own machine, from local paths: what `foil inspect` shows before anything is submitted.

use std::path::Path;

use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow};
use foil_common::spec::{self, ModelRef};
use foil_common::text::{Encoder, ModelText};
use foil_proto::v1;

use super::load::Sources;
use super::{ResolveError, names};

/// A job's sets as submission would make them, and the encoders of the models that read them.
pub struct Local {
    /// In the order of use; those without rows are left out.
    pub sets: Vec<LocalSet>,
    pub summaries: Vec<v1::DatasetSummary>,
    pub warnings: Vec<String>,
    pub policy: Encoder,
    /// Where the reward model is a directory of its own.
    pub reward: Option<Encoder>,
}

pub struct LocalSet {
    pub name: &'static str,
    pub rows: Rows,
}

pub enum Rows {
    Demonstrations(Vec<DemonstrationRow>),
    Pairs(Vec<PairRow>),
    Golden(Vec<GoldenRow>),
    Prompts(Vec<PromptRow>),
}

impl Rows {
    pub fn len(&self) -> usize {
        match self {
            Rows::Demonstrations(rows) => rows.len(),
            Rows::Pairs(rows) => rows.len(),
            Rows::Golden(rows) => rows.len(),
            Rows::Prompts(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads, checks and splits a job's local inputs, as submission does with uploaded ones.
pub fn local(job: &spec::Job) -> Result<Local, ResolveError> {
    let files = |field, model: &ModelRef| match model {
        ModelRef::Path(path) => {
            ModelText::read(Path::new(path)).map_err(|source| ResolveError::Text { field, source })
        }
        ModelRef::Input { .. } | ModelRef::Artifact { .. } => {
            Err(ResolveError::Uploaded { field, name: model.name() })
        }
    };
    let policy = files("policy.model", &job.policy.model)?;
    let reward = job.reward.model.as_ref().map(|model| files("reward.model", model)).transpose()?;
    let sources = Sources::open(&job.data)?;
    let sets = super::build(job, &sources, &policy, reward.as_ref())?;
    let all = [
        (names::SFT, Rows::Demonstrations(sets.sft)),
        (names::PREFERENCES, Rows::Pairs(sets.preferences)),
        (names::EVALUATION_PREFERENCES, Rows::Pairs(sets.evaluation_preferences)),
        (names::GOLD_PREFERENCE_PROMPTS, Rows::Prompts(sets.gold_preference_prompts)),
        (names::GOLD_PREFERENCE_EVALUATION_PROMPTS, Rows::Prompts(sets.gold_preference_evaluation_prompts)),
        (names::GOLDEN, Rows::Golden(sets.golden)),
        (names::GOLDEN_HOLDOUT, Rows::Golden(sets.golden_holdout)),
        (names::PROMPTS, Rows::Prompts(sets.prompts)),
        (names::EVALUATION_PROMPTS, Rows::Prompts(sets.evaluation_prompts)),
    ];
    Ok(Local {
        sets: all
            .into_iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(name, rows)| LocalSet { name, rows })
            .collect(),
        summaries: sets.summaries,
        warnings: sets.warnings,
        policy: encoder(job, "policy.model", &policy)?,
        reward: reward.map(|files| encoder(job, "reward.model", &files)).transpose()?,
    })
}

fn encoder(job: &spec::Job, field: &'static str, files: &ModelText) -> Result<Encoder, ResolveError> {
    Encoder::new(files, &job.text).map_err(|source| ResolveError::Text { field, source })
}

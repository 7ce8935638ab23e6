//! Resolves local inputs on the client's machine, which `foil inspect` shows before anything is submitted.

use std::collections::BTreeMap;
use std::path::Path;

use foil_common::data::parse::{Place, Places};
use foil_common::data::row_set::{Lines, RowSet};
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow};
use foil_common::datasets;
use foil_common::model::WeightFiles;
use foil_common::spec::{self, ModelRef};
use foil_common::text::{Encoder, ModelText};
use foil_proto::v1;

use super::compatibility::{self, POLICY, REWARD, Weights};
use super::load::Sources;
use super::source_counts::origins;
use super::{Models, ResolveError};

/// A job's data sets as a submission would build them, and the encoders of its models.
pub struct LocalInputs {
    /// Data sets in the order of use, without empty ones.
    pub sets: Vec<LocalSet>,
    /// File and line of the rows of each field.
    places: BTreeMap<&'static str, Places>,
    pub summaries: Vec<v1::DatasetSummary>,
    pub warnings: Vec<String>,
    pub policy: Encoder,
    /// Encoder of the reward model, if that model has its own directory.
    pub reward: Option<Encoder>,
    /// Weight files that exist, by field.
    pub weights: Vec<(&'static str, WeightFiles)>,
}

pub struct LocalSet {
    pub name: &'static str,
    pub rows: Rows,
}

pub enum Rows {
    Demonstrations(RowSet<DemonstrationRow>),
    Pairs(RowSet<PairRow>),
    Golden(RowSet<GoldenRow>),
    Prompts(RowSet<PromptRow>),
}

impl Rows {
    pub fn lines(&self) -> &Lines {
        match self {
            Rows::Demonstrations(rows) => rows.lines(),
            Rows::Pairs(rows) => rows.lines(),
            Rows::Golden(rows) => rows.lines(),
            Rows::Prompts(rows) => rows.lines(),
        }
    }

    pub fn len(&self) -> usize {
        self.lines().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines().is_empty()
    }
}

impl LocalInputs {
    /// Where the row of a data set was read; `None` for rows that do not come from a file.
    pub fn place(&self, set: &str, id: u64) -> Option<Place> {
        let (own, parent) = origins(set)?;
        let places = [Some(own), parent].into_iter().flatten();
        places.filter_map(|origin| self.places.get(origin.field())).find_map(|places| places.of(id))
    }

    /// Descriptions of the data sets in the form that a plan needs.
    pub fn datasets(&self) -> Vec<v1::Dataset> {
        let described = |set: &LocalSet| v1::Dataset {
            name: set.name.to_owned(),
            object: None,
            rows: set.rows.len() as u64,
        };
        self.sets.iter().map(described).collect()
    }
}

/// Reads, checks and splits a job's local inputs the way a submission does with uploaded ones. Weights are
/// checked if they exist.
pub fn local(job: &spec::Job) -> Result<LocalInputs, ResolveError> {
    let files = |field, model: &ModelRef| match model {
        ModelRef::Path(path) => {
            let (config, weights) = compatibility::local_model(job, field, path, Weights::Optional)?;
            require_tokenizer(field, path)?;
            let text = ModelText::read(Path::new(path));
            Ok((text.map_err(|fault| ResolveError::Text { field, fault })?, config, weights))
        }
        ModelRef::Input { .. } | ModelRef::Artifact { .. } => {
            Err(ResolveError::Uploaded { field, name: model.name() })
        }
    };
    let policy = files(POLICY, &job.policy.model)?;
    let reward = job.reward.model.as_ref().map(|model| files(REWARD, model)).transpose()?;
    let sources = Sources::open(&job.data)?;
    let models = Models {
        policy: (&policy.0, &policy.1),
        reward: reward.as_ref().map(|(text, config, _)| (text, config)),
    };
    let sets = super::build(job, &sources, &models)?;
    let all = [
        (datasets::SFT, Rows::Demonstrations(sets.sft)),
        (datasets::PREFERENCES, Rows::Pairs(sets.preferences)),
        (datasets::EVALUATION_PREFERENCES, Rows::Pairs(sets.evaluation_preferences)),
        (datasets::GOLD_PREFERENCE_PROMPTS, Rows::Prompts(sets.gold_preference_prompts)),
        (
            datasets::GOLD_PREFERENCE_EVALUATION_PROMPTS,
            Rows::Prompts(sets.gold_preference_evaluation_prompts),
        ),
        (datasets::GOLDEN, Rows::Golden(sets.golden)),
        (datasets::GOLDEN_HOLDOUT, Rows::Golden(sets.golden_holdout)),
        (datasets::PROMPTS, Rows::Prompts(sets.prompts)),
        (datasets::EVALUATION_PROMPTS, Rows::Prompts(sets.evaluation_prompts)),
    ];
    Ok(LocalInputs {
        sets: all
            .into_iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(name, rows)| LocalSet { name, rows })
            .collect(),
        places: sets.places,
        summaries: sets.summaries,
        warnings: sets.warnings,
        policy: encoder(job, POLICY, &policy.0)?,
        reward: reward.as_ref().map(|(files, ..)| encoder(job, REWARD, files)).transpose()?,
        weights: [(POLICY, policy.2), (REWARD, reward.and_then(|(.., weights)| weights))]
            .into_iter()
            .filter_map(|(field, weights)| Some((field, weights?)))
            .collect(),
    })
}

/// Fails if there is no tokenizer. A plan needs none, so a missing tokenizer is reported differently from an
/// unreadable one.
fn require_tokenizer(field: &'static str, path: &str) -> Result<(), ResolveError> {
    let file = Path::new(path).join("tokenizer.json");
    match file.exists() {
        true => Ok(()),
        false => Err(ResolveError::Unreadable {
            field,
            path: file.display().to_string(),
            what: "there is no such file".to_owned(),
            absent: true,
        }),
    }
}

fn encoder(job: &spec::Job, field: &'static str, files: &ModelText) -> Result<Encoder, ResolveError> {
    Encoder::new(files, &job.text).map_err(|fault| ResolveError::Text { field, fault })
}

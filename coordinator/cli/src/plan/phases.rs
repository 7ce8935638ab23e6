//! The phases of a job, whose inputs may be missing.

use anyhow::Result;
use foil_common::datasets as sets;
use foil_common::spec;
use foil_proto::v1;

use foil_common::plural::counted;
use foil_coordinator::plan::{self, Phase};
use foil_coordinator::resolve::local;

pub(super) struct Phases {
    pub(super) list: Vec<Phase>,
    /// The reason why chunks and steps are unknown, if they are.
    pub(super) unknown: Option<String>,
}

impl Phases {
    /// Sizes stay unknown if inputs are missing; existing inputs must be valid.
    pub(super) fn of(job: &spec::Job) -> Result<Self> {
        match local::local(job) {
            Ok(local) => Ok(Self { list: plan::bounded(job, &local.datasets())?, unknown: None }),
            Err(error) if error.is_missing_file() => Ok(Self {
                list: plan::bounded(job, &named(job))?,
                unknown: Some(format!("{error}; so the phases' chunks and steps are unknown")),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Chunks or steps of a phase as text.
    pub(super) fn work(&self, phase: &Phase) -> String {
        match (&self.unknown, phase.steps) {
            (Some(_), 0) => "chunks".to_owned(),
            (Some(_), _) => "steps".to_owned(),
            (None, 0) => counted(phase.chunks, "chunk"),
            (None, steps) => counted(steps, "step"),
        }
    }
}

/// The sets for which the job has a source, with one row each.
fn named(job: &spec::Job) -> Vec<v1::Dataset> {
    let data = &job.data;
    let made = data.generator.is_some();
    let golden = made || !data.golden.is_empty();
    let labeled = data.gold_preferences.is_some();
    let there = [
        (sets::SFT, job.has_sft()),
        (sets::PREFERENCES, !data.preferences.is_empty()),
        (sets::EVALUATION_PREFERENCES, !data.preferences.is_empty()),
        (sets::GOLDEN, golden),
        (sets::GOLDEN_HOLDOUT, golden && data.golden_holdout > 0.0),
        (sets::PROMPTS, true),
        (sets::EVALUATION_PROMPTS, true),
        (sets::GOLD_PREFERENCE_PROMPTS, labeled),
        (sets::GOLD_PREFERENCE_EVALUATION_PROMPTS, labeled),
    ];
    there.into_iter().filter(|(_, there)| *there).map(|(name, _)| dataset(name, 1)).collect()
}

fn dataset(name: &str, rows: u64) -> v1::Dataset {
    v1::Dataset { name: name.to_owned(), object: None, rows }
}

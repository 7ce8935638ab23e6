//! Resolution of a submission's inputs: they are parsed, checked, split and written once.
//!
//! Ranks read nothing but the output of this module, and the models that read a row can encode it. Problems
//! with a job's inputs are therefore reported at submission, not an hour into the job.

mod check;
pub mod child;
mod compatibility;
mod encoders;
mod error;
mod load;
pub mod local;
mod models;
mod overlaps;
mod parallel;
mod request;
mod resolver;
mod select;
mod sets;
mod source_counts;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;

use foil_common::model::DecoderConfig;
use foil_common::spec;
use foil_common::storage::Store;
use foil_common::text::ModelText;
use foil_proto::v1;
use serde::{Deserialize, Serialize};

use crate::plan::{Work, plan};
use foil_common::plural::counted;

pub use self::compatibility::{local_config, local_models};
pub use self::error::{RemoteError, ResolveError};
pub use self::load::expand;
use self::load::{Sources, Uploads};
pub use self::parallel::map_in_parallel;
pub use self::request::Request;
pub use self::resolver::{ChildConfig, Resolver};
use self::sets::Sets;

/// Separator before the last part of a warning, which quotes a row.
const EXAMPLE: &str = "; the first is ";

/// A warning without the quoted row, for readers who may not see the data.
pub fn without_example(warning: &str) -> &str {
    warning.split_once(EXAMPLE).map_or(warning, |(told, _)| told)
}

/// A job's inputs in the form that its phases use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// The data sets that have rows, written as `jobs/{job}/data/{name}.jsonl`; without objects in a dry
    /// run.
    pub datasets: Vec<v1::Dataset>,
    /// Summary of every data set, including its bad rows.
    pub summaries: Vec<v1::DatasetSummary>,
    /// Warnings for the user: dropped rows, overlapping sets, truncated text.
    pub warnings: Vec<String>,
    /// The model that the policy starts from: `policy@0`, or `policy@input` if SFT turns it into `policy@0`.
    pub policy: v1::Artifact,
    /// `reward@input`, if the job names a reward model to start from.
    pub reward: Option<v1::Artifact>,
}

/// A job's inputs before they are written; enough for a dry run.
#[derive(Debug)]
struct Prepared {
    sets: Sets,
    policy: v1::Artifact,
    reward: Option<v1::Artifact>,
}

/// The artifacts of other jobs that a job's models refer to, by field. The leader resolves them, because it
/// knows the jobs.
pub type ModelArtifacts = BTreeMap<String, v1::Artifact>;

/// Reads and checks a job's inputs without writing anything. Deterministic: the same job yields the same
/// bytes.
async fn prepare(
    job_id: &str,
    job: &spec::Job,
    artifacts: &ModelArtifacts,
    uploads: Uploads<'_>,
) -> Result<Prepared, ResolveError> {
    let policy = models::policy(job_id, job, artifacts, uploads).await?;
    let reward = models::reward(job_id, job, artifacts, uploads).await?;
    let sources = Sources::fetch(&job.data, uploads).await?;
    let job = job.clone();
    let work = move || {
        let models = Models {
            policy: (&policy.text, &policy.config),
            reward: reward.as_ref().map(|reward| (&reward.text, &reward.config)),
        };
        let sets = build(&job, &sources, &models)?;
        Ok(Prepared { sets, policy: policy.artifact, reward: reward.map(|reward| reward.artifact) })
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ResolveError::Crashed)?
}

/// The models that read a job's rows.
struct Models<'a> {
    policy: (&'a ModelText, &'a DecoderConfig),
    reward: Option<(&'a ModelText, &'a DecoderConfig)>,
}

fn build(job: &spec::Job, sources: &Sources, models: &Models<'_>) -> Result<Sets, ResolveError> {
    let mut sets = Sets::build(job, sources, models)?;
    check::check_encodings(job, &mut sets, models)?;
    sets.require(job)?;
    sets.report_overlaps(job)?;
    sets.warnings.extend(job.warnings());
    sets.warnings.extend(warmup_warnings(job, &write::descriptions(&sets)));
    Ok(sets)
}

/// Warnings about phases that end during learning-rate warmup.
fn warmup_warnings(job: &spec::Job, datasets: &[v1::Dataset]) -> Vec<String> {
    let first = spec::Job { rounds: 1, ..job.clone() };
    let phases = plan(&first, datasets).into_iter().filter_map(|phase| {
        let (step, schedule) = match phase.work {
            Work::Sft => ("sft_step", &job.sft_step.schedule),
            Work::TrainReward => ("reward_step", &job.reward_step.schedule),
            Work::TrainPolicy => ("policy_step", &job.policy_step.schedule),
            _ => return None,
        };
        (schedule.warmup_steps > phase.steps).then(|| {
            format!(
                "{step}.schedule.warmup_steps: {} is more than the {} of the phase, which never reaches its learning rate",
                schedule.warmup_steps,
                counted(phase.steps, "step")
            )
        })
    });
    phases.collect()
}

impl Prepared {
    /// The result of a dry run: data sets without objects.
    fn described(self) -> Resolved {
        let datasets = write::descriptions(&self.sets);
        self.resolved(datasets)
    }

    /// Writes the data sets.
    async fn write(self, job_id: &str, store: &Store) -> Result<Resolved, ResolveError> {
        let datasets = write::sets(job_id, &self.sets, store).await?;
        Ok(self.resolved(datasets))
    }

    fn resolved(self, datasets: Vec<v1::Dataset>) -> Resolved {
        let Sets { summaries, warnings, .. } = self.sets;
        Resolved { datasets, summaries, warnings, policy: self.policy, reward: self.reward }
    }
}

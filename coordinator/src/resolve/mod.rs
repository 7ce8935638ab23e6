//! A submitted specification's inputs, parsed, checked, split and written once.
//!
//! Ranks read nothing but what comes out here, and every row that comes out can be encoded by the models that
//! will read it: what is wrong with a job's inputs is said at submission, not an hour into the job.

mod check;
pub mod child;
mod error;
mod load;
pub mod local;
mod models;
mod overlaps;
mod request;
mod resolver;
mod sets;
mod suitability;
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

pub use self::error::ResolveError;
use self::load::Sources;
pub use self::request::{Refusal, Request};
pub use self::resolver::{Resolver, Setup};
use self::sets::Sets;
pub use self::suitability::{local_config, local_models};

/// A job's inputs as its phases use them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// The sets that have rows, written as `jobs/{job}/data/{name}.jsonl`; without objects where nothing is written.
    pub datasets: Vec<v1::Dataset>,
    /// Of every set, also of bad rows in it.
    pub summaries: Vec<v1::DatasetSummary>,
    /// What a user should know: rows dropped, sets that overlap, text that is cut.
    pub warnings: Vec<String>,
    /// The directory that the policy starts from: `policy@0`, or `policy@input` where SFT makes `policy@0` of it.
    pub policy: v1::Artifact,
    /// `reward@input`, where the job names a reward model to start from.
    pub reward: Option<v1::Artifact>,
}

/// A job's inputs, not written yet: what a dry run needs.
#[derive(Debug)]
struct Prepared {
    sets: Sets,
    policy: v1::Artifact,
    reward: Option<v1::Artifact>,
}

/// The artifacts of other jobs that a job's models name, by field. Only who knows the jobs can say which those are.
pub type Made = BTreeMap<String, v1::Artifact>;

/// Reads and checks a job's inputs and writes nothing. The same job gives the same bytes again.
async fn prepare(
    job_id: &str,
    job: &spec::Job,
    made: &Made,
    store: &Store,
) -> Result<Prepared, ResolveError> {
    let policy = models::policy(job_id, job, made, store).await?;
    let reward = models::reward(job_id, job, made, store).await?;
    let sources = Sources::fetch(&job.data, store).await?;
    let job = job.clone();
    let work = move || {
        let readers = Readers {
            policy: (&policy.text, &policy.config),
            reward: reward.as_ref().map(|reward| (&reward.text, &reward.config)),
        };
        let sets = build(&job, &sources, &readers)?;
        Ok(Prepared { sets, policy: policy.artifact, reward: reward.map(|reward| reward.artifact) })
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ResolveError::Crashed)?
}

/// The models that read a job's rows.
struct Readers<'a> {
    policy: (&'a ModelText, &'a DecoderConfig),
    reward: Option<(&'a ModelText, &'a DecoderConfig)>,
}

fn build(job: &spec::Job, sources: &Sources, readers: &Readers<'_>) -> Result<Sets, ResolveError> {
    let mut sets = Sets::build(job, sources)?;
    check::encodings(job, &mut sets, readers)?;
    sets.require(job)?;
    sets.report_overlaps(job);
    sets.warnings.extend(job.warnings());
    sets.warnings.extend(warmups(job, &write::descriptions(&sets)));
    Ok(sets)
}

/// Phases that end before the learning rate is warm.
fn warmups(job: &spec::Job, datasets: &[v1::Dataset]) -> Vec<String> {
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
    /// The sets' descriptions without objects, as a plan needs them.
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

//! Jobs that start from what other jobs have made.
//!
//! Nothing is copied and nothing need be pinned: a committed artifact's objects are never deleted.

use foil_common::spec::{self, ModelRef};
use tonic::Status;

use super::status::{bad_field, no_job, stopped};
use crate::driver::{Handle, Query};
use crate::job::find_committed;
use crate::resolve::Made;

/// Finds each model that another job has made. In the specification it then goes by that job's id and its own name, so
/// that it stays what it was when the job was submitted.
pub(super) async fn settle(job: &mut spec::Job, driver: &Handle) -> Result<Made, Status> {
    let mut made = Made::new();
    let policy = Some(("policy.model", &mut job.policy.model));
    let reward = job.reward.model.as_mut().map(|model| ("reward.model", model));
    for (field, model) in [policy, reward].into_iter().flatten() {
        let ModelRef::Artifact { job, artifact } = &*model else { continue };
        let name = model.name();
        let wrong = |problem: &str| bad_field(&format!("spec.{field}"), problem);
        let from = find_job(driver, job).await?;
        let from =
            from.ok_or_else(|| wrong(&format!("there is no job {job}; `foil list` shows those there are")))?;
        let asked = artifact.clone();
        let found = driver.look(&from, move |state| find_committed(state, &asked).cloned()).await;
        // No job is ever removed.
        let found =
            found.map_err(stopped)?.ok_or_else(|| no_job(&from))?.map_err(|problem| wrong(&problem))?;
        // A reward model may start from a language model; a policy is one.
        let fits = found.kind == "policy" || (found.kind == "reward" && field == "reward.model");
        if !fits {
            let problem =
                format!("{name} is a {} artifact, and the field takes a model of its own kind", found.kind);
            return Err(wrong(&problem));
        }
        made.insert(field.to_owned(), found.clone());
        *model = ModelRef::Artifact { job: from, artifact: found.name.clone() };
    }
    Ok(made)
}

/// The id of the job that has this id, else of the newest one of this name.
async fn find_job(driver: &Handle, job: &str) -> Result<Option<String>, Status> {
    if driver.look(job, |_| ()).await.map_err(stopped)?.is_some() {
        return Ok(Some(job.to_owned()));
    }
    let query = Query { size: 1, name: job.to_owned(), ..Query::default() };
    let page = driver.list(query).await.map_err(stopped)?;
    Ok(page.jobs.into_iter().next().map(|found| found.id))
}

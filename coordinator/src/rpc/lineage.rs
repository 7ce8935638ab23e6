//! Jobs that start from what other jobs have made.
//!
//! Nothing is copied and nothing need be pinned: a committed artifact's objects are never deleted.

use foil_common::spec::{self, ModelRef};
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, stopped};
use crate::driver::Handle;
use crate::job::find_artifact;
use crate::resolve::Made;

const PAGE: usize = 100;

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
        let found = find_artifact(&from, artifact).map_err(|problem| wrong(&problem))?;
        // A reward model may start from a language model; a policy is one.
        let fits = found.kind == "policy" || (found.kind == "reward" && field == "reward.model");
        if !fits {
            let problem =
                format!("{name} is a {} artifact, and the field takes a model of its own kind", found.kind);
            return Err(wrong(&problem));
        }
        made.insert(field, found.clone());
        *model = ModelRef::Artifact { job: from.id.clone(), artifact: found.name.clone() };
    }
    Ok(made)
}

/// By its id, else the newest of the name.
async fn find_job(driver: &Handle, job: &str) -> Result<Option<v1::Job>, Status> {
    if let Some(found) = driver.get(job).await.map_err(stopped)? {
        return Ok(Some(found));
    }
    let (mut newest, mut after) = (None::<String>, None);
    loop {
        let page = driver.list(PAGE, after).await.map_err(stopped)?;
        // Ids begin with the time of submission.
        let named = page.jobs.into_iter().filter(|found| found.name == job).map(|found| found.id);
        newest = named.chain(newest).max();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    match newest {
        Some(id) => driver.get(&id).await.map_err(stopped),
        None => Ok(None),
    }
}

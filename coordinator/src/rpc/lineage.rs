//! Jobs that start from other jobs' models.
//!
//! Nothing is copied. While a job that starts from an artifact has not ended, the artifact's job cannot be
//! deleted; after that, the inherited objects stay in the store for as long as the inheriting job exists.

use foil_common::spec::{self, ModelRef};
use tonic::Status;

use super::status::{bad_field, no_job, stopped};
use crate::driver::{Query, UserHandle};
use crate::job::find_committed;
use crate::resolve::ModelArtifacts;
use crate::tenant::Tenant;

/// Resolves each model that another job produced, and replaces the reference in the specification with that
/// job's id and the artifact's full name, so that it keeps its meaning after submission.
pub(super) async fn resolve_models(
    job: &mut spec::Job,
    driver: &UserHandle,
    tenant: &Tenant,
) -> Result<ModelArtifacts, Status> {
    let mut artifacts = ModelArtifacts::new();
    let policy = Some(("policy.model", &mut job.policy.model));
    let reward = job.reward.model.as_mut().map(|model| ("reward.model", model));
    for (field, model) in [policy, reward].into_iter().flatten() {
        let ModelRef::Artifact { job, artifact } = &*model else { continue };
        let name = model.name();
        let wrong = |problem: &str| bad_field(&format!("spec.{field}"), problem);
        let from = find_job(driver, job, tenant).await?;
        let from =
            from.ok_or_else(|| wrong(&format!("there is no job {job}; `foil list` shows those there are")))?;
        let asked = artifact.clone();
        let found = driver.inspect(&from, move |state| find_committed(state, &asked).cloned()).await;
        // The job may have been deleted in between.
        let found =
            found.map_err(stopped)?.ok_or_else(|| no_job(&from))?.map_err(|problem| wrong(&problem))?;
        // A reward model may start from a policy, because that is a language model.
        let fits = found.kind == "policy" || (found.kind == "reward" && field == "reward.model");
        if !fits {
            let problem =
                format!("{name} is a {} artifact, and the field takes a model of its own kind", found.kind);
            return Err(wrong(&problem));
        }
        artifacts.insert(field.to_owned(), found.clone());
        *model = ModelRef::Artifact { job: from, artifact: found.name.clone() };
    }
    Ok(artifacts)
}

/// Id of the job with this id, or else of the tenant's newest job with this name.
async fn find_job(driver: &UserHandle, job: &str, tenant: &Tenant) -> Result<Option<String>, Status> {
    if driver.inspect(job, |_| ()).await.map_err(stopped)?.is_some() {
        return Ok(Some(job.to_owned()));
    }
    let query = Query { size: 1, name: job.to_owned(), tenant: Some(tenant.clone()), ..Query::default() };
    let page = driver.list(query).await.map_err(stopped)?;
    Ok(page.jobs.into_iter().next().map(|found| found.id))
}

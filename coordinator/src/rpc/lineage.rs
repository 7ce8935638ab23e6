//! Jobs that start from what other jobs have made.
//!
//! Nothing is copied and nothing need be pinned: a committed artifact's objects are never deleted.

use bytes::Bytes;
use foil_common::rpc::artifacts::input_key;
use foil_common::spec::{self, ModelRef};
use foil_common::storage::Store;
use foil_proto::v1;
use tonic::Status;

use super::status::{bad_field, bad_input, stopped};
use crate::driver::Handle;
use crate::job::find_artifact;
use crate::resolve::ResolveError;

const PAGE: usize = 100;

/// Puts the list of its files in the place of each model that another job has made.
pub(super) async fn settle(job: &mut spec::Job, driver: &Handle, store: &Store) -> Result<(), Status> {
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
        *model = write_listing(found, name, store).await?;
    }
    Ok(())
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

/// As a client lists an uploaded directory. An adapter beside the model stays behind: it is merged into it, and another
/// would be to this model.
async fn write_listing(artifact: &v1::Artifact, name: String, store: &Store) -> Result<ModelRef, Status> {
    let mut listing = v1::Artifact { name: name.clone(), ..artifact.clone() };
    listing.objects.retain(|object| !object.path.contains('/'));
    let bytes = serde_json::to_vec(&listing).map_err(|error| Status::internal(error.to_string()))?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    let written = store.put_object(&input_key(&blake3), Bytes::from(bytes)).await;
    written.map_err(|error| bad_input(&ResolveError::Store(error)))?;
    // What follows a colon in a reference is the name, and a name has no further meaning.
    Ok(ModelRef::Input { blake3, name })
}

//! The objects and jobs that a job depends on.

use foil_common::spec::{self, InputRef, ModelRef};
use foil_proto::v1;

use super::state::JobState;
use crate::inputs::stored_key;
use crate::tenant::Tenant;

/// The artifacts of other jobs that a job starts from, as pairs of job id and artifact.
pub fn origins(job: &spec::Job) -> impl Iterator<Item = (&str, &str)> {
    let models = [Some(&job.policy.model), job.reward.model.as_ref()];
    models.into_iter().flatten().filter_map(|model| match model {
        ModelRef::Artifact { job, artifact } => Some((job.as_str(), artifact.as_str())),
        ModelRef::Path(_) | ModelRef::Input { .. } => None,
    })
}

/// Hashes of the inputs that a job's specification names.
pub fn named_inputs(job: &spec::Job) -> impl Iterator<Item = &str> {
    let models = [Some(&job.policy.model), job.reward.model.as_ref()];
    let models = models.into_iter().flatten().filter_map(|model| match model {
        ModelRef::Input { blake3, .. } => Some(blake3.as_str()),
        ModelRef::Path(_) | ModelRef::Artifact { .. } => None,
    });
    let data = job.data.inputs().into_iter().filter_map(|(_, input)| match input {
        InputRef::Input { blake3, .. } => Some(blake3.as_str()),
        InputRef::Path(_) | InputRef::Url(_) => None,
    });
    models.chain(data)
}

impl JobState {
    /// The keys outside the job's own prefix that its specification and its start models name. They include
    /// everything that the job's own artifacts inherit from a start model.
    pub fn outside_keys(&self) -> impl Iterator<Item = String> {
        let own = format!("jobs/{}/", self.id);
        let tenant: Tenant = self.submitted.tenant().parse().unwrap_or_default();
        let inputs = named_inputs(&self.spec).map(move |blake3| stored_key(&tenant, blake3));
        let starts = [Some(&self.submitted.policy), self.submitted.reward.as_ref()];
        let files = starts.into_iter().flatten().flat_map(|start: &v1::Artifact| &start.objects);
        let files = files.map(|object| object.key.clone());
        inputs.chain(files).filter(move |key| !key.starts_with(&own))
    }
}

//! The objects and jobs that a job depends on.

use foil_common::spec::{self, InputRef, ModelRef};
use foil_proto::v1;

use super::state::JobState;

/// The artifacts of other jobs that a job starts from: job id and artifact.
pub fn origins(job: &spec::Job) -> impl Iterator<Item = (&str, &str)> {
    let models = [Some(&job.policy.model), job.reward.model.as_ref()];
    models.into_iter().flatten().filter_map(|model| match model {
        ModelRef::Artifact { job, artifact } => Some((job.as_str(), artifact.as_str())),
        ModelRef::Path(_) | ModelRef::Input { .. } => None,
    })
}

impl JobState {
    /// The keys outside of the job's own prefix that its specification and its start models name. Whatever
    /// its own artifacts inherit from a start model is among them.
    pub fn outside_keys(&self) -> impl Iterator<Item = String> {
        let own = format!("jobs/{}/", self.id);
        let models = [Some(&self.spec.policy.model), self.spec.reward.model.as_ref()];
        let listings = models.into_iter().flatten().filter_map(ModelRef::key);
        let data = self.spec.data.inputs().into_iter().filter_map(|(_, input)| InputRef::key(input));
        let starts = [Some(&self.submitted.policy), self.submitted.reward.as_ref()];
        let files = starts.into_iter().flatten().flat_map(|start: &v1::Artifact| &start.objects);
        let files = files.map(|object| object.key.clone());
        listings.chain(data).chain(files).filter(move |key| !key.starts_with(&own))
    }
}

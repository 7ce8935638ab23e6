//! Inputs of submissions in progress. Until the job is in the log, nothing else keeps them from being
//! collected as garbage.

use foil_common::spec;
use foil_common::storage::Store;
use foil_proto::v1;
use futures::future::try_join_all;
use tonic::Status;

use super::status::{bad_field, being_deleted, store_unavailable};
use crate::collector::{Hold, InUse, job_prefix};
use crate::inputs::stored_key;
use crate::job::named_inputs;
use crate::resolve::Resolved;
use crate::tenant::Tenant;

/// Number of concurrent lookups in the store.
const PARALLEL_LOOKUPS: usize = 16;

/// Holds inputs of submissions.
#[derive(Debug, Clone)]
pub(super) struct Inputs {
    store: Store,
    in_use: InUse,
}

impl Inputs {
    pub(super) fn new(store: Store, in_use: InUse) -> Self {
        Self { store, in_use }
    }

    /// Holds the inputs that the specification names and the objects that will be written for the job.
    pub(super) fn hold(&self, job_id: &str, job: &spec::Job, tenant: &Tenant) -> Result<Hold, Status> {
        let inputs = named_inputs(job).map(|blake3| stored_key(tenant, blake3));
        self.hold_keys(inputs.chain([job_prefix(job_id)]))
    }

    /// Holds the files of the start models, which are known only after the resolver has run, and checks that
    /// none of them has been collected.
    pub(super) async fn hold_files(&self, resolved: &Resolved) -> Result<Hold, Status> {
        let reward = resolved.reward.as_ref().map(|model| ("spec.reward.model", model));
        let models = [Some(("spec.policy.model", &resolved.policy)), reward];
        let files: Vec<(&str, &v1::Object)> = models
            .into_iter()
            .flatten()
            .flat_map(|(field, model)| model.objects.iter().map(move |file| (field, file)))
            .collect();
        let hold = self.hold_keys(files.iter().map(|(_, file)| file.key.clone()))?;
        for batch in files.chunks(PARALLEL_LOOKUPS) {
            let mut lookups = Vec::with_capacity(batch.len());
            for (field, file) in batch {
                lookups.push(self.require(field, file));
            }
            try_join_all(lookups).await?;
        }
        Ok(hold)
    }

    async fn require(&self, field: &str, file: &v1::Object) -> Result<(), Status> {
        match self.store.exists(&file.key).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let problem = format!("its file {} is not in the store any more; submit it again", file.path);
                Err(bad_field(field, &problem))
            }
            Err(error) => Err(store_unavailable(&error)),
        }
    }

    fn hold_keys(&self, keys: impl IntoIterator<Item = String>) -> Result<Hold, Status> {
        self.in_use.hold(keys).map_err(|why| being_deleted(&why))
    }
}

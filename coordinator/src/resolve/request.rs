//! Request and response between the coordinator and the process that reads a job's inputs.

use std::collections::BTreeMap;

use foil_common::spec;
use foil_common::storage::Store;
use foil_proto::v1;
use serde::{Deserialize, Serialize};

use super::error::{RemoteError, ResolveError};
use super::load::Uploads;
use super::{ModelArtifacts, Resolved};
use crate::tenant::Tenant;

/// A request to read a job's inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub job_id: String,
    pub spec: v1::JobSpec,
    /// See [`ModelArtifacts`].
    pub models: BTreeMap<String, v1::Artifact>,
    /// Write the data sets; false for a dry run.
    pub write: bool,
    /// The tenant whose uploads are read.
    #[serde(default)]
    pub tenant: Tenant,
}

/// The response of the child process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Resolved(Box<Resolved>),
    Failed(RemoteError),
}

impl Request {
    pub fn new(job_id: &str, job: &spec::Job, models: &ModelArtifacts, write: bool) -> Self {
        let models = models.iter().map(|(field, artifact)| ((*field).to_owned(), artifact.clone())).collect();
        Self { job_id: job_id.to_owned(), spec: job.into(), models, write, tenant: Tenant::default() }
    }

    /// The same request for a job of this tenant.
    pub fn of_tenant(self, tenant: &Tenant) -> Self {
        Self { tenant: tenant.clone(), ..self }
    }

    /// Handles the request in this process.
    pub(super) async fn run(self, store: &Store) -> Result<Resolved, ResolveError> {
        let job = spec::Job::try_from(self.spec).map_err(|error| ResolveError::Spec(Box::new(error)))?;
        let uploads = Uploads { store, tenant: &self.tenant };
        let prepared = super::prepare(&self.job_id, &job, &self.models, uploads).await?;
        if self.write { prepared.write(&self.job_id, store).await } else { Ok(prepared.described()) }
    }
}

impl From<Result<Resolved, ResolveError>> for Response {
    fn from(result: Result<Resolved, ResolveError>) -> Self {
        match result {
            Ok(resolved) => Self::Resolved(Box::new(resolved)),
            Err(error) => Self::Failed(RemoteError {
                field: error.field().map(str::to_owned),
                message: error.to_string(),
                transient: error.is_transient(),
                store: error.is_store_error(),
            }),
        }
    }
}

impl From<Response> for Result<Resolved, ResolveError> {
    fn from(response: Response) -> Self {
        match response {
            Response::Resolved(resolved) => Ok(*resolved),
            Response::Failed(error) => Err(ResolveError::Remote(error)),
        }
    }
}

//! One job's inputs to read, and what came of it, as two processes tell each other.

use std::collections::BTreeMap;

use foil_common::spec;
use foil_common::storage::Store;
use foil_proto::v1;
use serde::{Deserialize, Serialize};

use super::{Made, ResolveError, Resolved};

/// A job whose inputs are to be read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub job_id: String,
    pub spec: v1::JobSpec,
    /// As in [`Made`].
    pub made: BTreeMap<String, v1::Artifact>,
    /// Whether the data sets are written; a dry run writes nothing.
    pub write: bool,
}

/// The last line that the reading process writes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Resolved(Box<Resolved>),
    Refused(Refusal),
}

/// A [`ResolveError`] that has crossed a process boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The field of the specification to look at, where the user's input is at fault.
    pub field: Option<String>,
    pub message: String,
    /// The store is away, and the same request may succeed later.
    pub transient: bool,
    /// The store holds something else than it should.
    pub store: bool,
}

impl Request {
    pub fn new(job_id: &str, job: &spec::Job, made: &Made, write: bool) -> Self {
        let made = made.iter().map(|(field, artifact)| ((*field).to_owned(), artifact.clone())).collect();
        Self { job_id: job_id.to_owned(), spec: job.into(), made, write }
    }

    /// Does the work in this process.
    pub(super) async fn run(self, store: &Store) -> Result<Resolved, ResolveError> {
        let job = spec::Job::try_from(self.spec).map_err(|error| ResolveError::Spec(Box::new(error)))?;
        let prepared = super::prepare(&self.job_id, &job, &self.made, store).await?;
        if self.write { prepared.write(&self.job_id, store).await } else { Ok(prepared.described()) }
    }
}

impl From<Result<Resolved, ResolveError>> for Answer {
    fn from(result: Result<Resolved, ResolveError>) -> Self {
        match result {
            Ok(resolved) => Self::Resolved(Box::new(resolved)),
            Err(error) => Self::Refused(Refusal {
                field: error.field().map(str::to_owned),
                message: error.to_string(),
                transient: error.is_transient(),
                store: error.is_stores(),
            }),
        }
    }
}

impl From<Answer> for Result<Resolved, ResolveError> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Resolved(resolved) => Ok(*resolved),
            Answer::Refused(refusal) => Err(ResolveError::Refused(refusal)),
        }
    }
}

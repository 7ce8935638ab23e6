//! Commands to the driver, and its replies.

use std::fmt;
use std::sync::Arc;

use foil_common::spec::Labels;
use foil_proto::v1;
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use super::core::NotAdmitted;
use super::core::{Core, DeleteError, PinError, Refusal};
use crate::auth::Scope;
use crate::job::{JobState, Submitted, view};
use crate::schedule::{Hello, ProtocolError, Report};
use crate::tenant::{Quota, QuotaExceeded, Tenant, TenantStatus};

/// The driver has stopped, and the process is about to exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Stopped;

/// The reason why a job is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    #[error("it refers to deleted objects: {0:?}")]
    Refused(Refusal),
}

/// The command channel to one rank; an error ends its stream.
pub(super) type RankCommands = mpsc::Sender<Result<v1::RankCommand, StreamEnd>>;

/// The error with which a rank's stream ends.
#[derive(Debug)]
pub enum StreamEnd {
    /// The rank violated the protocol.
    Protocol(ProtocolError),
    /// An error of the service.
    Status(Status),
}

/// The command channel to one agent; an error ends its stream.
pub(super) type AgentCommands = mpsc::Sender<Result<v1::AgentCommand, Status>>;

/// A job found by its request id, with the hash of the submitted specification.
#[derive(Debug, Clone)]
pub struct Found {
    pub spec_hash: String,
    pub job: v1::Job,
}

/// Selects the jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Maximum number of jobs.
    pub size: usize,
    /// Only jobs that come after the job with this id.
    pub after: Option<String>,
    /// Only jobs of this name, unless it is empty.
    pub name: String,
    /// Only jobs whose ids start with this.
    pub id_prefix: String,
    /// Only jobs of this tenant.
    pub tenant: Option<Tenant>,
    /// Only jobs in one of these states, unless it is empty.
    pub states: Vec<v1::JobState>,
    /// Only jobs with all these labels.
    pub labels: Labels,
    /// Only jobs that this principal submitted.
    pub owner: Option<String>,
}

impl Query {
    /// True if the query selects the job, on whichever page.
    pub(super) fn selects(&self, state: &JobState) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == state.submitted.tenant())
            && self.owner.as_ref().is_none_or(|wanted| *wanted == state.submitted.owner)
            && (self.name.is_empty() || state.name() == self.name)
            && state.id.starts_with(&self.id_prefix)
            && (self.states.is_empty() || self.states.contains(&view::wire_state(&state.status)))
            && state.spec.scheduling.labels.include(&self.labels)
    }
}

/// A query of a job's state. It is computed immediately and answered once that state is durable.
pub(super) struct Inspect(pub(super) StateQuery);

/// Computes a reply from the state, which is none if there is no such job.
type StateQuery = Box<dyn FnOnce(Option<&JobState>) -> SendReply + Send>;

/// A query of the whole state, like [`Inspect`].
pub(super) struct Survey(pub(super) Box<dyn FnOnce(&Core) -> SendReply + Send>);

impl fmt::Debug for Survey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Survey")
    }
}

/// Whether an artifact is to be pinned or unpinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinChange {
    Pin,
    Unpin,
}

/// Sends a reply that is already computed.
pub(super) type SendReply = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Inspect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Inspect")
    }
}

/// Jobs, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    pub jobs: Vec<v1::Job>,
    /// Id of the last job, if more follow.
    pub next: Option<String>,
}

/// A job's events after a revision.
#[derive(Debug)]
pub struct Subscription {
    /// The current job, then its durable events so far.
    pub past: Vec<Arc<v1::JobEvent>>,
    /// Later events; none if the job has ended.
    pub future: Option<broadcast::Receiver<Arc<v1::JobEvent>>>,
}

#[derive(Debug)]
pub(super) enum Command {
    Find {
        tenant: Tenant,
        request_id: String,
        reply: oneshot::Sender<Option<Found>>,
    },
    /// Replies with the job of the request id: the new one, or an earlier one.
    Submit {
        id: String,
        submitted: Box<Submitted>,
        reply: oneshot::Sender<Result<Found, SubmitError>>,
    },
    /// Replies with none if too many tenants have a quota.
    SetQuota {
        tenant: String,
        quota: Quota,
        reply: oneshot::Sender<Option<TenantStatus>>,
    },
    GetTenant {
        name: String,
        reply: oneshot::Sender<TenantStatus>,
    },
    ListTenants {
        after: String,
        limit: usize,
        reply: oneshot::Sender<Vec<TenantStatus>>,
    },
    /// Checks that a tenant may submit one more job.
    CheckSubmission {
        tenant: String,
        reply: oneshot::Sender<Result<(), QuotaExceeded>>,
    },
    Get {
        id: String,
        scope: Scope,
        reply: oneshot::Sender<Option<v1::Job>>,
    },
    /// Replies with the number of devices of a kind, including busy ones.
    Devices {
        kind: String,
        reply: oneshot::Sender<usize>,
    },
    Inspect {
        id: String,
        scope: Scope,
        query: Inspect,
    },
    Survey(Survey),
    List {
        query: Query,
        scope: Scope,
        reply: oneshot::Sender<Page>,
    },
    Watch {
        id: String,
        scope: Scope,
        after_revision: u64,
        reply: oneshot::Sender<Option<Subscription>>,
    },
    Cancel {
        id: String,
        scope: Scope,
        reply: oneshot::Sender<Option<v1::Job>>,
    },
    /// Replies with the job before its deletion; if it was deleted earlier, with its id and name only.
    Delete {
        id: String,
        scope: Scope,
        by: String,
        reply: oneshot::Sender<Result<v1::Job, DeleteError>>,
    },
    /// Pins or unpins a job's artifact; the whole job for an empty name.
    Pin {
        id: String,
        scope: Scope,
        artifact: String,
        change: PinChange,
        by: String,
        reply: oneshot::Sender<Result<v1::Job, PinError>>,
    },
    /// The objects of a deleted job have been deleted.
    Erased {
        job: String,
    },
    AgentRegistered {
        hello: v1::AgentRegister,
        connection: u64,
        commands: AgentCommands,
        reply: oneshot::Sender<Result<(), NotAdmitted>>,
    },
    AgentHeartbeat {
        agent: String,
        connection: u64,
        number: u64,
    },
    RankExited {
        agent: String,
        connection: u64,
        exit: v1::RankExited,
    },
    AgentLeaving {
        agent: String,
        connection: u64,
    },
    AgentGone {
        agent: String,
        connection: u64,
    },
    RankHello {
        hello: Hello,
        commands: RankCommands,
        reply: oneshot::Sender<Result<(), ProtocolError>>,
    },
    RankReport {
        session: String,
        report: Result<Report, ProtocolError>,
        flaw: Option<String>,
    },
    RankGone {
        session: String,
    },
    StepsWritten {
        job: String,
        phase: String,
        result: Result<v1::Object, String>,
    },
}

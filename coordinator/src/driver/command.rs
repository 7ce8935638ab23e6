//! What the driver is asked.

use std::fmt;
use std::sync::Arc;

use foil_proto::v1::{self, rank_message};
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use crate::cluster::NameTaken;
use crate::job::{JobState, Submitted};
use crate::schedule::Refusal;

/// Commands on their way to one rank; an error ends its stream.
pub(super) type RankCommands = mpsc::Sender<Result<v1::RankCommand, StreamEnd>>;

/// Why a rank's stream ends, where it is told.
#[derive(Debug)]
pub enum StreamEnd {
    /// Its message was against the protocol.
    Refused(Refusal),
    /// The service's own reason.
    Status(Status),
}

/// Commands on their way to one agent; an error ends its stream.
pub(super) type AgentCommands = mpsc::Sender<Result<v1::AgentCommand, Status>>;

/// A job found by its request, with the hash of the specification it was made from.
#[derive(Debug, Clone)]
pub struct Found {
    pub spec_hash: String,
    pub submitted: Box<Submitted>,
    pub job: v1::Job,
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// At most so many.
    pub size: usize,
    /// Those that follow the job with this id.
    pub after: Option<String>,
    /// Of this name, where it is not empty.
    pub name: String,
    /// With ids that begin so.
    pub id_prefix: String,
}

/// A question about a job's state, answered where it is asked and sent when what it tells is durable.
pub(super) struct Look(pub(super) Question);

/// Asked of the state, where there is such a job.
type Question = Box<dyn FnOnce(Option<&JobState>) -> Answer + Send>;

/// Sends what was found.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Look {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Look")
    }
}

/// Jobs, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    pub jobs: Vec<v1::Job>,
    /// The id of the last one, where more follow.
    pub next: Option<String>,
}

/// A job's events from a revision on.
#[derive(Debug)]
pub struct Subscription {
    /// The job as it stands, then its durable events so far.
    pub past: Vec<Arc<v1::JobEvent>>,
    /// What comes; none where the job has ended.
    pub future: Option<broadcast::Receiver<Arc<v1::JobEvent>>>,
}

#[derive(Debug)]
pub(super) enum Command {
    Find {
        request_id: String,
        reply: oneshot::Sender<Option<Found>>,
    },
    /// Answers with the job that the request id has: this one, or one that was faster.
    Submit {
        id: String,
        submitted: Box<Submitted>,
        reply: oneshot::Sender<Found>,
    },
    Get {
        id: String,
        reply: oneshot::Sender<Option<v1::Job>>,
    },
    /// Answers with the number of devices of a kind, busy ones too.
    Devices {
        kind: String,
        reply: oneshot::Sender<usize>,
    },
    Look {
        id: String,
        look: Look,
    },
    List {
        query: Query,
        reply: oneshot::Sender<Page>,
    },
    Watch {
        id: String,
        after_revision: u64,
        reply: oneshot::Sender<Option<Subscription>>,
    },
    Cancel {
        id: String,
        reply: oneshot::Sender<Option<v1::Job>>,
    },
    AgentRegistered {
        hello: v1::AgentRegister,
        connection: u64,
        commands: AgentCommands,
        reply: oneshot::Sender<Result<(), NameTaken>>,
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
        hello: v1::RankHello,
        commands: RankCommands,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    RankSaid {
        session: String,
        message: rank_message::Message,
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

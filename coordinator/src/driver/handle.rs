//! The driver, as the gRPC services see it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use foil_proto::v1::{self, rank_message};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::command::{Answer, Command, Found, Look, Page, Query, StreamEnd, Subscription};
use super::core::{Author, Core};
use crate::cluster::NameTaken;
use crate::job::{JobState, Submitted};
use crate::schedule::Refusal;
use crate::secret;

/// The driver has ended; so does the process soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Stopped;

/// Cheap to clone. Every answer tells of durable state only.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) inbox: mpsc::Sender<Command>,
    pub(super) attempts: Attempts,
}

/// Whose ranks may write; kept up by the driver.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts(Arc<RwLock<Writers>>);

#[derive(Debug, Default)]
struct Writers {
    /// By job.
    attempts: BTreeMap<String, u32>,
    /// By session.
    authors: BTreeMap<String, Author>,
}

impl Attempts {
    pub(super) fn set(&self, core: &Core) {
        let writers = Writers { attempts: core.attempts(), authors: core.authors() };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = writers;
    }

    fn read(&self) -> RwLockReadGuard<'_, Writers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Completes when the driver has ended: this process leads no more.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// The attempt whose ranks may write for a job now.
    pub fn current_attempt(&self, job: &str) -> Option<u32> {
        self.attempts.read().attempts.get(job).copied()
    }

    /// Whether the secret is that of a rank process of the job's current attempt.
    pub fn is_rank(&self, job: &str, session: &str, secret: &str) -> bool {
        let writers = self.attempts.read();
        let author = writers.authors.get(session).filter(|author| author.job == job);
        author.is_some_and(|author| secret::proves(secret, &author.proof))
    }

    /// The job that a request id made.
    pub async fn find(&self, request_id: &str) -> Result<Option<Found>, Stopped> {
        self.ask(|reply| Command::Find { request_id: request_id.to_owned(), reply }).await
    }

    /// Commits a job, unless its request id has one already; answers with the job there is.
    pub async fn submit(&self, id: String, submitted: Submitted) -> Result<Found, Stopped> {
        self.ask(|reply| Command::Submit { id, submitted: Box::new(submitted), reply }).await
    }

    /// Devices of a kind that the workers connected now have, busy ones too.
    pub async fn devices(&self, kind: &str) -> Result<usize, Stopped> {
        self.ask(|reply| Command::Devices { kind: kind.to_owned(), reply }).await
    }

    pub async fn get(&self, id: &str) -> Result<Option<v1::Job>, Stopped> {
        self.ask(|reply| Command::Get { id: id.to_owned(), reply }).await
    }

    /// Answers a question about a job's state, which must not take long: all others wait for it. None where there is no
    /// such job.
    pub async fn look<T: Send + 'static>(
        &self,
        id: &str,
        question: impl FnOnce(&JobState) -> T + Send + 'static,
    ) -> Result<Option<T>, Stopped> {
        let id = id.to_owned();
        self.ask(|reply| {
            let look = move |state: Option<&JobState>| -> Answer {
                let found = state.map(question);
                Box::new(move || drop(reply.send(found)))
            };
            Command::Look { id, look: Look(Box::new(look)) }
        })
        .await
    }

    /// Newest first.
    pub async fn list(&self, query: Query) -> Result<Page, Stopped> {
        self.ask(|reply| Command::List { query, reply }).await
    }

    pub async fn watch(&self, id: &str, after_revision: u64) -> Result<Option<Subscription>, Stopped> {
        self.ask(|reply| Command::Watch { id: id.to_owned(), after_revision, reply }).await
    }

    pub async fn cancel(&self, id: &str) -> Result<Option<v1::Job>, Stopped> {
        self.ask(|reply| Command::Cancel { id: id.to_owned(), reply }).await
    }

    /// `connection` must be unique to the stream; a later registration of the same process replaces it.
    pub async fn agent_registered(
        &self,
        hello: v1::AgentRegister,
        connection: u64,
        commands: mpsc::Sender<Result<v1::AgentCommand, Status>>,
    ) -> Result<Result<(), NameTaken>, Stopped> {
        self.ask(|reply| Command::AgentRegistered { hello, connection, commands, reply }).await
    }

    /// The agent is answered with the `number` of its heartbeat, while this coordinator surely leads.
    pub async fn agent_heartbeat(&self, agent: String, connection: u64, number: u64) -> Result<(), Stopped> {
        self.tell(Command::AgentHeartbeat { agent, connection, number }).await
    }

    pub async fn rank_exited(
        &self,
        agent: String,
        connection: u64,
        exit: v1::RankExited,
    ) -> Result<(), Stopped> {
        self.tell(Command::RankExited { agent, connection, exit }).await
    }

    /// The agent was asked to end and takes no more ranks.
    pub async fn agent_leaving(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.tell(Command::AgentLeaving { agent, connection }).await
    }

    pub async fn agent_gone(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.tell(Command::AgentGone { agent, connection }).await
    }

    /// Seats a rank process; its commands, the welcome first, come by `commands`.
    pub async fn rank_hello(
        &self,
        hello: v1::RankHello,
        commands: mpsc::Sender<Result<v1::RankCommand, StreamEnd>>,
    ) -> Result<Result<(), Refusal>, Stopped> {
        self.ask(|reply| Command::RankHello { hello, commands, reply }).await
    }

    /// `flaw` is what the store says against it.
    pub async fn rank_said(
        &self,
        session: String,
        message: rank_message::Message,
        flaw: Option<String>,
    ) -> Result<(), Stopped> {
        self.tell(Command::RankSaid { session, message, flaw }).await
    }

    pub async fn rank_gone(&self, session: String) -> Result<(), Stopped> {
        self.tell(Command::RankGone { session }).await
    }

    pub(super) async fn steps_written(
        &self,
        job: String,
        phase: String,
        result: Result<v1::Object, String>,
    ) -> Result<(), Stopped> {
        self.tell(Command::StepsWritten { job, phase, result }).await
    }

    async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.inbox.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

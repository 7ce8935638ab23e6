//! The handle through which the gRPC services talk to the driver.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use foil_proto::v1::{self, rank_message};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::command::{
    Command, Found, Inspect, Page, PinChange, Query, SendReply, StreamEnd, Subscription, Survey,
};
use super::core::{Core, DeleteError, PinError, RankWriter, Refusal};
use crate::cluster::NameTaken;
use crate::job::{JobState, Submitted};
use crate::schedule::ProtocolError;
use crate::secret;

/// The driver has ended, and the process will soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Stopped;

/// Handle to the driver. Cheap to clone. Every answer reflects durable state only.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) inbox: mpsc::Sender<Command>,
    pub(super) attempts: WriteAccess,
}

/// The attempts and rank processes that may write; kept current by the driver.
#[derive(Debug, Clone, Default)]
pub(super) struct WriteAccess(Arc<RwLock<Writers>>);

#[derive(Debug, Default)]
struct Writers {
    /// Current attempt, by job.
    attempts: BTreeMap<String, u32>,
    /// Rank processes, by session.
    rank_writers: BTreeMap<String, RankWriter>,
}

impl WriteAccess {
    pub(super) fn set(&self, core: &Core) {
        let writers = Writers { attempts: core.attempts(), rank_writers: core.rank_writers() };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = writers;
    }

    fn read(&self) -> RwLockReadGuard<'_, Writers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Completes when the driver has ended: this process is no longer the leader.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// The attempt whose ranks may write for a job now.
    pub fn current_attempt(&self, job: &str) -> Option<u32> {
        self.attempts.read().attempts.get(job).copied()
    }

    /// True if the secret is that of a rank process of the job's current attempt.
    pub fn is_rank(&self, job: &str, session: &str, secret: &str) -> bool {
        let writers = self.attempts.read();
        let writer = writers.rank_writers.get(session).filter(|writer| writer.job == job);
        writer.is_some_and(|writer| secret::verify(secret, &writer.proof))
    }

    /// The job of a request id.
    pub async fn find(&self, request_id: &str) -> Result<Option<Found>, Stopped> {
        self.ask(|reply| Command::Find { request_id: request_id.to_owned(), reply }).await
    }

    /// Commits a job, unless its request id has one already; returns the job of the request id.
    pub async fn submit(&self, id: String, submitted: Submitted) -> Result<Result<Found, Refusal>, Stopped> {
        self.ask(|reply| Command::Submit { id, submitted: Box::new(submitted), reply }).await
    }

    /// Number of devices of a kind on the connected workers, including busy ones.
    pub async fn devices(&self, kind: &str) -> Result<usize, Stopped> {
        self.ask(|reply| Command::Devices { kind: kind.to_owned(), reply }).await
    }

    pub async fn get(&self, id: &str) -> Result<Option<v1::Job>, Stopped> {
        self.ask(|reply| Command::Get { id: id.to_owned(), reply }).await
    }

    /// Runs a query of a job's state on the driver; it must be short, because it blocks all other commands.
    /// None if there is no such job.
    pub async fn inspect<T: Send + 'static>(
        &self,
        id: &str,
        query: impl FnOnce(&JobState) -> T + Send + 'static,
    ) -> Result<Option<T>, Stopped> {
        let id = id.to_owned();
        self.ask(|reply| {
            let inspect = move |state: Option<&JobState>| -> SendReply {
                let found = state.map(query);
                Box::new(move || drop(reply.send(found)))
            };
            Command::Inspect { id, query: Inspect(Box::new(inspect)) }
        })
        .await
    }

    /// Runs a query of the whole state on the driver; it must be short, because it blocks all other commands.
    pub async fn survey<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.ask(|reply| {
            let survey = move |core: &Core| -> SendReply {
                let found = query(core);
                Box::new(move || drop(reply.send(found)))
            };
            Command::Survey(Survey(Box::new(survey)))
        })
        .await
    }

    /// Deletes a job that has ended; its objects are deleted in the background. A job that was deleted before
    /// is fine.
    pub async fn delete(&self, id: &str, by: &str) -> Result<Result<v1::Job, DeleteError>, Stopped> {
        self.ask(|reply| Command::Delete { id: id.to_owned(), by: by.to_owned(), reply }).await
    }

    /// Pins or unpins an artifact, or the whole job for an empty name; returns the job as a row of a list.
    pub async fn pin(
        &self,
        id: &str,
        artifact: &str,
        change: PinChange,
        by: &str,
    ) -> Result<Result<v1::Job, PinError>, Stopped> {
        let (id, artifact, by) = (id.to_owned(), artifact.to_owned(), by.to_owned());
        self.ask(|reply| Command::Pin { id, artifact, change, by, reply }).await
    }

    pub(super) async fn erased(&self, job: String) -> Result<(), Stopped> {
        self.send(Command::Erased { job }).await
    }

    /// Lists jobs, newest first.
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

    /// Acknowledges a heartbeat by its `number`, as long as this coordinator certainly leads.
    pub async fn agent_heartbeat(&self, agent: String, connection: u64, number: u64) -> Result<(), Stopped> {
        self.send(Command::AgentHeartbeat { agent, connection, number }).await
    }

    pub async fn rank_exited(
        &self,
        agent: String,
        connection: u64,
        exit: v1::RankExited,
    ) -> Result<(), Stopped> {
        self.send(Command::RankExited { agent, connection, exit }).await
    }

    /// The agent is shutting down and takes no more ranks.
    pub async fn agent_leaving(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.send(Command::AgentLeaving { agent, connection }).await
    }

    pub async fn agent_gone(&self, agent: String, connection: u64) -> Result<(), Stopped> {
        self.send(Command::AgentGone { agent, connection }).await
    }

    /// Admits a rank process; its commands, the welcome first, go to `commands`.
    pub async fn rank_hello(
        &self,
        hello: v1::RankHello,
        commands: mpsc::Sender<Result<v1::RankCommand, StreamEnd>>,
    ) -> Result<Result<(), ProtocolError>, Stopped> {
        self.ask(|reply| Command::RankHello { hello, commands, reply }).await
    }

    /// A rank's message; `flaw` is what verification against the store has found wrong with it.
    pub async fn rank_message(
        &self,
        session: String,
        message: rank_message::Message,
        flaw: Option<String>,
    ) -> Result<(), Stopped> {
        self.send(Command::RankMessage { session, message, flaw }).await
    }

    pub async fn rank_gone(&self, session: String) -> Result<(), Stopped> {
        self.send(Command::RankGone { session }).await
    }

    pub(super) async fn steps_written(
        &self,
        job: String,
        phase: String,
        result: Result<v1::Object, String>,
    ) -> Result<(), Stopped> {
        self.send(Command::StepsWritten { job, phase, result }).await
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.inbox.send(command).await.map_err(|_| Stopped)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| Stopped)
    }
}

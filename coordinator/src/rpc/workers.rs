//! The Workers service: one stream per agent, one per rank process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foil_common::storage::Store;
use foil_proto::v1::{self, agent_message, rank_message, workers_server::Workers};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::admission::{check_agent, check_rank};
use super::limits::{bounded_exit, bounded_message};
use super::status::{bad_field, not_admitted, not_leading, rejected, stopped, store_unavailable};
use super::verify;
use crate::driver::{Handle, Stopped, StreamEnd};
use crate::leadership::LeadershipHandle;
use crate::schedule::Hello;

/// Number of commands that may wait for a worker to read them.
const BACKLOG: usize = 256;
/// Timeout for a stream's first message, which identifies the worker.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit for verifying a rank's report against the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The Workers service. Streams end with the driver.
#[derive(Debug, Clone)]
pub struct WorkersService {
    leadership: LeadershipHandle,
    /// Store against which ranks' reports are verified.
    store: Store,
    allow_version_skew: bool,
    connections: Arc<AtomicU64>,
}

impl WorkersService {
    pub fn new(leadership: LeadershipHandle, store: &Store, allow_version_skew: bool) -> Self {
        let store = store.patient(STORE_TIMEOUT);
        Self { leadership, store, allow_version_skew, connections: Arc::default() }
    }
}

#[tonic::async_trait]
impl Workers for WorkersService {
    type AgentStream = ReceiverStream<Result<v1::AgentCommand, Status>>;
    type RankStream = BoxStream<'static, Result<v1::RankCommand, Status>>;

    async fn agent(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::AgentStream>, Status> {
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?;
        let (commands, stream) = mpsc::channel(BACKLOG);
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let allow_skew = self.allow_version_skew;
        // The response headers must not wait for the first message: a client may wait for them before it
        // writes.
        tokio::spawn(async move {
            if let Err(status) =
                serve_agent(&driver, request.into_inner(), connection, &commands, allow_skew).await
            {
                // An agent that has disconnected needs no reason.
                let _ = commands.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn rank(
        &self,
        request: Request<Streaming<v1::RankMessage>>,
    ) -> Result<Response<Self::RankStream>, Status> {
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?;
        let (commands, stream) = mpsc::channel(BACKLOG);
        let service = self.clone();
        tokio::spawn(async move {
            if let Err(status) = service.serve_rank(&driver, request.into_inner(), &commands).await {
                // A rank that has disconnected needs no reason.
                let _ = commands.send(Err(StreamEnd::Status(status))).await;
            }
        });
        let stream = ReceiverStream::new(stream).map(|command| {
            command.map_err(|end| match end {
                StreamEnd::Protocol(error) => rejected(&error),
                StreamEnd::Status(status) => status,
            })
        });
        Ok(Response::new(stream.boxed()))
    }
}

async fn serve_agent(
    driver: &Handle,
    mut messages: Streaming<v1::AgentMessage>,
    connection: u64,
    commands: &mpsc::Sender<Result<v1::AgentCommand, Status>>,
    allow_skew: bool,
) -> Result<(), Status> {
    let first = first_message(&mut messages).await?.and_then(|message| message.message);
    let Some(agent_message::Message::Register(hello)) = first else {
        return Err(bad_field("register", "an agent's first message must be its registration"));
    };
    check_agent(&hello, allow_skew)?;
    let agent = hello.agent_id.clone();
    let admitted = driver.agent_registered(hello, connection, commands.clone()).await.map_err(stopped)?;
    admitted.map_err(|why| not_admitted(&why))?;
    let result = forward_agent_messages(driver, &mut messages, &agent, connection, commands).await;
    driver.agent_gone(agent, connection).await.map_err(stopped)?;
    result
}

async fn forward_agent_messages(
    driver: &Handle,
    messages: &mut Streaming<v1::AgentMessage>,
    agent: &str,
    connection: u64,
    commands: &mpsc::Sender<Result<v1::AgentCommand, Status>>,
) -> Result<(), Status> {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = commands.closed() => return Ok(()),
            // Also notifies a worker that has nothing to send.
            () = driver.ended() => return Err(stopped(Stopped)),
        };
        // A broken stream is treated like one that has ended.
        let Ok(Some(message)) = message else { return Ok(()) };
        let result = match message.message {
            Some(agent_message::Message::Heartbeat(heartbeat)) => {
                driver.agent_heartbeat(agent.to_owned(), connection, heartbeat.number).await
            }
            Some(agent_message::Message::RankExited(exit)) => {
                driver.rank_exited(agent.to_owned(), connection, bounded_exit(exit)).await
            }
            Some(agent_message::Message::Leaving(_)) => {
                driver.agent_leaving(agent.to_owned(), connection).await
            }
            Some(agent_message::Message::Register(_)) => {
                return Err(bad_field("register", "an agent registers once per stream"));
            }
            None => Ok(()),
        };
        result.map_err(stopped)?;
    }
}

impl WorkersService {
    async fn serve_rank(
        &self,
        driver: &Handle,
        mut messages: Streaming<v1::RankMessage>,
        commands: &mpsc::Sender<Result<v1::RankCommand, StreamEnd>>,
    ) -> Result<(), Status> {
        let first = first_message(&mut messages).await?.and_then(|message| message.message);
        let Some(rank_message::Message::Hello(hello)) = first else {
            return Err(bad_field("hello", "a rank's first message must be its hello"));
        };
        check_rank(&hello, self.allow_version_skew)?;
        let hello = Hello::try_from(hello).map_err(|error| rejected(&error))?;
        let session = hello.session.clone();
        let admitted = driver.rank_hello(hello, commands.clone()).await.map_err(stopped)?;
        admitted.map_err(|error| rejected(&error))?;
        let result = self.forward_rank_messages(driver, &mut messages, &session, commands).await;
        driver.rank_gone(session).await.map_err(stopped)?;
        result
    }

    async fn forward_rank_messages(
        &self,
        driver: &Handle,
        messages: &mut Streaming<v1::RankMessage>,
        session: &str,
        commands: &mpsc::Sender<Result<v1::RankCommand, StreamEnd>>,
    ) -> Result<(), Status> {
        loop {
            let message = tokio::select! {
                message = messages.message() => message,
                () = commands.closed() => return Ok(()),
                // Also notifies a worker that has nothing to send.
                () = driver.ended() => return Err(stopped(Stopped)),
            };
            let Ok(Some(message)) = message else { return Ok(()) };
            let Some(message) = message.message.map(bounded_message) else { continue };
            let report = verify::parse(message);
            let flaw = match &report {
                Err(_) => None,
                Ok(report) => tokio::select! {
                    flaw = verify::find_flaw(&self.store, report) => flaw.map_err(|error| store_unavailable(&error))?,
                    () = commands.closed() => return Ok(()),
                    () = driver.ended() => return Err(stopped(Stopped)),
                },
            };
            driver.rank_report(session.to_owned(), report, flaw).await.map_err(stopped)?;
        }
    }
}

/// A stream's first message, which must arrive in time.
async fn first_message<T>(messages: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, messages.message()).await;
    first.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!("no message came within {FIRST_MESSAGE_TIMEOUT:?}")))
    })
}

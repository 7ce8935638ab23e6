//! The rank's session with the leader: a stream that opens with a hello. When the leader is lost, the session
//! reconnects to the next one and replays the messages about the current task, which keeps running.

#![expect(clippy::disallowed_methods, reason = "reconnections back off with jitter")]

use std::time::Duration;

use foil_common::otlp::Exporter;
use foil_common::rpc::artifacts::Writer;
use foil_common::rpc::{self, COMMAND_BYTES, LeaderChannel};
use foil_common::spec;
use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_task;
use foil_proto::v1::workers_client::WorkersClient;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::device::{self, DeviceCommand, DeviceEnd, DeviceThread};
use super::replay_log::ReplayLog;
use super::{OTLP_TIMEOUT, RankOptions};
use crate::phase::PhaseError;
use crate::task::{ChunkTask, GangTask, Rendezvous, TaskError};
use crate::task_io::progress::Reporter;
use crate::task_io::transfer::Transfer;
use foil_common::exit::Exit;

/// Time at exit for the device thread to end and for the coordinator to accept the last messages.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Time without a leader after which the process exits. Equal to an agent's fence period, after which the
/// work is assigned to others.
pub(super) const LEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a coordinator to answer a hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

type Messages = mpsc::UnboundedSender<v1::RankMessage>;

/// Runs until asked to exit, or until there has been no leader for `leader_timeout`.
pub(super) async fn run(options: &RankOptions, leader_timeout: Duration, exporter: &mut Exporter) -> Exit {
    let channel = match rpc::connect_with(&options.coordinator, &options.credentials) {
        Ok(channel) => channel.as_rank(&options.session_id, options.secret.as_str()),
        Err(error) => {
            tracing::error!("{error}");
            return Exit::Failed;
        }
    };
    let (messages, outgoing) = mpsc::unbounded_channel();
    let replay = ReplayLog::default();
    let mut session =
        Session { options, channel, messages, outgoing, replay, device: None, term: 0, stream: None };
    let exit = session.run(leader_timeout).await;
    session.shut_down(exporter).await;
    exit
}

struct Session<'a> {
    options: &'a RankOptions,
    channel: LeaderChannel,
    messages: Messages,
    /// Messages of this process. They queue up while no stream is open.
    outgoing: mpsc::UnboundedReceiver<v1::RankMessage>,
    replay: ReplayLog,
    /// `None` before the welcome.
    device: Option<DeviceThread>,
    /// The highest term seen.
    term: u64,
    stream: Option<Stream>,
}

struct Stream {
    messages: Messages,
    commands: Streaming<v1::RankCommand>,
}

/// How a stream ended.
enum StreamEnd {
    /// The process must exit.
    Exit(Exit),
    /// The leader was lost; another may take over.
    Lost,
}

impl Session<'_> {
    async fn run(&mut self, leader_timeout: Duration) -> Exit {
        let (mut since, mut backoff) = (Instant::now(), MIN_BACKOFF);
        loop {
            let term = self.term;
            match self.stream_once().await {
                StreamEnd::Exit(exit) => return exit,
                // Any answer proves that there is a leader.
                StreamEnd::Lost if self.term > term || self.stream.is_some() => {
                    (since, backoff) = (Instant::now(), MIN_BACKOFF);
                }
                StreamEnd::Lost => {}
            }
            self.stream = None;
            if since.elapsed() >= leader_timeout {
                tracing::error!(seconds = leader_timeout.as_secs_f64(), "no coordinator for too long");
                return Exit::CoordinatorLost;
            }
            // Jitter, so that ranks that lost the same coordinator do not all reconnect at the same time.
            let pause = sleep(backoff.mul_f64(rand::random_range(0.5..1.0)));
            tokio::select! {
                end = wait_for_end(self.device.as_mut().map(|device| &mut device.end)) => return self.device_ended(end),
                () = pause => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn stream_once(&mut self) -> StreamEnd {
        // Messages queued since the last stream are replayed along with the others.
        while let Ok(message) = self.outgoing.try_recv() {
            self.replay.record(&message);
        }
        let (messages, stream) = mpsc::unbounded_channel();
        for message in self.replay.opening(self.options) {
            // Cannot fail: the receiver is in scope.
            let _ = messages.send(message);
        }
        let url = self.channel.url();
        let mut client = WorkersClient::new(self.channel.clone()).max_decoding_message_size(COMMAND_BYTES);
        match timeout(HELLO_TIMEOUT, client.rank(UnboundedReceiverStream::new(stream))).await {
            Ok(Ok(response)) => {
                self.stream = Some(Stream { messages, commands: response.into_inner() });
                self.serve().await
            }
            Ok(Err(status)) => end_of_stream(&status),
            Err(_) => {
                tracing::warn!(url, "the coordinator does not answer");
                self.channel.fail_over(&url);
                StreamEnd::Lost
            }
        }
    }

    async fn serve(&mut self) -> StreamEnd {
        loop {
            let Some(stream) = &mut self.stream else { return StreamEnd::Lost };
            let ended = wait_for_end(self.device.as_mut().map(|device| &mut device.end));
            let command = tokio::select! {
                end = ended => return StreamEnd::Exit(self.device_ended(end)),
                Some(message) = self.outgoing.recv() => {
                    self.replay.record(&message);
                    // If the stream is closed, the end of its commands shows it.
                    let _ = stream.messages.send(message);
                    continue;
                }
                command = stream.commands.message() => command,
            };
            match command {
                Ok(Some(command)) if command.term < self.term => {
                    tracing::warn!(
                        term = command.term,
                        known = self.term,
                        "rejected a command of an older term"
                    );
                }
                Ok(Some(command)) => {
                    self.term = command.term;
                    if let Some(exit) = self.handle(command.command) {
                        return StreamEnd::Exit(exit);
                    }
                }
                Ok(None) => {
                    tracing::warn!("the coordinator closed the stream");
                    return StreamEnd::Lost;
                }
                // The token file may have been replaced: the next stream uses the new token or is refused.
                Err(status) if status.code() == Code::Unauthenticated => {
                    tracing::warn!(reason = status.message(), "the stream's credentials are no longer valid");
                    return StreamEnd::Lost;
                }
                Err(status) => return end_of_stream(&status),
            }
        }
    }

    /// Records the thread's end, so that the shutdown does not wait for it again.
    fn device_ended(&mut self, end: DeviceEnd) -> Exit {
        self.device = None;
        exit_of_device(end)
    }

    fn handle(&mut self, command: Option<Command>) -> Option<Exit> {
        match command {
            Some(Command::Welcome(welcome)) => return self.welcome(welcome).err(),
            Some(Command::Chunk(command)) => {
                self.replay.begin(rank_task::Task::Chunk(command.clone()));
                let (phase, chunk) = (phase_name(command.task.as_ref()), Some(command.chunk));
                let task = ChunkTask::try_from(command).map(|task| DeviceCommand::Chunk(Box::new(task)));
                return self.execute(task, &phase, chunk);
            }
            Some(Command::Gang(command)) => {
                self.replay.begin(rank_task::Task::Gang(command.clone()));
                let phase = phase_name(command.task.as_ref());
                let task = GangTask::try_from(command).map(|task| DeviceCommand::Gang(Box::new(task)));
                return self.execute(task, &phase, None);
            }
            Some(Command::Rendezvous(rendezvous)) => {
                let rendezvous = match Rendezvous::try_from(rendezvous) {
                    Ok(rendezvous) => rendezvous,
                    Err(error) => {
                        tracing::error!(%error, "invalid rendezvous");
                        return Some(Exit::Failed);
                    }
                };
                if let Some(device) = &self.device {
                    // If the thread has ended, it reports that on its own channel.
                    let _ = device.rendezvous.send(rendezvous);
                }
            }
            Some(Command::Exit(_)) => return Some(Exit::Done),
            None => tracing::warn!("ignored a command that this version does not know"),
        }
        None
    }

    fn welcome(&mut self, welcome: v1::RankWelcome) -> Result<(), Exit> {
        if self.device.is_some() {
            return Ok(());
        }
        let Some(spec) = welcome.spec else {
            tracing::error!("the welcome is missing `spec`; are coordinator and worker the same version?");
            return Err(Exit::Failed);
        };
        let job = spec::Job::try_from(spec).map_err(|error| {
            tracing::error!(%error, "invalid job specification; are coordinator and worker the same version?");
            Exit::Failed
        })?;
        // A separate connection, so that transfers do not delay messages. It starts at the leader.
        let channel = self.channel.separate().map_err(|_| Exit::Failed)?;
        let reports = Reporter::new(self.messages.clone());
        let RankOptions { job_id, attempt, session_id, secret, .. } = self.options;
        let writer = Writer::rank(job_id, *attempt, session_id, secret.as_str());
        let objects = Transfer::new(Handle::current(), channel, writer, reports.clone());
        let device = device::start(self.options, job, Box::new(objects), reports).map_err(|error| {
            tracing::error!(%error, "cannot start the device thread");
            Exit::Failed
        })?;
        tracing::info!(world = self.options.world, threads = self.options.threads, "rank ready");
        self.device = Some(device);
        Ok(())
    }

    /// Passes a task to the device thread, or reports a failure if the command could not be parsed.
    fn execute(
        &self,
        task: Result<DeviceCommand, TaskError>,
        phase: &str,
        chunk: Option<u32>,
    ) -> Option<Exit> {
        let Some(device) = &self.device else {
            tracing::error!("the coordinator sent a task before its welcome");
            return Some(Exit::Failed);
        };
        match task {
            Ok(task) => {
                // If the thread has ended, it reports that on its own channel.
                let _ = device.commands.send(task);
            }
            Err(error) => {
                let failure = PhaseError::from(error).failure();
                device::log(&failure);
                device::report(&Reporter::new(self.messages.clone()), phase, chunk, failure);
            }
        }
        None
    }

    /// Ends the device thread, sends its last spans, and gives the coordinator time to accept the last
    /// messages.
    async fn shut_down(mut self, exporter: &mut Exporter) {
        if let Some(device) = self.device {
            drop(device.commands);
            drop(device.rendezvous);
            // A task that is still running ends with the process.
            let _ = timeout(SHUTDOWN_TIMEOUT, device.end).await;
        }
        // Comes before the end of the stream: when a stream ends, the coordinator has the rank killed.
        exporter.shut_down(OTLP_TIMEOUT).await;
        let Some(Stream { messages, mut commands }) = self.stream else { return };
        while let Ok(message) = self.outgoing.try_recv() {
            // A closed stream accepts nothing more.
            let _ = messages.send(message);
        }
        drop(messages);
        let _ =
            timeout(SHUTDOWN_TIMEOUT, async { while let Ok(Some(_)) = commands.message().await {} }).await;
    }
}

fn phase_name(task: Option<&v1::Task>) -> String {
    task.map(|task| task.phase.clone()).unwrap_or_default()
}

/// Waits for the thread's end, or forever if no thread has been started.
async fn wait_for_end(end: Option<&mut oneshot::Receiver<DeviceEnd>>) -> DeviceEnd {
    match end {
        Some(end) => end.await.unwrap_or(DeviceEnd::Broken),
        None => std::future::pending().await,
    }
}

fn exit_of_device(end: DeviceEnd) -> Exit {
    match end {
        DeviceEnd::Idle => Exit::Done,
        DeviceEnd::Broken => Exit::TaskPanicked,
        DeviceEnd::Stale => Exit::Stale,
        DeviceEnd::Stopped => Exit::Terminated,
    }
}

fn end_of_stream(status: &Status) -> StreamEnd {
    if status.code() == Code::Aborted {
        tracing::warn!(reason = status.message(), "the coordinator no longer knows this session");
        return StreamEnd::Exit(Exit::Stale);
    }
    if rpc::is_unavailable(status) {
        tracing::warn!(%status, "lost the coordinator; looking for the next one");
        return StreamEnd::Lost;
    }
    tracing::error!(%status, "the coordinator rejected this rank");
    StreamEnd::Exit(Exit::CoordinatorLost)
}

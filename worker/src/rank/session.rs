//! The rank's stream to the leader: it opens with a hello. A leader that is gone is followed by the next one, which is
//! told again what the rank has told of its task; the work goes on meanwhile.

use std::time::Duration;

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

use super::RankOptions;
use super::device::{self, DeviceEnd, DeviceThread, Order};
use super::recall::Recall;
use crate::exit::Exit;
use crate::task_io::progress::Reporter;
use crate::task_io::transfer::Transfer;

/// For the last messages to be taken, and for the device thread to end, when the process does.
const PARTING: Duration = Duration::from_secs(3);
/// As long as an agent's fence: work that nobody has asked for since is given to others.
pub(super) const ALONE: Duration = Duration::from_secs(60);
/// For a coordinator to answer a hello.
const ANSWER: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

type Messages = mpsc::UnboundedSender<v1::RankMessage>;

/// Serves until told to end, or until there was no leader for the time `alone`.
pub(super) async fn run(options: &RankOptions, alone: Duration) -> Exit {
    let channel = match rpc::connect(&options.coordinator) {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!("{error}");
            return Exit::Failed;
        }
    };
    let (messages, said) = mpsc::unbounded_channel();
    let recall = Recall::default();
    let mut session =
        Session { options, channel, messages, said, recall, device: None, term: 0, stream: None };
    let exit = session.live(alone).await;
    session.part().await;
    exit
}

struct Session<'a> {
    options: &'a RankOptions,
    channel: LeaderChannel,
    messages: Messages,
    /// What this process says; it goes on whether there is a stream or not.
    said: mpsc::UnboundedReceiver<v1::RankMessage>,
    recall: Recall,
    /// There from the welcome on.
    device: Option<DeviceThread>,
    /// The highest heard of.
    term: u64,
    stream: Option<Stream>,
}

struct Stream {
    outgoing: Messages,
    commands: Streaming<v1::RankCommand>,
}

/// How a stream ended.
enum Ended {
    /// And this process with it.
    Exit(Exit),
    /// Another leader may come.
    Lost,
}

impl Session<'_> {
    async fn live(&mut self, alone: Duration) -> Exit {
        let (mut since, mut backoff) = (Instant::now(), FIRST_BACKOFF);
        loop {
            let term = self.term;
            match self.stream_once().await {
                Ended::Exit(exit) => return exit,
                // Anything heard is a leader.
                Ended::Lost if self.term > term || self.stream.is_some() => {
                    (since, backoff) = (Instant::now(), FIRST_BACKOFF);
                }
                Ended::Lost => {}
            }
            self.stream = None;
            if since.elapsed() >= alone {
                tracing::error!(seconds = alone.as_secs_f64(), "no coordinator for too long");
                return Exit::CoordinatorLost;
            }
            // Ranks that lost the same coordinator do not come back in step.
            let pause = sleep(backoff.mul_f64(rand::random_range(0.5..1.0)));
            tokio::select! {
                end = ended(self.device.as_mut().map(|device| &mut device.end)) => return self.device_ended(end),
                () = pause => {}
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn stream_once(&mut self) -> Ended {
        // What was said meanwhile is told with the rest.
        while let Ok(message) = self.said.try_recv() {
            self.recall.note(&message);
        }
        let (outgoing, stream) = mpsc::unbounded_channel();
        for message in self.recall.opening(self.options) {
            // The receiver is right here.
            let _ = outgoing.send(message);
        }
        let url = self.channel.url();
        let mut client = WorkersClient::new(self.channel.clone()).max_decoding_message_size(COMMAND_BYTES);
        match timeout(ANSWER, client.rank(UnboundedReceiverStream::new(stream))).await {
            Ok(Ok(answer)) => {
                self.stream = Some(Stream { outgoing, commands: answer.into_inner() });
                self.serve().await
            }
            Ok(Err(status)) => ended_by(&status),
            Err(_) => {
                tracing::warn!(url, "the coordinator does not answer");
                self.channel.fail_over(&url);
                Ended::Lost
            }
        }
    }

    async fn serve(&mut self) -> Ended {
        loop {
            let Some(stream) = &mut self.stream else { return Ended::Lost };
            let ended = ended(self.device.as_mut().map(|device| &mut device.end));
            let command = tokio::select! {
                end = ended => return Ended::Exit(self.device_ended(end)),
                Some(message) = self.said.recv() => {
                    self.recall.note(&message);
                    // A stream that has ended says so by its commands.
                    let _ = stream.outgoing.send(message);
                    continue;
                }
                command = stream.commands.message() => command,
            };
            match command {
                Ok(Some(command)) if command.term < self.term => {
                    tracing::warn!(
                        term = command.term,
                        known = self.term,
                        "a command of an older term is refused"
                    );
                }
                Ok(Some(command)) => {
                    self.term = command.term;
                    if let Some(exit) = self.obey(command.command) {
                        return Ended::Exit(exit);
                    }
                }
                Ok(None) => {
                    tracing::warn!("the coordinator closed the stream");
                    return Ended::Lost;
                }
                Err(status) => return ended_by(&status),
            }
        }
    }

    /// It has been heard; parting must not wait for it again.
    fn device_ended(&mut self, end: DeviceEnd) -> Exit {
        self.device = None;
        exit_of_device(end)
    }

    fn obey(&mut self, command: Option<Command>) -> Option<Exit> {
        match command {
            Some(Command::Welcome(welcome)) => return self.welcome(welcome).err(),
            Some(Command::Chunk(lease)) => {
                self.recall.begin(rank_task::Task::Chunk(lease.clone()));
                return self.order(Order::Chunk(Box::new(lease)));
            }
            Some(Command::Gang(gang)) => {
                self.recall.begin(rank_task::Task::Gang(gang.clone()));
                return self.order(Order::Gang(Box::new(gang)));
            }
            Some(Command::Rendezvous(rendezvous)) => {
                if let Some(device) = &self.device {
                    // A thread that has ended says so by its own channel.
                    let _ = device.rendezvous.send(rendezvous);
                }
            }
            Some(Command::Exit(_)) => return Some(Exit::Done),
            None => tracing::warn!("a command this version does not know is left aside"),
        }
        None
    }

    fn welcome(&mut self, welcome: v1::RankWelcome) -> Result<(), Exit> {
        if self.device.is_some() {
            return Ok(());
        }
        let job = spec::Job::try_from(welcome.spec.unwrap_or_default()).map_err(|error| {
            tracing::error!(%error, "the job's specification cannot be read; are coordinator and worker of one version?");
            Exit::Failed
        })?;
        // Of its own, so that bytes hold up no message; it begins where the leader is.
        let channel = rpc::connect(&self.channel.urls()).map_err(|_| Exit::Failed)?;
        let reports = Reporter::new(self.messages.clone());
        let RankOptions { job_id, attempt, session_id, secret, .. } = self.options;
        let writer = Writer::rank(job_id, *attempt, session_id, secret.as_str());
        let objects = Transfer::new(Handle::current(), channel, writer, reports.clone());
        let device = device::start(self.options, job, Box::new(objects), reports).map_err(|error| {
            tracing::error!(%error, "the device thread could not be started");
            Exit::Failed
        })?;
        tracing::info!(world = self.options.world, threads = self.options.threads, "rank ready");
        self.device = Some(device);
        Ok(())
    }

    fn order(&self, order: Order) -> Option<Exit> {
        let Some(device) = &self.device else {
            tracing::error!("the coordinator gave a task before its welcome");
            return Some(Exit::Failed);
        };
        // A thread that has ended says so by its own channel.
        let _ = device.orders.send(order);
        None
    }

    /// Ends the device thread and gives the coordinator time to take the last messages.
    async fn part(mut self) {
        if let Some(device) = self.device {
            drop(device.orders);
            drop(device.rendezvous);
            // A task that runs on is cut off with the process.
            let _ = timeout(PARTING, device.end).await;
        }
        let Some(Stream { outgoing, mut commands }) = self.stream else { return };
        while let Ok(message) = self.said.try_recv() {
            // A stream that has ended takes nothing more.
            let _ = outgoing.send(message);
        }
        drop(outgoing);
        let _ = timeout(PARTING, async { while let Ok(Some(_)) = commands.message().await {} }).await;
    }
}

/// Waits for the thread's end; for ever where there is none yet.
async fn ended(end: Option<&mut oneshot::Receiver<DeviceEnd>>) -> DeviceEnd {
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

fn ended_by(status: &Status) -> Ended {
    if status.code() == Code::Aborted {
        tracing::warn!(reason = status.message(), "the coordinator no longer knows this session");
        return Ended::Exit(Exit::Stale);
    }
    if rpc::is_unavailable(status) {
        tracing::warn!(%status, "the coordinator is lost; looking for the next one");
        return Ended::Lost;
    }
    tracing::error!(%status, "the coordinator refuses this rank");
    Ended::Exit(Exit::CoordinatorLost)
}

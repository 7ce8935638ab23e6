//! The rank's stream to the coordinator: it opens with a hello, and its end is the rank's end.

use std::time::Duration;

use foil_common::rpc::artifacts::Writer;
use foil_common::spec;
use foil_proto::v1;
use foil_proto::v1::rank_command::Command;
use foil_proto::v1::rank_message::Message;
use foil_proto::v1::workers_client::WorkersClient;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::RankOptions;
use super::device::{self, DeviceEnd, DeviceThread, Order};
use super::reporter::Reporter;
use super::transfer::Transfer;
use crate::exit::Exit;

/// For the last messages to be taken, and for the device thread to end, when the process does.
const PARTING: Duration = Duration::from_secs(3);

type Messages = mpsc::UnboundedSender<v1::RankMessage>;

pub(super) async fn run(options: &RankOptions) -> Exit {
    let (messages, outgoing) = mpsc::unbounded_channel();
    let hello = v1::RankHello {
        session_id: options.session_id.clone(),
        job_id: options.job_id.clone(),
        attempt: options.attempt,
        rank: options.rank,
    };
    Reporter::new(messages.clone()).send(Message::Hello(hello));
    let mut commands = match open(options, outgoing).await {
        Ok(commands) => commands,
        Err(exit) => return exit,
    };
    let mut session = Session { options, messages, device: None };
    let exit = session.serve(&mut commands).await;
    session.part(commands).await;
    exit
}

async fn open(
    options: &RankOptions,
    outgoing: mpsc::UnboundedReceiver<v1::RankMessage>,
) -> Result<Streaming<v1::RankCommand>, Exit> {
    let channel = foil_common::rpc::connect(&options.coordinator).map_err(|error| {
        tracing::error!("{error}");
        Exit::Failed
    })?;
    let opened = WorkersClient::new(channel).rank(UnboundedReceiverStream::new(outgoing)).await;
    opened.map(tonic::Response::into_inner).map_err(|status| exit_of(&status))
}

struct Session<'a> {
    options: &'a RankOptions,
    messages: Messages,
    /// There from the welcome on.
    device: Option<DeviceThread>,
}

impl Session<'_> {
    async fn serve(&mut self, commands: &mut Streaming<v1::RankCommand>) -> Exit {
        loop {
            let ended = ended(self.device.as_mut().map(|device| &mut device.end));
            let command = tokio::select! {
                end = ended => {
                    // It has been heard; parting must not wait for it again.
                    self.device = None;
                    return exit_of_device(end);
                }
                command = commands.message() => command,
            };
            match command {
                Ok(Some(command)) => {
                    if let Some(exit) = self.obey(command.command) {
                        return exit;
                    }
                }
                Ok(None) => {
                    tracing::warn!("the coordinator closed the stream");
                    return Exit::CoordinatorLost;
                }
                Err(status) => return exit_of(&status),
            }
        }
    }

    fn obey(&mut self, command: Option<Command>) -> Option<Exit> {
        match command {
            Some(Command::Welcome(welcome)) => return self.welcome(welcome).err(),
            Some(Command::Chunk(lease)) => return self.order(Order::Chunk(Box::new(lease))),
            Some(Command::Gang(gang)) => return self.order(Order::Gang(Box::new(gang))),
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
        let channel = foil_common::rpc::connect(&self.options.coordinator).map_err(|_| Exit::Failed)?;
        let reports = Reporter::new(self.messages.clone());
        let writer = Writer::rank(&self.options.job_id, self.options.attempt);
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
    async fn part(self, mut commands: Streaming<v1::RankCommand>) {
        drop(self.messages);
        if let Some(device) = self.device {
            drop(device.orders);
            drop(device.rendezvous);
            // A task that runs on is cut off with the process.
            let _ = timeout(PARTING, device.end).await;
        }
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

fn exit_of(status: &Status) -> Exit {
    if status.code() == Code::Aborted {
        tracing::warn!(reason = status.message(), "the coordinator no longer knows this session");
        Exit::Stale
    } else {
        tracing::error!(%status, "the coordinator is lost");
        Exit::CoordinatorLost
    }
}

//! The stream to the coordinator, kept up: connects, reconnects with backoff, tells the agent of both.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::workers_client::WorkersClient;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Messages that may wait to be sent.
const OUTBOX: usize = 256;

/// What the agent hears of its stream.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A stream is being opened: the registration must go on it first.
    Up(mpsc::Sender<v1::AgentMessage>),
    Command(v1::AgentCommand),
    Down,
    /// The coordinator refuses this agent for good.
    Refused(Status),
}

/// Runs until the receiver of `events` is dropped or the coordinator refuses.
pub(super) async fn keep(coordinator: String, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let ended = stream_once(&coordinator, &events, &mut backoff).await;
        if let Err(Ended::Refused(status)) = ended {
            // Nobody listens where the agent is stopping.
            let _ = events.send(LinkEvent::Refused(status)).await;
            return;
        }
        if events.send(LinkEvent::Down).await.is_err() {
            return;
        }
        // Agents that lost the same coordinator do not come back in step.
        sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

enum Ended {
    Lost,
    Refused(Status),
}

async fn stream_once(
    coordinator: &str,
    events: &mpsc::Sender<LinkEvent>,
    backoff: &mut Duration,
) -> Result<(), Ended> {
    let channel = foil_common::rpc::connect(coordinator).map_err(|error| {
        tracing::warn!(%error, coordinator, "the coordinator cannot be reached; trying again");
        Ended::Lost
    })?;
    let (outbox, messages) = mpsc::channel(OUTBOX);
    events.send(LinkEvent::Up(outbox)).await.map_err(|_| Ended::Lost)?;
    let response =
        WorkersClient::new(channel).agent(ReceiverStream::new(messages)).await.map_err(|s| ended(&s))?;
    let mut commands = response.into_inner();
    while let Some(command) = commands.message().await.map_err(|s| ended(&s))? {
        *backoff = FIRST_BACKOFF;
        events.send(LinkEvent::Command(command)).await.map_err(|_| Ended::Lost)?;
    }
    tracing::warn!(coordinator, "the coordinator closed the stream; connecting again");
    Ok(())
}

fn ended(status: &Status) -> Ended {
    match status.code() {
        Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented => {
            Ended::Refused(status.clone())
        }
        _ => {
            tracing::warn!(%status, "the stream to the coordinator broke; connecting again");
            Ended::Lost
        }
    }
}

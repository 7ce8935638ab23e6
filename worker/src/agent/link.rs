//! The stream to the coordinator, kept up: connects, reconnects with backoff, tells the agent of both.

use std::sync::Arc;
use std::time::Duration;

use foil_common::rpc::{self, LeaderChannel};
use foil_proto::v1;
use foil_proto::v1::workers_client::WorkersClient;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Short, so that a new leader soon has its workers.
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// For another process of this agent's name to be missed by the coordinator: one that died without a word is, after some
/// heartbeats.
const NAME_PATIENCE: Duration = Duration::from_secs(10);
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

/// Runs until the receiver of `events` is dropped or the coordinator refuses. `hang_up` ends the present stream, and
/// another coordinator is tried.
pub(super) async fn keep(channel: LeaderChannel, events: mpsc::Sender<LinkEvent>, hang_up: Arc<Notify>) {
    let mut backoff = FIRST_BACKOFF;
    let mut taken_since: Option<Instant> = None;
    loop {
        let coordinator = channel.url();
        let ended = tokio::select! {
            ended = stream_once(&channel, &events, &mut backoff) => ended,
            () = hang_up.notified() => {
                channel.fail_over(&coordinator);
                Err(Ended::Lost)
            }
        };
        let ended = match ended {
            Err(Ended::NameTaken(status)) => {
                let since = *taken_since.get_or_insert_with(|| {
                    tracing::warn!("{}; trying for {} s", status.message(), NAME_PATIENCE.as_secs());
                    Instant::now()
                });
                if since.elapsed() >= NAME_PATIENCE { Err(Ended::Refused(status)) } else { Ok(()) }
            }
            ended => {
                taken_since = None;
                ended
            }
        };
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
    /// Another process of this agent's name is connected.
    NameTaken(Status),
    Refused(Status),
}

async fn stream_once(
    channel: &LeaderChannel,
    events: &mpsc::Sender<LinkEvent>,
    backoff: &mut Duration,
) -> Result<(), Ended> {
    let (outbox, messages) = mpsc::channel(OUTBOX);
    events.send(LinkEvent::Up(outbox)).await.map_err(|_| Ended::Lost)?;
    let response = WorkersClient::new(channel.clone())
        .agent(ReceiverStream::new(messages))
        .await
        .map_err(|s| ended(&s))?;
    let mut commands = response.into_inner();
    while let Some(command) = commands.message().await.map_err(|s| ended(&s))? {
        *backoff = FIRST_BACKOFF;
        events.send(LinkEvent::Command(command)).await.map_err(|_| Ended::Lost)?;
    }
    tracing::warn!("the coordinator closed the stream; connecting again");
    Ok(())
}

fn ended(status: &Status) -> Ended {
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => Ended::Refused(status.clone()),
        Code::AlreadyExists => Ended::NameTaken(status.clone()),
        _ => {
            let reason = rpc::unreached(status);
            tracing::warn!(%reason, "no stream to the coordinator; connecting again");
            Ended::Lost
        }
    }
}

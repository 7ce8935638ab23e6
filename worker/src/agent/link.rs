//! Maintains the stream to the coordinator: connects, reconnects with backoff, and notifies the agent of each
//! change.

#![expect(clippy::disallowed_methods, reason = "reconnections back off with jitter")]

use std::sync::Arc;
use std::time::Duration;

use foil_common::rpc::{self, LeaderChannel};
use foil_proto::v1;
use foil_proto::v1::workers_client::WorkersClient;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Short, so that a new leader gets its workers quickly.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Time for the coordinator to notice that another process with this agent's name has died, which takes a few
/// missed heartbeats.
const NAME_CONFLICT_TIMEOUT: Duration = Duration::from_secs(10);
/// Capacity of the queue of outgoing messages.
const SEND_BUFFER: usize = 256;

/// An event of the stream to the coordinator.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A stream is being opened; the registration must be its first message.
    Up(mpsc::Sender<v1::AgentMessage>),
    Command(v1::AgentCommand),
    Down,
    /// The coordinator rejected this agent permanently.
    Refused(Status),
}

/// Runs until the receiver of `events` is dropped or the coordinator rejects the agent. `reconnect` closes
/// the current stream and tries another coordinator.
pub(super) async fn keep(channel: LeaderChannel, events: mpsc::Sender<LinkEvent>, reconnect: Arc<Notify>) {
    let mut backoff = MIN_BACKOFF;
    let mut name_taken_since: Option<Instant> = None;
    loop {
        let coordinator = channel.url();
        let outcome = tokio::select! {
            outcome = stream_once(&channel, &events, &mut backoff) => outcome,
            () = reconnect.notified() => {
                channel.fail_over(&coordinator);
                Err(StreamError::Lost)
            }
        };
        let outcome = match outcome {
            Err(StreamError::NameTaken(status)) => {
                let since = *name_taken_since.get_or_insert_with(|| {
                    tracing::warn!(
                        "{}; retrying for {} s",
                        status.message(),
                        NAME_CONFLICT_TIMEOUT.as_secs()
                    );
                    Instant::now()
                });
                if since.elapsed() >= NAME_CONFLICT_TIMEOUT {
                    Err(StreamError::Refused(status))
                } else {
                    Ok(())
                }
            }
            outcome => {
                name_taken_since = None;
                outcome
            }
        };
        if let Err(StreamError::Refused(status)) = outcome {
            // The receiver has been dropped if the agent is stopping.
            let _ = events.send(LinkEvent::Refused(status)).await;
            return;
        }
        if events.send(LinkEvent::Down).await.is_err() {
            return;
        }
        // Jitter, so that agents that lost the same coordinator do not reconnect all at once.
        sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

enum StreamError {
    Lost,
    /// Another process with this agent's name is connected.
    NameTaken(Status),
    Refused(Status),
}

async fn stream_once(
    channel: &LeaderChannel,
    events: &mpsc::Sender<LinkEvent>,
    backoff: &mut Duration,
) -> Result<(), StreamError> {
    let (outbox, messages) = mpsc::channel(SEND_BUFFER);
    events.send(LinkEvent::Up(outbox)).await.map_err(|_| StreamError::Lost)?;
    let response = WorkersClient::new(channel.clone())
        .agent(ReceiverStream::new(messages))
        .await
        .map_err(|status| classify(&status))?;
    let mut commands = response.into_inner();
    while let Some(command) = commands.message().await.map_err(|status| classify_end(&status))? {
        *backoff = MIN_BACKOFF;
        events.send(LinkEvent::Command(command)).await.map_err(|_| StreamError::Lost)?;
    }
    tracing::warn!("the coordinator closed the stream; reconnecting");
    Ok(())
}

/// Classifies the end of a stream that the coordinator had accepted.
fn classify_end(status: &Status) -> StreamError {
    match status.code() {
        Code::Unauthenticated => {
            // The token file may have been replaced: the next stream uses the new token or is refused.
            tracing::warn!(
                reason = status.message(),
                "the stream's credentials are no longer valid; reconnecting"
            );
            StreamError::Lost
        }
        _ => classify(status),
    }
}

fn classify(status: &Status) -> StreamError {
    match status.code() {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => StreamError::Refused(status.clone()),
        Code::AlreadyExists => StreamError::NameTaken(status.clone()),
        _ => {
            let reason = rpc::unreached(status);
            tracing::warn!(%reason, "no stream to the coordinator; reconnecting");
            StreamError::Lost
        }
    }
}

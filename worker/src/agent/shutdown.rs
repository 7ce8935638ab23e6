//! Shutdown of an agent: ends its ranks and reports their exits to the coordinator.

#![expect(clippy::disallowed_methods, reason = "the grace period has a deadline")]

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::agent_command::Command;
use foil_proto::v1::agent_message::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::link::LinkEvent;
use super::process::RankEnd;
use super::{Agent, heartbeat_interval};

/// Time for ranks to be reaped after SIGKILL.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the coordinator to accept the ends of the ranks' logs.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the coordinator to accept the last messages.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

impl Agent {
    /// Ends all ranks, after asking them to stop if `graceful`.
    pub(super) async fn shut_down(
        &mut self,
        graceful: bool,
        events: &mut mpsc::Receiver<LinkEvent>,
        exits: &mut mpsc::UnboundedReceiver<RankEnd>,
    ) {
        if graceful {
            self.terminate_ranks(events, exits).await;
        }
        self.kill_ranks(exits).await;
        if tokio::time::timeout(LOG_TIMEOUT, self.ranks.flush_logs()).await.is_err() {
            tracing::warn!("the last lines of the ranks' logs could not be stored in time");
        }
        self.flush(events).await;
    }

    /// Sends SIGTERM and gives ranks the grace period to write their checkpoints. Heartbeats continue during
    /// this time.
    async fn terminate_ranks(
        &mut self,
        events: &mut mpsc::Receiver<LinkEvent>,
        exits: &mut mpsc::UnboundedReceiver<RankEnd>,
    ) {
        self.send(Message::Leaving(v1::AgentLeaving {}));
        self.ranks.terminate_all();
        let deadline = Instant::now() + self.options.grace;
        let mut heartbeat = heartbeat_interval(self.heartbeat);
        while !self.ranks.is_empty() {
            tokio::select! {
                Some(exit) = exits.recv() => self.rank_ended(exit),
                // Refused ranks are started elsewhere once this agent is gone.
                Some(event) = events.recv() => if !is_start(&event) { self.handle_event(event).await; },
                _ = heartbeat.tick() => self.send_heartbeat(),
                () = sleep_until(deadline) => {
                    tracing::warn!(ranks = self.ranks.len(), "the grace period is over; killing the ranks");
                    break;
                }
            }
        }
    }

    async fn kill_ranks(&mut self, exits: &mut mpsc::UnboundedReceiver<RankEnd>) {
        self.ranks.kill_all();
        let deadline = Instant::now() + REAP_TIMEOUT;
        while !self.ranks.is_empty() {
            tokio::select! {
                Some(exit) = exits.recv() => self.rank_ended(exit),
                () = sleep_until(deadline) => break,
            }
        }
    }

    /// Delivers the last messages to the coordinator: exits of ranks must not be lost with this process.
    async fn flush(&mut self, events: &mut mpsc::Receiver<LinkEvent>) {
        if self.stream.take().is_none() {
            return;
        }
        let closed = async {
            while let Some(event) = events.recv().await {
                if matches!(event, LinkEvent::Down | LinkEvent::Refused(_)) {
                    return;
                }
            }
        };
        // Give up on a coordinator that does not answer in time.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, closed).await;
    }
}

fn is_start(event: &LinkEvent) -> bool {
    let command = match event {
        LinkEvent::Command(command) => command.command.as_ref(),
        LinkEvent::Up(_) | LinkEvent::Down | LinkEvent::Refused(_) => None,
    };
    matches!(command, Some(Command::StartRank(_)))
}

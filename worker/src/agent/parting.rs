//! How an agent leaves: its ranks are ended, and the coordinator hears how.

use std::time::Duration;

use foil_proto::v1;
use foil_proto::v1::agent_command::Command;
use foil_proto::v1::agent_message::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::link::LinkEvent;
use super::process::RankEnd;
use super::{Agent, steady};

/// For ranks to be reaped after SIGKILL when the agent stops.
const REAP_LIMIT: Duration = Duration::from_secs(10);
/// For the coordinator to take the last messages.
const PARTING: Duration = Duration::from_secs(1);

impl Agent {
    /// Ends all ranks; those of an agent that was told to stop in order are asked first.
    pub(super) async fn leave(
        &mut self,
        in_order: bool,
        heard: &mut mpsc::Receiver<LinkEvent>,
        ended: &mut mpsc::UnboundedReceiver<RankEnd>,
    ) {
        if in_order {
            self.ask_ranks(heard, ended).await;
        }
        self.stop_ranks(ended).await;
        self.say_goodbye(heard).await;
    }

    /// Gives ranks time to keep what they have done, heartbeats going on meanwhile.
    async fn ask_ranks(
        &mut self,
        heard: &mut mpsc::Receiver<LinkEvent>,
        ended: &mut mpsc::UnboundedReceiver<RankEnd>,
    ) {
        self.send(Message::Leaving(v1::AgentLeaving {}));
        self.ranks.terminate_all();
        let limit = Instant::now() + self.options.grace;
        let mut beat = steady(self.heartbeat);
        while !self.ranks.is_empty() {
            tokio::select! {
                Some(exit) = ended.recv() => self.rank_ended(exit),
                // What is not started here any more is started elsewhere once this agent is gone.
                Some(event) = heard.recv() => if !is_start(&event) { self.hear(event).await; },
                _ = beat.tick() => self.beat(),
                () = sleep_until(limit) => {
                    tracing::warn!(ranks = self.ranks.len(), "the grace period is over");
                    break;
                }
            }
        }
    }

    async fn stop_ranks(&mut self, ended: &mut mpsc::UnboundedReceiver<RankEnd>) {
        self.ranks.stop_all();
        let limit = Instant::now() + REAP_LIMIT;
        while !self.ranks.is_empty() {
            tokio::select! {
                Some(exit) = ended.recv() => self.rank_ended(exit),
                () = sleep_until(limit) => break,
            }
        }
    }

    /// Lets what was told reach the coordinator: how ranks ended must not be lost with this process.
    async fn say_goodbye(&mut self, heard: &mut mpsc::Receiver<LinkEvent>) {
        if self.stream.take().is_none() {
            return;
        }
        let closed = async {
            while let Some(event) = heard.recv().await {
                if matches!(event, LinkEvent::Down | LinkEvent::Refused(_)) {
                    return;
                }
            }
        };
        // A coordinator that does not answer is not waited for.
        let _ = tokio::time::timeout(PARTING, closed).await;
    }
}

fn is_start(event: &LinkEvent) -> bool {
    let command = match event {
        LinkEvent::Command(command) => command.command.as_ref(),
        LinkEvent::Up(_) | LinkEvent::Down | LinkEvent::Refused(_) => None,
    };
    matches!(command, Some(Command::StartRank(_)))
}

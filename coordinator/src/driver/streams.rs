//! The open streams: agents, ranks and watchers.

use std::collections::BTreeMap;
use std::sync::Arc;

use foil_proto::v1::{self, agent_command, rank_command};
use tokio::sync::broadcast;
use tonic::Status;

use super::command::{AgentCommands, RankCommands, StreamEnd};
use crate::schedule::ProtocolError;

/// Number of events that a watcher may fall behind before its stream is ended.
const WATCH_BACKLOG: usize = 1024;

#[derive(Debug)]
pub(super) struct Streams {
    /// Term of this leader, stamped on every command.
    term: u64,
    agents: BTreeMap<String, (u64, AgentCommands)>,
    ranks: BTreeMap<String, RankCommands>,
    watchers: BTreeMap<String, broadcast::Sender<Arc<v1::JobEvent>>>,
}

impl Streams {
    pub(super) fn new(term: u64) -> Self {
        Self { term, agents: BTreeMap::new(), ranks: BTreeMap::new(), watchers: BTreeMap::new() }
    }

    pub(super) fn add_agent(&mut self, agent: &str, connection: u64, commands: AgentCommands) {
        let before = self.agents.insert(agent.to_owned(), (connection, commands));
        if let Some((_, before)) = before {
            // Fails if it is an older stream of the same agent, which nobody reads any longer.
            let _ = before.try_send(Err(Status::aborted("another stream of this agent replaced this one")));
        }
    }

    pub(super) fn remove_agent(&mut self, agent: &str, connection: u64) {
        if self.agents.get(agent).is_some_and(|(current, _)| *current == connection) {
            self.agents.remove(agent);
        }
    }

    pub(super) fn add_rank(&mut self, session: &str, commands: RankCommands) {
        self.ranks.insert(session.to_owned(), commands);
    }

    /// Ends a rank's stream, with an error if there is one.
    pub(super) fn remove_rank(&mut self, session: &str, error: Option<ProtocolError>) {
        if let (Some(commands), Some(error)) = (self.ranks.remove(session), error) {
            // A rank that has already disconnected needs no reason.
            let _ = commands.try_send(Err(StreamEnd::Protocol(error)));
        }
    }

    pub(super) fn send_to_agent(&mut self, agent: &str, command: agent_command::Command) {
        let command = v1::AgentCommand { term: self.term, command: Some(command) };
        let Some((_, commands)) = self.agents.get(agent) else {
            tracing::debug!(agent, "dropping a command: the agent is not connected");
            return;
        };
        // A stream that does not drain is as good as closed: the agent reconnects and reports its running
        // processes.
        if commands.try_send(Ok(command)).is_err() {
            self.agents.remove(agent);
        }
    }

    pub(super) fn send_to_rank(&mut self, session: &str, command: rank_command::Command) {
        let command = v1::RankCommand { term: self.term, command: Some(command) };
        let Some(commands) = self.ranks.get(session) else { return };
        if commands.try_send(Ok(command)).is_err() {
            self.ranks.remove(session);
        }
    }

    pub(super) fn subscribe(&mut self, job: &str) -> broadcast::Receiver<Arc<v1::JobEvent>> {
        let watchers = self.watchers.entry(job.to_owned());
        watchers.or_insert_with(|| broadcast::channel(WATCH_BACKLOG).0).subscribe()
    }

    pub(super) fn publish(&mut self, job: &str, event: Arc<v1::JobEvent>) {
        // Sending fails if there are no watchers.
        if self.watchers.get(job).is_some_and(|watchers| watchers.send(event).is_err()) {
            self.watchers.remove(job);
        }
    }
}

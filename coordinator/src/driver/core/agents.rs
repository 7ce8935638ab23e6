//! Inputs from agents.

use foil_proto::v1;

use super::Core;
use super::hosts::NotAdmitted;
use crate::clock::Now;
use crate::job::JobState;
use crate::schedule::{Attempt, Input};

impl Core {
    /// Checks that no other connected agent uses the name and that the agent's ranks are reachable.
    pub fn admits(&self, hello: &v1::AgentRegister, now: Now) -> Result<(), NotAdmitted> {
        self.cluster.admits(hello, now)?;
        Ok(self.hosts.admits(hello)?)
    }

    pub fn agent_registered(&mut self, hello: &v1::AgentRegister, connection: u64, now: Now) {
        self.hosts.insert(hello);
        let registered = self.cluster.register(hello, connection, now);
        for session in registered.orphans {
            tracing::info!(agent = hello.agent_id, session, "stopping an orphaned rank process");
            self.stop(&hello.agent_id, session);
        }
        for session in registered.kept {
            self.deliver(&session.clone(), Input::AgentBack { session }, now);
        }
        for session in registered.lost {
            self.deliver(&session.clone(), Input::AgentLost { session }, now);
        }
        self.allocate(now);
    }

    /// Records a message of an agent. False if a newer stream has replaced this one.
    pub fn agent_heard(&mut self, agent: &str, connection: u64, now: Now) -> bool {
        self.cluster.heard(agent, connection, now)
    }

    pub fn agent_leaving(&mut self, agent: &str, connection: u64, now: Now) {
        tracing::info!(agent, "agent is leaving");
        for session in self.cluster.leaving(agent, connection, now) {
            self.deliver(&session.clone(), Input::AgentLeaving { session }, now);
        }
    }

    pub fn agent_disconnected(&mut self, agent: &str, connection: u64, now: Now) {
        self.cluster.disconnected(agent, connection, now);
    }

    /// Handles the exit of a process, provided that the agent is the one that was asked to start it.
    pub fn rank_exited(&mut self, agent: &str, exit: v1::RankExited, now: Now) {
        self.cluster.exited(agent, &exit.session_id);
        let job = self.sessions.get(&exit.session_id).cloned();
        let is_own = |attempt: &mut Attempt, _: &JobState| {
            attempt.agent_of(&exit.session_id).is_none_or(|own| own == agent)
        };
        if !job.and_then(|job| self.with_attempt(&job, is_own)).unwrap_or(true) {
            tracing::warn!(agent, session = exit.session_id, "ignoring the exit of another agent's rank");
            return;
        }
        self.deliver(&exit.session_id.clone(), Input::Exited(exit), now);
        self.allocate(now);
    }
}

//! Simulated coordinators: their output, their failures, and the invariants that they must keep.

use super::checker;
use super::machines::Stream;
use super::node::{Release, State};
use super::simulator::{FAULTS_END, MILLI, NodeMessage, Rejection, SimEvent, Simulator};
use crate::driver::core::Action;
use crate::job::DEFAULT_TENANT;
use crate::job::fixture::{JOB, submitted};

impl Simulator {
    pub(super) fn poll_nodes(&mut self) {
        let now = self.clock();
        for node in 0..self.nodes.len() {
            if self.nodes[node].paused_until > self.now {
                continue;
            }
            let led = matches!(self.nodes[node].state, State::Leading(_));
            match self.nodes[node].poll(now) {
                Ok(released) => released.into_iter().for_each(|release| self.release(node, release)),
                Err(reason) if reason.is_empty() => self.cut_streams(node, State::Dead, false),
                Err(reason) => self.violation = Some(reason),
            }
            if !led && matches!(self.nodes[node].state, State::Leading(_)) {
                self.elections += 1;
                self.gaps.extend(self.leaderless_since.take().map(|since| self.now - since));
            }
        }
    }

    /// Breaks the streams of a leader that steps down or dies; the other ends soon notice.
    fn cut_streams(&mut self, node: usize, state: State, dies: bool) {
        let before = std::mem::replace(&mut self.nodes[node].state, state);
        if let State::Leading(leading) = before {
            for (agent, stream) in leading.agents {
                self.schedule_soon(SimEvent::AgentDisconnected { agent, stream });
            }
            for (session, stream) in leading.ranks {
                self.schedule_soon(SimEvent::RankDisconnected {
                    session,
                    stream,
                    rejection: Rejection::None,
                });
            }
        }
        if !dies {
            self.nodes[node].stand_by();
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        if matches!(self.nodes[node].state, State::Dead) {
            return;
        }
        self.leaderless_since = None;
        let led = self.nodes[node].leading().is_some();
        let other = &self.nodes[1 - node];
        let watched = matches!(other.state, State::Standby(_)) && other.paused_until <= self.now;
        if led && watched && self.now >= FAULTS_END / 4 {
            self.leaderless_since = Some(self.now);
        }
        self.deaths += 1;
        self.processes += 1;
        self.cut_streams(node, State::Dead, true);
        // The old process number is dead.
        self.nodes[node].process = self.processes;
        let down = 500 + self.rng.next() % 4000;
        self.schedule_after(down, SimEvent::Restart { node });
    }

    fn release(&mut self, node: usize, release: Release) {
        for (revision, event) in &release.events {
            if let Err(violation) = self.checker.record_event(*revision, event) {
                self.violation.get_or_insert(violation);
            }
            if let Some(attempt) = checker::failed_attempt(event) {
                self.check_fence(node, attempt);
            }
            self.ended |= matches!(event.change, crate::job::Change::Ended(_));
        }
        self.checker.submitted |= release.submitted;
        for action in release.actions {
            self.act(node, action);
        }
    }

    /// A leader may give up only processes that are dead, or whose agents it can tell to kill them.
    fn check_fence(&mut self, node: usize, attempt: u32) {
        let Some(leading) = self.nodes[node].leading() else { return };
        let alive = self
            .ranks
            .values()
            .find(|rank| rank.start.attempt == attempt && !leading.heard.contains(&rank.agent));
        if let Some(rank) = alive {
            let (session, agent) = (&rank.start.session_id, &rank.agent);
            let text = format!(
                "attempt {attempt} was declared dead while {session} lives on {agent}, which the leader never heard"
            );
            self.violation.get_or_insert(text);
        }
    }

    fn act(&mut self, node: usize, action: Action) {
        let process = self.nodes[node].process;
        let Some(leading) = self.nodes[node].leading() else { return };
        let term = leading.term;
        match action {
            Action::Agent { agent, command } => {
                if let Some(id) = leading.agents.get(&agent).copied() {
                    let stream = Stream { id, node, process };
                    self.send_on_stream(id, false, SimEvent::ToAgent { agent, stream, term, command });
                }
            }
            Action::Rank { session, command } => {
                if let Some(id) = leading.ranks.get(&session).copied() {
                    let stream = Stream { id, node, process };
                    self.send_on_stream(id, false, SimEvent::ToRank { session, stream, term, command });
                }
            }
            Action::WriteSteps { phase, key, .. } => {
                let stream = self.open(node);
                self.send(stream, NodeMessage::StepsWritten { phase, key });
            }
            Action::CollectGarbage(garbage) => self.checker.record_garbage(garbage),
            Action::Publish { .. }
            | Action::Transition { .. }
            | Action::Count(_)
            | Action::Step { .. }
            | Action::Shard(_) => {}
        }
    }

    /// Reads from a leader with a valid lease, which must never show an older state than was released before.
    pub(super) fn read_at(&mut self, node: usize) {
        let (now, newest) = (self.now, self.checker.newest());
        let Some(leading) = self.nodes[node].leading() else { return };
        let state = leading.core.state(JOB);
        let seen = state.map_or(0, |state| state.revision);
        // The end may be visible here only, if the leader that wrote it died before releasing it. Events that
        // are not durable may still be lost.
        let durable = leading.is_settled() && now < leading.lease_until;
        self.ended |= durable && state.is_some_and(crate::job::JobState::is_ended);
        if now < leading.lease_until && seen < newest {
            let text = format!("a leader shows revision {seen} after another leader released {newest}");
            self.violation.get_or_insert(text);
        }
    }

    /// The client tries one coordinator after another, and sometimes repeats a request that was answered.
    pub(super) fn submit(&mut self) {
        if !self.checker.submitted || self.rng.one_in(2) {
            let node = self.rng.below(2);
            let stream = self.open(node);
            self.send(stream, NodeMessage::Submit);
            let pause = 200 + self.rng.next() % 2000;
            self.schedule_after(pause, SimEvent::Submit);
        }
    }

    pub(super) fn inject_fault(&mut self) {
        if self.now > FAULTS_END {
            return;
        }
        let node = self.rng.below(2);
        match self.rng.below(8) {
            0 | 1 => self.crash(node),
            2 | 3 => {
                self.leaderless_since = None;
                let sleep = self.rng.between(500 * MILLI, 25_000 * MILLI);
                self.nodes[node].paused_until = self.now + sleep;
            }
            4 => {
                let agent = if self.rng.one_in(2) { "a" } else { "b" };
                self.lose_stream(agent);
            }
            _ => {
                let sessions: Vec<String> = self.ranks.keys().cloned().collect();
                if let Some(session) = sessions.get(self.rng.below(sessions.len())) {
                    self.deaths += 1;
                    self.kill(session);
                }
            }
        }
        let pause = 500 + self.rng.next() % 6000;
        self.schedule_after(pause, SimEvent::Fault);
    }

    pub(super) fn is_connected(&mut self, stream: Stream) -> bool {
        let node = &mut self.nodes[stream.node];
        node.process == stream.process && node.leading().is_some()
    }

    pub(super) fn submit_job(&mut self, node: usize) {
        let now = self.clock();
        let Some(leading) = self.nodes[node].leading() else { return };
        if now.mono >= leading.lease_until {
            return;
        }
        if leading.core.find_request(DEFAULT_TENANT, "r1").is_none() {
            leading.core.submit(JOB, submitted(super::SMALL), now);
        }
        leading.flush(true);
    }
}

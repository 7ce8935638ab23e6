//! Simulated coordinators: their output, their failures, and the invariants that they must keep.

use super::URGENT;
use super::checker;
use super::machines::{Rank, Stream};
use super::node::{Release, State};
use super::simulator::{FAULTS_END, MILLI, NodeMessage, Rejection, SimEvent, Simulator};
use crate::driver::core::Action;
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

    /// Breaks the streams of a leader that steps down or dies; the other ends notice soon.
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
        // The old process is dead, and its number with it.
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
                self.check_fence(node, &event.job, attempt);
            }
            if matches!(event.change, crate::job::Change::Ended(_)) {
                self.ended.insert(event.job.clone());
            }
        }
        self.checker.submitted.extend(release.submitted);
        for action in release.actions {
            self.act(node, action);
        }
    }

    /// A leader may give up only processes that are dead or whose agents it can ask to kill them.
    fn check_fence(&mut self, node: usize, job: &str, attempt: u32) {
        let Some(leading) = self.nodes[node].leading() else { return };
        let is_of = |rank: &Rank| rank.start.attempt == attempt && rank.start.job_id == job;
        let alive = self.ranks.values().find(|rank| is_of(rank) && !leading.heard.contains(&rank.agent));
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
            Action::WriteSteps { job, phase, key, .. } => {
                let stream = self.open(node);
                self.send(stream, NodeMessage::StepsWritten { job, phase, key });
            }
            Action::CollectGarbage(garbage) => self.checker.record_garbage(garbage),
            Action::Publish { .. }
            | Action::Transition { .. }
            | Action::Count(_)
            | Action::Step { .. }
            | Action::Usage(_)
            | Action::Shard(_)
            | Action::Erase { .. } => {}
        }
    }

    /// Reads from a leader with a valid lease, which must never show a state older than one already released.
    pub(super) fn read_at(&mut self, node: usize) {
        for job in [JOB, URGENT] {
            self.read_job_at(node, job);
        }
    }

    fn read_job_at(&mut self, node: usize, job: &str) {
        let (now, newest) = (self.now, self.checker.newest(job));
        let Some(leading) = self.nodes[node].leading() else { return };
        let state = leading.core.state(job);
        let seen = state.map_or(0, |state| state.revision);
        // The end may be visible only here, if the leader that wrote it died before releasing it. Events that
        // are not durable may still be lost.
        let durable = leading.is_settled() && now < leading.lease_until;
        if durable && state.is_some_and(crate::job::JobState::is_ended) {
            self.ended.insert(job.to_owned());
        }
        if now < leading.lease_until && seen < newest {
            let text = format!("a leader shows revision {seen} after another leader released {newest}");
            self.violation.get_or_insert(text);
        }
    }

    /// Submits a job. The client tries one coordinator after another, and sometimes repeats a request that
    /// was answered.
    pub(super) fn submit(&mut self, job: &'static str) {
        if !self.checker.submitted.contains(job) || self.rng.one_in(2) {
            let node = self.rng.below(2);
            let stream = self.open(node);
            self.send(stream, NodeMessage::Submit { job });
            let pause = 200 + self.rng.next() % 2000;
            self.schedule_after(pause, SimEvent::Submit { job });
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

    pub(super) fn submit_job(&mut self, node: usize, job: &'static str) {
        let now = self.clock();
        let Some(leading) = self.nodes[node].leading() else { return };
        if now.mono >= leading.lease_until {
            return;
        }
        if leading.core.state(job).is_none() {
            let mut submitted = submitted(super::SMALL);
            if job == URGENT {
                submitted.request_id = URGENT.to_owned();
                submitted.spec.get_or_insert_default().priority = Some(100);
                submitted.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(4);
            }
            leading.core.submit(job, submitted, now);
        }
        leading.flush(Some(job));
    }
}

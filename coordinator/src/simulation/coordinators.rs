//! Coordinators in the world: what leaves them, how they die, and what they are held to.

use super::ledger;
use super::machines::Stream;
use super::node::{Release, State};
use super::world::{CALM_FROM, Happening, MILLI, Refused, Word, World};
use crate::driver::core::Action;
use crate::job::fixture::{JOB, submitted};

impl World {
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

    /// A leader steps down, or dies: its streams break, which the other ends soon notice.
    fn cut_streams(&mut self, node: usize, state: State, dies: bool) {
        let before = std::mem::replace(&mut self.nodes[node].state, state);
        if let State::Leading(leading) = before {
            for (agent, stream) in leading.agents {
                self.soon(Happening::AgentCut { agent, stream });
            }
            for (session, stream) in leading.ranks {
                self.soon(Happening::RankCut { session, stream, refused: Refused::No });
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
        let watched = matches!(other.state, State::Standing(_)) && other.paused_until <= self.now;
        if led && watched && self.now >= CALM_FROM / 4 {
            self.leaderless_since = Some(self.now);
        }
        self.deaths += 1;
        self.processes += 1;
        self.cut_streams(node, State::Dead, true);
        // Nobody answers to the old number any more.
        self.nodes[node].process = self.processes;
        let down = 500 + self.dice.next() % 4000;
        self.later(down, Happening::Restart { node });
    }

    fn release(&mut self, node: usize, release: Release) {
        for (revision, event) in &release.events {
            if let Err(violation) = self.ledger.tell(*revision, event) {
                self.violation.get_or_insert(violation);
            }
            if let Some(attempt) = ledger::given_up(event) {
                self.check_fence(node, attempt);
            }
            self.ended |= matches!(event.change, crate::job::Change::Ended(_));
        }
        self.ledger.submitted |= release.submitted;
        for action in release.actions {
            self.act(node, action);
        }
    }

    /// Whoever leads may give up only processes that are dead or whose agents it can tell to kill them.
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
                    self.along(id, false, Happening::ToAgent { agent, stream, term, command });
                }
            }
            Action::Rank { session, command } => {
                if let Some(id) = leading.ranks.get(&session).copied() {
                    let stream = Stream { id, node, process };
                    self.along(id, false, Happening::ToRank { session, stream, term, command });
                }
            }
            Action::WriteSteps { phase, key, .. } => {
                let stream = self.open(node);
                self.say(stream, Word::StepsWritten { phase, key });
            }
            Action::Sweep(sweep) => self.ledger.sweep(sweep),
            Action::Publish { .. } | Action::Transition { .. } | Action::Count(_) => {}
        }
    }

    /// A leader whose lease holds answers reads: never with less than anybody was told.
    pub(super) fn read_at(&mut self, node: usize) {
        let (now, newest) = (self.now, self.ledger.newest());
        let Some(leading) = self.nodes[node].leading() else { return };
        let state = leading.core.state(JOB);
        let seen = state.map_or(0, |state| state.revision);
        // Also where the leader that wrote the end died before it told. What is not durable yet may still be lost.
        let durable = leading.is_settled() && now < leading.lease_until;
        self.ended |= durable && state.is_some_and(crate::job::JobState::is_ended);
        if now < leading.lease_until && seen < newest {
            let text = format!("a leader shows revision {seen} after another told of {newest}");
            self.violation.get_or_insert(text);
        }
    }

    /// The client tries one coordinator after another, and now and then sends again what was answered.
    pub(super) fn submit(&mut self) {
        if !self.ledger.submitted || self.dice.one_in(2) {
            let node = self.dice.below(2);
            let stream = self.open(node);
            self.say(stream, Word::Submit);
            let pause = 200 + self.dice.next() % 2000;
            self.later(pause, Happening::Submit);
        }
    }

    pub(super) fn misfortune(&mut self) {
        if self.now > CALM_FROM {
            return;
        }
        let node = self.dice.below(2);
        match self.dice.below(8) {
            0 | 1 => self.crash(node),
            2 | 3 => {
                self.leaderless_since = None;
                let sleep = self.dice.between(500 * MILLI, 25_000 * MILLI);
                self.nodes[node].paused_until = self.now + sleep;
            }
            4 => {
                let agent = if self.dice.one_in(2) { "a" } else { "b" };
                self.lose_stream(agent);
            }
            _ => {
                let sessions: Vec<String> = self.ranks.keys().cloned().collect();
                if let Some(session) = sessions.get(self.dice.below(sessions.len())) {
                    self.deaths += 1;
                    self.kill(session);
                }
            }
        }
        let pause = 500 + self.dice.next() % 6000;
        self.later(pause, Happening::Misfortune);
    }

    pub(super) fn node_hears(&mut self, stream: Stream) -> bool {
        let node = &mut self.nodes[stream.node];
        node.process == stream.process && node.leading().is_some()
    }

    pub(super) fn submitted_job(&mut self, node: usize) {
        let now = self.clock();
        let Some(leading) = self.nodes[node].leading() else { return };
        if now.mono >= leading.lease_until {
            return;
        }
        if leading.core.find_request("r1").is_none() {
            leading.core.submit(JOB, submitted(super::SMALL), now);
        }
        leading.flush(true);
    }
}

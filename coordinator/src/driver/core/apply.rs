//! Turns inputs into events and actions.

use std::sync::Arc;

use foil_proto::v1::{self, agent_command, job_event};

use super::{Action, Core, Entry};
use crate::clock::Now;
use crate::cluster::{AgentFault, Placement};
use crate::job::{self, Change, Event, GarbageSet, JobState, JobStatus, StateError, view};
use crate::schedule::{Attempt, Counter, Decision, Effect, Input, Level, ProtocolError};

impl Core {
    pub(super) fn deliver(&mut self, session: &str, input: Input, now: Now) {
        if let Err(error) = self.try_deliver(session, input, now) {
            tracing::debug!(session, %error, "input ignored");
        }
    }

    pub(super) fn try_deliver(&mut self, session: &str, input: Input, now: Now) -> Result<(), ProtocolError> {
        let stale = || ProtocolError::Stale { session: session.to_owned(), attempt: 0 };
        let job = self.sessions.get(session).cloned().ok_or_else(stale)?;
        let decision = self
            .with_attempt(&job, |attempt, state| attempt.handle(state, input, now))
            .ok_or_else(stale)??;
        self.apply_decision(&job, decision, now);
        self.advance_job(&job, now);
        Ok(())
    }

    pub(super) fn with_attempt<T>(
        &mut self,
        job: &str,
        act: impl FnOnce(&mut Attempt, &JobState) -> T,
    ) -> Option<T> {
        let entry = self.jobs.get_mut(job)?;
        entry.attempt.as_mut().map(|attempt| act(attempt, &entry.state))
    }

    /// Advances a job until its state implies no further change.
    pub(super) fn advance_job(&mut self, id: &str, now: Now) {
        while self.fault.is_none() {
            let Some(entry) = self.jobs.get(id) else { return };
            if let Some((change, reason)) = job::decide(&entry.state) {
                self.commit(id, change, &reason, now);
                continue;
            }
            let Some(decision) = self.with_attempt(id, |attempt, state| attempt.advance(state, now)) else {
                return;
            };
            let moved = !decision.changes.is_empty();
            self.apply_decision(id, decision, now);
            if !moved {
                break;
            }
        }
        self.drop_finished(id);
    }

    /// Drops an attempt whose processes have all exited.
    pub(super) fn drop_finished(&mut self, id: &str) {
        let Some(entry) = self.jobs.get_mut(id) else { return };
        if entry.attempt.as_ref().is_some_and(|attempt| attempt.is_over()) {
            entry.attempt = None;
            entry.progress = None;
            self.sessions.retain(|_, job| job != id);
        }
    }

    pub(super) fn apply_decision(&mut self, id: &str, decision: Decision, now: Now) {
        let reason = decision.reasons.join("; ");
        if !reason.is_empty() {
            let state = self.state(id);
            let phase = state.and_then(JobState::phase).map(|phase| phase.id.as_str()).unwrap_or_default();
            tracing::debug!(
                job = id,
                phase,
                attempt = state.map_or(0, |state| state.attempt),
                reason,
                "decided"
            );
        }
        for change in decision.changes {
            self.commit(id, change, &reason, now);
        }
        for effect in decision.effects {
            self.apply_effect(id, effect, now);
        }
    }

    pub(super) fn apply_effect(&mut self, id: &str, effect: Effect, now: Now) {
        match effect {
            Effect::Start { agent, start } => {
                let command = agent_command::Command::StartRank(start);
                self.outbox.actions.push(Action::Agent { agent, command });
            }
            Effect::Stop { agent, session } => self.stop(&agent, session),
            Effect::Terminate { agent, session } => {
                let stop = v1::StopRank { session_id: session, graceful: true };
                let command = agent_command::Command::StopRank(stop);
                self.outbox.actions.push(Action::Agent { agent, command });
            }
            Effect::Send { session, command } => self.outbox.actions.push(Action::Rank { session, command }),
            Effect::Release { placement, session } => {
                self.cluster.release(&placement, &session);
                self.released = true;
            }
            Effect::AgentFault { placement, fault, why } => {
                self.record_fault(id, &placement, fault, &why, now);
            }
            Effect::RankConnected { agent } => self.cluster.record_connection(&agent),
            Effect::WriteSteps { phase, key, body } => {
                self.outbox.actions.push(Action::WriteSteps { job: id.to_owned(), phase, key, body });
            }
            Effect::Notice { level, text } => self.notify_watchers(id, level, text, now),
            Effect::Count(counter) => self.outbox.actions.push(Action::Count(counter)),
            Effect::Step(step) => {
                self.outbox.actions.push(Action::Step { job: id.to_owned(), at: now.wall, step });
            }
            Effect::Usage(usage) => self.outbox.actions.push(Action::Usage(usage)),
            Effect::Shard(saved) => self.outbox.actions.push(Action::Shard(saved)),
        }
    }

    /// Records a fault of an agent. If no other agent can take over, the fault counts against the job, so
    /// that the job ends eventually.
    fn record_fault(&mut self, id: &str, placement: &Placement, fault: AgentFault, why: &str, now: Now) {
        let Some(kind) = self.state(id).map(|state| state.spec.resources.device.to_string()) else { return };
        self.outbox.actions.push(Action::Count(Counter::WorkerFault));
        let agent = placement.agent.as_str();
        if let Some(period) = self.cluster.strike(agent, fault, now) {
            let seconds = period.as_secs();
            tracing::warn!(
                agent,
                job = id,
                seconds,
                why,
                "agent excluded: it gets no ranks while other agents have devices, until this time is over, one of its ranks \
                 connects or its process is restarted; look at its log"
            );
        }
        if !self.cluster.has_alternative(agent, &kind) {
            self.with_attempt(id, |attempt, _| attempt.charge(now));
        }
    }

    pub(super) fn stop(&mut self, agent: &str, session: String) {
        let command = agent_command::Command::StopRank(v1::StopRank { session_id: session, graceful: false });
        self.outbox.actions.push(Action::Agent { agent: agent.to_owned(), command });
    }

    pub(super) fn notify_watchers(&mut self, id: &str, level: Level, text: String, now: Now) {
        let name = match level {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        match level {
            Level::Info => tracing::info!(job = id, "{text}"),
            Level::Warning => tracing::warn!(job = id, "{text}"),
            Level::Error => tracing::error!(job = id, "{text}"),
        }
        self.publish(id, view::notice(name, text), now);
    }

    /// Sends watchers an event that the log does not keep.
    pub(super) fn publish(&mut self, id: &str, event: job_event::Event, now: Now) {
        if let Some(entry) = self.jobs.get(id) {
            let event = Arc::new(view::event(&entry.state, event, now.wall));
            self.outbox.actions.push(Action::Publish { job: id.to_owned(), event });
        }
    }

    pub(super) fn publish_progress(&mut self, id: &str, now: Now) {
        if let Some(Some(progress)) = self.with_attempt(id, Attempt::progress) {
            if let Some(entry) = self.jobs.get_mut(id) {
                entry.progress = Some(progress.clone());
            }
            self.publish(id, job_event::Event::PhaseProgress(progress), now);
        }
    }

    /// Applies a change and queues it for the log.
    pub(super) fn commit(&mut self, id: &str, change: Change, reason: &str, now: Now) {
        let event = Event::new(id, now.wall, change);
        let before = self.state(id).map_or("none", displayed_status);
        if let Err(fault) = self.apply(&event) {
            tracing::error!(job = id, %fault, "invalid state transition (bug); please report this");
            self.fault.get_or_insert(fault);
            return;
        }
        self.publish_last(id);
        let after = self.state(id).map_or("none", displayed_status);
        log(&event);
        if let Some(garbage) = self.state(id).and_then(|state| GarbageSet::after(state, &event.change)) {
            self.outbox.actions.push(Action::CollectGarbage(garbage));
        }
        if before != after {
            tracing::info!(job = id, from = before, to = after, reason, "job state changed");
            let transition =
                Action::Transition { from: before, to: after, reason: event.change.name().to_owned() };
            self.outbox.actions.push(transition);
        }
        self.outbox.events.push(event);
    }

    pub(super) fn apply(&mut self, event: &Event) -> Result<(), StateError> {
        if self.apply_quota(&event.change) {
            return Ok(());
        }
        let id = &event.job;
        match (&event.change, self.jobs.get_mut(id)) {
            (Change::Submitted(submitted), None) if !self.graves.contains(id) => {
                let state = Box::new(JobState::submitted(id, event.at, (**submitted).clone())?);
                self.references.add(&state);
                let request = (submitted.tenant().to_owned(), submitted.request_id.clone());
                self.requests.insert(request, id.clone());
                let entry =
                    Entry { state, attempt: None, history: Vec::new(), progress: None, waiting: None };
                self.jobs.insert(id.clone(), entry);
            }
            (Change::Deleted(_) | Change::Erased, _) => return self.apply_deletion(event),
            (_, Some(entry)) => entry.state.apply(event)?,
            (_, None) => {
                return Err(StateError::Unknown { job: id.clone(), event: event.change.name().to_owned() });
            }
        }
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.history.extend(job::events(&entry.state, &event.change, event.at));
            if entry.state.is_ended() {
                entry.history = job::retained(&entry.history);
            }
        }
        Ok(())
    }

    /// Sends watchers the events of a job's current revision.
    fn publish_last(&mut self, id: &str) {
        let Some(Entry { state, history, .. }) = self.jobs.get(id) else { return };
        let new = history.iter().rev().take_while(|past| past.revision() == state.revision).count();
        for past in &history[history.len() - new..] {
            self.outbox.actions.push(Action::Publish { job: id.to_owned(), event: past.event(state) });
        }
    }
}

/// Name of a job's state. A job whose last attempt is over counts as running until its end is recorded.
fn displayed_status(state: &JobState) -> &'static str {
    match state.status {
        JobStatus::Recovering if job::decide(state).is_some() => "running",
        _ => state.status.name(),
    }
}

/// Logs an event that is worth a line.
fn log(event: &Event) {
    let job = event.job.as_str();
    match &event.change {
        Change::AttemptStarted { attempt, phase, world } => {
            tracing::info!(job, phase, attempt, world, "attempt started");
        }
        Change::ChunkDone(done) => {
            tracing::debug!(
                job,
                phase = done.phase,
                chunk = done.chunk,
                duration_s = done.seconds,
                "chunk done"
            );
        }
        Change::CheckpointCommitted(made) => {
            let v1::Checkpoint { phase, step, attempt, objects } = made;
            let bytes = objects.iter().map(|object| object.size).sum::<u64>();
            tracing::info!(job, phase, attempt, step, bytes, "checkpoint committed");
        }
        // Logged when the watchers are notified.
        Change::CheckpointLost { .. } => {}
        Change::PhaseCommitted(done) => {
            let (phase, round, attempt) = (&done.phase, done.artifact.round, done.artifact.attempt);
            tracing::info!(job, phase, round, attempt, duration_s = done.seconds, "phase committed");
        }
        Change::AttemptEnded { attempt, cause } if cause.class.counts() => {
            let (cause, rank) = (cause.message.as_str(), cause.rank);
            tracing::warn!(job, attempt, rank, cause, "attempt ended");
        }
        Change::AttemptEnded { attempt, cause } => {
            tracing::info!(job, attempt, cause = cause.message, "attempt ended");
        }
        Change::RankStarted(started) => {
            let (attempt, rank, session, agent) =
                (started.attempt, started.rank, started.session.as_str(), started.agent.as_str());
            tracing::debug!(job, attempt, rank, session, agent, "starting rank process");
        }
        Change::Pinned(pin) => tracing::info!(job, artifact = pin.artifact, by = pin.by, "pinned"),
        Change::Unpinned { artifact } => tracing::info!(job, artifact, "unpinned"),
        Change::Deleted(tombstone) => tracing::info!(job, by = tombstone.by, "job deleted"),
        Change::Erased => tracing::info!(job, "objects of the deleted job are gone"),
        Change::Submitted(_) | Change::CancelRequested | Change::Ended(_) | Change::QuotaSet(_) => {}
    }
}

//! All state in one value, and every decision as a function of that state, a command and the time. Nothing
//! here waits: events to write and actions to take are collected in an [`Outbox`], in order, for the shell
//! around it.

mod agents;
mod apply;
mod deletion;
mod devices;
mod entry;
mod hosts;
mod references;
mod tenants;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, agent_command, rank_command};
use indexmap::IndexMap;

use self::deletion::Graves;
pub use self::deletion::{DeleteError, Holder, PinError, Refusal};
use self::entry::{Entry, Waiting};
use self::hosts::Hosts;
pub use self::hosts::NotAdmitted;
use self::references::References;
use self::tenants::Quotas;
use crate::clock::Now;
use crate::cluster::{Cluster, Liveness, Placement};
use crate::job::{self, Change, Event, GarbageSet, JobStatus, StateError, Submitted};
use crate::queue::Policy;
use crate::schedule::{
    Attempt, Counter, Deadlines, Hello, Input, Level, ProtocolError, Report, ShardSaved, StepTaken, StepUsage,
};
use crate::secret::SecretIssuer;

/// Pending output: `events` to append, and `actions` to take once they are durable.
#[derive(Debug, Default)]
pub struct Outbox {
    pub events: Vec<Event>,
    pub actions: Vec<Action>,
}

#[expect(clippy::large_enum_variant, reason = "made once, moved once, dropped")]
#[derive(Debug, Clone)]
pub enum Action {
    Agent {
        agent: String,
        command: agent_command::Command,
    },
    Rank {
        session: String,
        command: rank_command::Command,
    },
    WriteSteps {
        job: String,
        phase: String,
        key: String,
        body: String,
    },
    /// Deletes objects that the durable events have made garbage.
    CollectGarbage(GarbageSet),
    /// Deletes the objects of a deleted job, and reports when they are gone.
    Erase {
        job: String,
        garbage: GarbageSet,
    },
    Publish {
        job: String,
        event: Arc<v1::JobEvent>,
    },
    Transition {
        from: &'static str,
        to: &'static str,
        reason: String,
    },
    Count(Counter),
    /// An optimizer step, reported at `at` (milliseconds since the Unix epoch).
    Step {
        job: String,
        at: u64,
        step: StepTaken,
    },
    Usage(StepUsage),
    Shard(ShardSaved),
}

/// A new leader repeats the garbage collection of jobs that ended within this many milliseconds.
const COLLECT_AGAIN: u64 = 3_600_000;

/// All jobs, their running attempts, and the cluster.
#[derive(Debug)]
pub struct Core {
    /// By id, in order of submission.
    jobs: IndexMap<String, Entry>,
    /// Tenants and request ids to job ids.
    requests: BTreeMap<(String, String), String>,
    /// Jobs that were deleted.
    graves: Graves,
    /// When to check next for jobs to delete; immediately if none.
    next_expiry: Option<Duration>,
    /// Objects that jobs refer to outside their own prefixes.
    references: References,
    /// Sessions to job ids.
    sessions: BTreeMap<String, String>,
    cluster: Cluster,
    hosts: Hosts,
    /// Term in which this process leads; part of the names of the processes and leases that it creates.
    term: u64,
    deadlines: Deadlines,
    policy: Policy,
    quotas: Quotas,
    /// Derives the secrets of the processes that this leader starts.
    issuer: SecretIssuer,
    outbox: Outbox,
    /// The store's current problem, if any.
    trouble: Option<String>,
    /// Devices were released or ranks lost since the last allocation.
    released: bool,
    /// An illegal event. This is a bug, and the process must not continue.
    fault: Option<StateError>,
}

fn waits_for_store(trouble: &str) -> String {
    format!("the job waits for the store: {trouble}")
}

/// A rank process that may write objects of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankWriter {
    pub job: String,
    pub attempt: u32,
    /// Fingerprint of its secret.
    pub proof: String,
}

impl Core {
    /// The state after replaying a log's events.
    pub fn replay(
        events: impl IntoIterator<Item = Event>,
        term: u64,
        liveness: Liveness,
        deadlines: Deadlines,
        issuer: SecretIssuer,
    ) -> Result<Self, StateError> {
        let mut core = Self {
            jobs: IndexMap::new(),
            requests: BTreeMap::new(),
            graves: Graves::default(),
            next_expiry: None,
            references: References::default(),
            sessions: BTreeMap::new(),
            cluster: Cluster::new(liveness),
            hosts: Hosts::default(),
            term,
            deadlines,
            policy: Policy::default(),
            quotas: Quotas::default(),
            issuer,
            outbox: Outbox::default(),
            trouble: None,
            released: false,
            fault: None,
        };
        for event in events {
            core.apply(&event)?;
        }
        // Watchers have seen these events already, or will ask for them.
        core.outbox = Outbox::default();
        Ok(core)
    }

    /// Adopts the previous leader's attempts: their ranks continue and reconnect. Ranks that do not report
    /// within the fence period are considered lost.
    pub fn recover(&mut self, now: Now) {
        let ids: Vec<String> = self.jobs.keys().cloned().collect();
        for id in ids {
            let Some(entry) = self.jobs.get_mut(&id) else { continue };
            if entry.state.current_attempt().is_some() {
                let mut attempt = Attempt::adopt(&entry.state, self.term, self.deadlines, now);
                if matches!(entry.state.status, JobStatus::Cancelling { .. }) {
                    attempt.cancel(now);
                }
                entry.attempt = Some(Box::new(attempt));
                let kind = entry.state.spec.resources.device.to_string();
                for process in entry.state.ranks.values() {
                    self.sessions.insert(process.session.clone(), id.clone());
                    let placement =
                        Placement { agent: process.agent.clone(), device: process.device.clone() };
                    self.cluster.expect(&placement, &kind, &process.session, now);
                }
            }
            // The previous leader may have died during the collection.
            let ended =
                self.state(&id).filter(|state| state.ended_since(now.wall.saturating_sub(COLLECT_AGAIN)));
            if let Some(garbage) = ended.map(GarbageSet::of_ended_job) {
                self.outbox.actions.push(Action::CollectGarbage(garbage));
            }
            self.advance_job(&id, now);
        }
        self.erase_deleted();
    }

    /// Takes the pending output, or the error after which the process must not continue.
    pub fn drain(&mut self) -> Result<Outbox, StateError> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(std::mem::take(&mut self.outbox)),
        }
    }

    // ---- users ----

    pub fn submit(&mut self, id: &str, submitted: Submitted, now: Now) {
        let resources = submitted.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        let kind = resources.map_or_else(String::new, |found| found.device.clone());
        self.commit(id, Change::Submitted(Box::new(submitted)), "submitted", now);
        // A job that cannot start immediately gets its wait reason at the next tick, because an allocation
        // weighs the whole queue.
        if self.cluster.supplies(&kind).values().any(|supply| supply.free > 0) {
            self.allocate(now);
        }
    }

    /// Cancels a job. False if there is no such job. A job that has ended is left as it is.
    pub fn cancel(&mut self, id: &str, now: Now) -> bool {
        let Some(entry) = self.jobs.get_mut(id) else { return false };
        if matches!(entry.state.status, JobStatus::Queued | JobStatus::Running { .. } | JobStatus::Recovering)
        {
            if let Some(attempt) = &mut entry.attempt {
                attempt.cancel(now);
            }
            self.commit(id, Change::CancelRequested, "asked by a user", now);
            self.advance_job(id, now);
        }
        true
    }

    // ---- ranks ----

    pub fn rank_hello(&mut self, hello: Hello, now: Now) -> Result<(), ProtocolError> {
        self.try_deliver(&hello.session.clone(), Input::Hello(hello), now)
    }

    /// Handles a rank's report, or the error that it is malformed. `flaw` is the problem, if any, that
    /// verification against the store found.
    pub fn rank_report(
        &mut self,
        session: &str,
        report: Result<Report, ProtocolError>,
        flaw: Option<String>,
        now: Now,
    ) -> Result<(), ProtocolError> {
        let result = report.and_then(|report| {
            let input = Input::Report { session: session.to_owned(), report, flaw };
            self.try_deliver(session, input, now)
        });
        if let Err(ProtocolError::FalseReport(why)) = &result {
            let (session_of, why) = (session.to_owned(), why.clone());
            self.deliver(session, Input::FalseReport { session: session_of, why }, now);
        }
        self.allocate_released(now);
        result
    }

    pub fn rank_gone(&mut self, session: &str, now: Now) {
        self.deliver(session, Input::StreamEnded { session: session.to_owned() }, now);
    }

    // ---- store and clock ----

    pub fn steps_written(&mut self, job: &str, phase: &str, result: Result<v1::Object, String>, now: Now) {
        let input = Input::StepsWritten { phase: phase.to_owned(), result };
        let decided = self.with_attempt(job, |attempt, state| attempt.handle(state, input, now));
        if let Some(Ok(decision)) = decided {
            self.apply_decision(job, decision, now);
        }
        self.advance_job(job, now);
    }

    /// Sets the store's current problem, if any; called before each tick. While there is one, no rank is
    /// considered hung. Watchers are notified when it starts and when it ends.
    pub fn set_store_trouble(&mut self, trouble: Option<String>, now: Now) {
        let notice = match (&self.trouble, &trouble) {
            (None, Some(trouble)) => Some((Level::Warning, waits_for_store(trouble))),
            (Some(_), None) => {
                Some((Level::Info, "the store is available again; the job continues".to_owned()))
            }
            _ => None,
        };
        // Also logged if no job is affected.
        match (&notice, &trouble) {
            (Some(_), Some(trouble)) => tracing::warn!(trouble, "the store is unavailable"),
            (Some(_), None) => tracing::info!("the store is available again"),
            (None, _) => {}
        }
        self.trouble = trouble;
        if notice.is_none() && self.trouble.is_none() {
            return;
        }
        for id in self.running() {
            if self.trouble.is_some() {
                self.with_attempt(&id, |attempt, _| attempt.reset_deadlines(now));
            }
            if let Some((level, text)) = &notice {
                self.notify_watchers(&id, *level, text.clone(), now);
            }
        }
    }

    /// Restarts the timeouts of disconnected agents; called before each tick at which this leader cannot
    /// admit them, because it could not renew its leadership.
    pub fn restart_reconnect_timeouts(&mut self, now: Now) {
        self.cluster.restart_reconnect_timeouts(now);
    }

    /// The notice of a current store outage, as level and text, for watchers that join while the job runs.
    pub fn current_notice(&self, id: &str) -> Option<(&'static str, String)> {
        self.jobs.get(id)?.attempt.as_ref()?;
        Some(("warning", waits_for_store(self.trouble.as_ref()?)))
    }

    pub fn tick(&mut self, now: Now) {
        for (agent, sessions) in self.cluster.expire(now) {
            self.hosts.remove(&agent);
            if sessions.is_empty() {
                tracing::info!(agent, "agent disconnected");
            } else {
                tracing::warn!(agent, ranks = sessions.len(), "agent timed out; its ranks are lost");
            }
            for session in sessions {
                self.deliver(&session.clone(), Input::AgentLost { session }, now);
            }
        }
        for id in self.running() {
            self.end_overdue(&id, now);
            self.advance_job(&id, now);
            self.publish_progress(&id, now);
        }
        self.delete_expired(now);
        self.allocate(now);
    }

    /// The jobs that have an attempt or are between two. Other jobs change only by events.
    fn running(&self) -> Vec<String> {
        let is_running =
            |entry: &Entry| entry.attempt.is_some() || entry.state.status == JobStatus::Recovering;
        self.jobs.iter().filter(|(_, entry)| is_running(entry)).map(|(id, _)| id.clone()).collect()
    }

    /// Ends a job that has exceeded its timeout.
    fn end_overdue(&mut self, id: &str, now: Now) {
        let Some(Entry { state, attempt, .. }) = self.jobs.get_mut(id) else { return };
        let is_over = state.times_out_at().is_some_and(|end| now.wall >= end);
        if !is_over {
            return;
        }
        match (&state.status, attempt) {
            (JobStatus::Running { .. }, Some(attempt)) => attempt.time_out(job::timed_out(state), now),
            // A job with every phase committed has succeeded.
            (JobStatus::Recovering, _) if state.phase().is_some() => {
                let change = job::end_of_timeout(state);
                self.commit(id, change, "its timeout is over", now);
            }
            _ => {}
        }
    }
}

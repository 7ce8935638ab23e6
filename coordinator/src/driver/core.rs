//! All state in one value, and every decision as a function of it, a command and the time. Nothing here waits: what is
//! to be written and done is collected in an [`Outbox`], in order, for the shell around it.

mod devices;
mod hosts;
mod inside;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, agent_command, rank_command, rank_message};

use self::hosts::Hosts;
use crate::clock::Now;
use crate::cluster::{Cluster, Liveness, NameTaken, Place};
use crate::job::{Change, Event, JobState, Life, StateError, Submitted, Sweep, view};
use crate::schedule::{Counter, Deadlines, Input, Level, Refusal, Run};
use crate::secret::Mint;

/// What is to be done: `events` first, and `actions` once they are durable.
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
    /// Objects that the durable events have made superfluous.
    Sweep(Sweep),
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
}

/// A new leader sweeps jobs once more that ended so many milliseconds ago or later.
const SWEPT_AGAIN: u64 = 3_600_000;

/// All jobs, their running attempts, and the machines.
#[derive(Debug)]
pub struct Core {
    jobs: BTreeMap<String, Entry>,
    /// Job ids in order of submission.
    order: Vec<String>,
    /// Request ids to job ids.
    requests: BTreeMap<String, String>,
    /// Sessions to job ids.
    sessions: BTreeMap<String, String>,
    cluster: Cluster,
    hosts: Hosts,
    /// In which this process leads: names the processes and leases that it gives.
    term: u64,
    deadlines: Deadlines,
    /// Of the secrets of the processes that it starts.
    mint: Mint,
    outbox: Outbox,
    /// What is wrong with the store, where something is.
    trouble: Option<String>,
    /// An event that the state refused: the process must not go on.
    fault: Option<StateError>,
}

fn waits_for_store(trouble: &str) -> String {
    format!("the job waits for the store: {trouble}")
}

#[derive(Debug)]
struct Entry {
    state: JobState,
    run: Option<Run>,
    /// Durable events as watchers see them.
    history: Vec<Arc<v1::JobEvent>>,
    /// Of the running attempt, as watchers were last told.
    progress: Option<v1::PhaseProgress>,
    waiting: Option<Waiting>,
}

impl Entry {
    /// None once the job is asked to stop or has ended, also before devices are given out again.
    fn shown_wait(&self) -> Option<v1::JobWait> {
        let wants_devices = !self.state.is_ended() && !matches!(self.state.life, Life::Cancelling { .. });
        self.waiting.as_ref().filter(|_| wants_devices).map(|waiting| waiting.shown.clone())
    }
}

/// A job that lacks devices.
#[derive(Debug, Clone)]
struct Waiting {
    since: Duration,
    /// Since when the connected workers have not as many as it needs.
    too_large_since: Option<Duration>,
    /// As its users see it.
    shown: v1::JobWait,
    /// As its watchers were last told.
    told: Option<v1::JobWait>,
}

/// A rank process that may write objects of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    pub job: String,
    pub attempt: u32,
    /// The fingerprint of its secret.
    pub proof: String,
}

impl Core {
    /// The state that a log's events add up to.
    pub fn replay(
        events: impl IntoIterator<Item = Event>,
        term: u64,
        liveness: Liveness,
        deadlines: Deadlines,
        mint: Mint,
    ) -> Result<Self, StateError> {
        let mut core = Self {
            jobs: BTreeMap::new(),
            order: Vec::new(),
            requests: BTreeMap::new(),
            sessions: BTreeMap::new(),
            cluster: Cluster::new(liveness),
            hosts: Hosts::default(),
            term,
            deadlines,
            mint,
            outbox: Outbox::default(),
            trouble: None,
            fault: None,
        };
        for event in events {
            core.apply(&event)?;
        }
        // Who watched has seen these already, or asks for them.
        core.outbox = Outbox::default();
        Ok(core)
    }

    /// Takes the attempts of the coordinator before this one as they are: their ranks go on, and say hello. Who is not
    /// heard of for the fence period is given up.
    pub fn recover(&mut self, now: Now) {
        for id in self.order.clone() {
            let Some(entry) = self.jobs.get_mut(&id) else { continue };
            if entry.state.current_attempt().is_some() {
                let mut run = Run::adopt(&entry.state, self.term, self.deadlines, now);
                if matches!(entry.state.life, Life::Cancelling { .. }) {
                    run.cancel(now);
                }
                entry.run = Some(run);
                let kind = entry.state.spec.resources.device.to_string();
                for seat in entry.state.seats.values() {
                    self.sessions.insert(seat.session.clone(), id.clone());
                    let place = Place { agent: seat.agent.clone(), device: seat.device.clone() };
                    self.cluster.expect(&place, &kind, &seat.session, now);
                }
            }
            // The coordinator before this one may have died over it.
            let ended =
                self.state(&id).filter(|state| state.ended_since(now.wall.saturating_sub(SWEPT_AGAIN)));
            if let Some(sweep) = ended.map(Sweep::of_ended) {
                self.outbox.actions.push(Action::Sweep(sweep));
            }
            self.settle(&id, now);
        }
    }

    /// Takes what has piled up, or the fault that forbids to go on.
    pub fn drain(&mut self) -> Result<Outbox, StateError> {
        match self.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(std::mem::take(&mut self.outbox)),
        }
    }

    // ---- users ----

    /// The job that a request made, with the hash of its specification.
    pub fn find_request(&self, request_id: &str) -> Option<(&JobState, &str)> {
        let state = self.state(self.requests.get(request_id)?)?;
        Some((state, &state.submitted.spec_hash))
    }

    pub fn state(&self, id: &str) -> Option<&JobState> {
        self.jobs.get(id).map(|entry| &entry.state)
    }

    /// The job as its user sees it, with how far its phase is and what it waits for.
    pub fn shown(&self, id: &str) -> Option<v1::Job> {
        let entry = self.jobs.get(id)?;
        let job = view::job(&entry.state);
        let progress = entry.progress.clone().filter(|progress| progress.phase == job.phase);
        Some(v1::Job { progress, waiting: entry.shown_wait(), ..job })
    }

    /// The job in a list: as its user sees it, without what a page has no room for.
    pub fn listed(&self, id: &str) -> Option<v1::Job> {
        let entry = self.jobs.get(id)?;
        Some(v1::Job { waiting: entry.shown_wait(), ..view::listed(&entry.state) })
    }

    /// Job ids, oldest first.
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// The events after a revision.
    pub fn history(&self, id: &str, after_revision: u64) -> Vec<Arc<v1::JobEvent>> {
        let events = self.jobs.get(id).map(|entry| entry.history.as_slice()).unwrap_or_default();
        events.iter().filter(|event| event.revision > after_revision).cloned().collect()
    }

    pub fn submit(&mut self, id: &str, submitted: Submitted, now: Now) {
        self.commit(id, Change::Submitted(Box::new(submitted)), "submitted", now);
        self.allocate(now);
    }

    /// False where there is no such job. A job that has ended stays as it is.
    pub fn cancel(&mut self, id: &str, now: Now) -> bool {
        let Some(entry) = self.jobs.get_mut(id) else { return false };
        if matches!(entry.state.life, Life::Queued | Life::Running { .. } | Life::Recovering) {
            if let Some(run) = &mut entry.run {
                run.cancel(now);
            }
            self.commit(id, Change::CancelRequested, "asked by a user", now);
            self.settle(id, now);
        }
        true
    }

    // ---- agents ----

    /// Whether an agent may register: not under the name of another that is there.
    pub fn admits(&self, hello: &v1::AgentRegister, now: Now) -> Result<(), NameTaken> {
        self.cluster.admits(hello, now)
    }

    pub fn agent_registered(&mut self, hello: &v1::AgentRegister, connection: u64, now: Now) {
        self.hosts.note(hello);
        let registered = self.cluster.register(hello, connection, now);
        for session in registered.strays {
            tracing::info!(agent = hello.agent_id, session, "a rank of an attempt that is over is stopped");
            self.stop(&hello.agent_id, session);
        }
        for session in registered.kept {
            self.feed(&session.clone(), Input::AgentBack { session }, now);
        }
        for session in registered.gone {
            self.feed(&session.clone(), Input::AgentLost { session }, now);
        }
        self.allocate(now);
    }

    /// False where the stream was replaced by a newer one.
    pub fn agent_heard(&mut self, agent: &str, connection: u64, now: Now) -> bool {
        self.cluster.heard(agent, connection, now)
    }

    pub fn agent_leaving(&mut self, agent: &str, connection: u64, now: Now) {
        tracing::info!(agent, "agent is leaving");
        for session in self.cluster.leaving(agent, connection, now) {
            self.feed(&session.clone(), Input::AgentLeaving { session }, now);
        }
    }

    pub fn agent_disconnected(&mut self, agent: &str, connection: u64, now: Now) {
        self.cluster.disconnected(agent, connection, now);
    }

    /// An agent speaks for the processes that it was told to start, and for no others.
    pub fn rank_exited(&mut self, agent: &str, exit: v1::RankExited, now: Now) {
        self.cluster.exited(agent, &exit.session_id);
        let job = self.sessions.get(&exit.session_id).cloned();
        let is_own =
            |run: &mut Run, _: &JobState| run.agent_of(&exit.session_id).is_none_or(|own| own == agent);
        if !job.and_then(|job| self.with_run(&job, is_own)).unwrap_or(true) {
            tracing::warn!(agent, session = exit.session_id, "the end of another agent's rank is left aside");
            return;
        }
        self.feed(&exit.session_id.clone(), Input::Exited(exit), now);
        self.allocate(now);
    }

    // ---- ranks ----

    pub fn rank_hello(&mut self, hello: v1::RankHello, now: Now) -> Result<(), Refusal> {
        let session = hello.session_id.clone();
        self.try_feed(&session.clone(), Input::Hello { session, hello }, now)
    }

    /// `flaw` is what the store says against it.
    pub fn rank_said(
        &mut self,
        session: &str,
        message: rank_message::Message,
        flaw: Option<String>,
        now: Now,
    ) -> Result<(), Refusal> {
        let input = Input::Said { session: session.to_owned(), message, flaw };
        let result = self.try_feed(session, input, now);
        if let Err(Refusal::Untrue(why)) = &result {
            let (session_of, why) = (session.to_owned(), why.clone());
            self.feed(session, Input::Misreported { session: session_of, why }, now);
        }
        self.allocate(now);
        result
    }

    pub fn rank_gone(&mut self, session: &str, now: Now) {
        self.feed(session, Input::StreamEnded { session: session.to_owned() }, now);
    }

    // ---- the world's answers and the clock ----

    pub fn steps_written(&mut self, job: &str, phase: &str, result: Result<v1::Object, String>, now: Now) {
        let input = Input::StepsWritten { phase: phase.to_owned(), result };
        let decided = self.with_run(job, |run, state| run.handle(state, input, now));
        if let Some(Ok(decision)) = decided {
            self.take(job, decision, now);
        }
        self.settle(job, now);
    }

    /// What is wrong with the store now, if anything. To be told before each tick: meanwhile no rank is taken for hung, and
    /// watchers hear of it at its beginning and its end.
    pub fn store_is(&mut self, trouble: Option<String>, now: Now) {
        let news = match (&self.trouble, &trouble) {
            (None, Some(trouble)) => Some((Level::Warning, waits_for_store(trouble))),
            (Some(_), None) => {
                Some((Level::Info, "the store takes what is asked again; the job goes on".to_owned()))
            }
            _ => None,
        };
        // Whether or not a job is there to be held up by it.
        match (&news, &trouble) {
            (Some(_), Some(trouble)) => tracing::warn!(trouble, "the store is in trouble"),
            (Some(_), None) => tracing::info!("the store is well again"),
            (None, _) => {}
        }
        self.trouble = trouble;
        for id in self.order.clone() {
            let away = self.trouble.is_some();
            let runs = self
                .with_run(&id, |run, _| {
                    if away {
                        run.excuse(now);
                    }
                })
                .is_some();
            if runs && let Some((level, text)) = &news {
                self.tell_watchers(&id, *level, text.clone(), now);
            }
        }
    }

    /// What holds a running job up now and was told to those who watched when it began: the notice's level and text.
    pub fn held_up(&self, id: &str) -> Option<(&'static str, String)> {
        self.jobs.get(id)?.run.as_ref()?;
        Some(("warning", waits_for_store(self.trouble.as_ref()?)))
    }

    pub fn tick(&mut self, now: Now) {
        for (agent, sessions) in self.cluster.expire(now) {
            self.hosts.forget(&agent);
            if sessions.is_empty() {
                tracing::info!(agent, "agent is gone");
            } else {
                tracing::warn!(
                    agent,
                    ranks = sessions.len(),
                    "an agent was not heard for too long: given up"
                );
            }
            for session in sessions {
                self.feed(&session.clone(), Input::AgentLost { session }, now);
            }
        }
        for id in self.order.clone() {
            self.settle(&id, now);
            self.publish_progress(&id, now);
        }
        self.allocate(now);
    }

    /// Jobs in each state, for the metric.
    pub fn census(&self) -> BTreeMap<&'static str, usize> {
        let mut census = BTreeMap::new();
        for entry in self.jobs.values() {
            *census.entry(entry.state.life.name()).or_default() += 1;
        }
        census
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The rank processes that may write, by session.
    pub fn authors(&self) -> BTreeMap<String, Author> {
        let running = self.jobs.iter().filter(|(_, entry)| entry.state.current_attempt().is_some());
        running
            .flat_map(|(job, entry)| entry.state.seats.values().map(move |seat| (job, seat)))
            .map(|(job, seat)| {
                let author = Author { job: job.clone(), attempt: seat.attempt, proof: seat.proof.clone() };
                (seat.session.clone(), author)
            })
            .collect()
    }

    /// The attempts whose ranks may write.
    pub fn attempts(&self) -> BTreeMap<String, u32> {
        let current = |(id, entry): (&String, &Entry)| Some((id.clone(), entry.state.current_attempt()?));
        self.jobs.iter().filter_map(current).collect()
    }
}

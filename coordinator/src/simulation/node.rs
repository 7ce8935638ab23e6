//! One coordinator process: the production core and journal, with the simulator in place of sockets and
//! clocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foil_common::storage::Store;
use foil_common::storage::log::{Heartbeat, LogError, LogState};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::memory::InMemory;
use tokio::task::JoinHandle;

use super::PlantedBug;
use super::store::{Network, SimStore};
use crate::clock::Now;
use crate::cluster::Liveness;
use crate::driver::core::{Action, Core};
use crate::job::{Compaction, Event};
use crate::journal::{Journal, JournalError, SnapshotPolicy};
use crate::leadership::{LeaderMonitor, Observation, Verdict};
use crate::lease::LeadershipTimeouts;
use crate::queue::Policy;
use crate::schedule::Deadlines;
use crate::secret::SecretIssuer;

/// Frequent snapshots, so that records are emptied while a leader is paused.
pub(super) const SNAPSHOT_POLICY: SnapshotPolicy<Event> =
    SnapshotPolicy { every: 6, select: Compaction::begin };
pub(super) const FENCE: Duration = Duration::from_secs(12);
const SLACK: Duration = Duration::from_secs(1);

/// The same for all coordinators: a later coordinator needs only the fingerprints in the log.
pub(super) fn issuer() -> SecretIssuer {
    SecretIssuer::new([1; 32])
}

/// Outcome of an election.
type ElectionResult = Result<(Journal<Event>, Vec<Event>), JournalError>;

/// The role of the process.
pub(super) enum State {
    Dead,
    Standby(Box<Standby>),
    Campaigning { started: Duration, election: JoinHandle<ElectionResult> },
    Leading(Box<Leading>),
}

pub(super) struct Standby {
    monitor: LeaderMonitor,
    read: Option<LogState>,
    poll: Option<JoinHandle<(LogState, Result<Observation, LogError>)>>,
}

/// Output that waits for the log.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// Events, each with the job's revision after it.
    pub(super) events: Vec<(u64, Event)>,
    pub(super) actions: Vec<Action>,
    /// The job whose confirmation a client awaits.
    pub(super) submitted: Option<&'static str>,
    /// Start of a late renewal that the log must confirm.
    renewal: Option<Duration>,
}

type Durable = BoxFuture<'static, Result<u64, JournalError>>;

pub(super) struct Leading {
    pub(super) core: Core,
    journal: Journal<Event>,
    pub(super) term: u64,
    pub(super) lease_until: Duration,
    heartbeat: Option<(Duration, JoinHandle<bool>)>,
    counter: u64,
    /// Output that waits until its events are durable.
    pending: VecDeque<(Option<Durable>, Release)>,
    /// Open streams, by agent and by session.
    pub(super) agents: BTreeMap<String, u64>,
    pub(super) ranks: BTreeMap<String, u64>,
    /// Agents that have registered with this leader.
    pub(super) heard: BTreeSet<String>,
}

pub(super) struct Node {
    pub(super) process: u64,
    pub(super) state: State,
    pub(super) paused_until: Duration,
    store: Store,
    liveness: Liveness,
}

impl Node {
    pub(super) fn start(
        process: u64,
        inner: &Arc<InMemory>,
        network: &Network,
        bug: Option<PlantedBug>,
    ) -> Self {
        let store = SimStore { inner: Arc::clone(inner), network: network.clone(), process, bug };
        let store = Store::over(Arc::new(store), "simulated", |_| Box::pin(tokio::task::yield_now()));
        let heartbeat_timeout =
            if bug == Some(PlantedBug::NoFenceWait) { Duration::ZERO } else { FENCE + SLACK };
        let two = Duration::from_secs(2);
        let liveness =
            Liveness { heartbeat_timeout, reconnect_timeout: two, stop_timeout: two, ..Liveness::default() };
        let mut node = Self { process, state: State::Dead, paused_until: Duration::ZERO, store, liveness };
        node.stand_by();
        node
    }

    pub(super) fn stand_by(&mut self) {
        let monitor = LeaderMonitor::new(LeadershipTimeouts::default().lease);
        let standby = Standby { monitor, read: Some(LogState::default()), poll: None };
        self.state = State::Standby(Box::new(standby));
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leading> {
        match &mut self.state {
            State::Leading(leading) => Some(leading),
            State::Dead | State::Standby(_) | State::Campaigning { .. } => None,
        }
    }

    /// Starts a standby's check for a leader, one at a time.
    pub(super) fn start_poll(&mut self) {
        let State::Standby(standby) = &mut self.state else { return };
        let Some(mut read) = standby.read.take() else { return };
        let store = self.store.clone();
        standby.poll = Some(tokio::spawn(async move {
            let observation = match read.catch_up(&store).await {
                Ok(()) => Heartbeat::latest(&store).await,
                Err(error) => Err(error),
            };
            let observation =
                observation.map(|heartbeat| Observation { term: read.term, next: read.next, heartbeat });
            (read, observation)
        }));
    }

    /// Writes a heartbeat, one at a time.
    pub(super) fn heartbeat(&mut self, now: Duration) {
        let store = self.store.clone();
        let State::Leading(leading) = &mut self.state else { return };
        if leading.heartbeat.is_some() {
            return;
        }
        leading.counter += 1;
        let (term, counter) = (leading.term, leading.counter);
        let write = async move {
            let heartbeat = Heartbeat { counter, ..Heartbeat::default() };
            heartbeat.write(&store, term).await.is_ok()
        };
        leading.heartbeat = Some((now, tokio::spawn(write)));
    }

    /// Polls pending work. Returns output that may leave the process; an empty error if it was deposed.
    pub(super) fn poll(&mut self, now: Now) -> Result<Vec<Release>, String> {
        match &mut self.state {
            State::Dead => Ok(Vec::new()),
            State::Standby(standby) => {
                if let Some(Ok((read, observation))) = standby.poll.as_mut().and_then(FutureExt::now_or_never)
                {
                    standby.poll = None;
                    self.observed(read, observation, now.mono)?;
                }
                Ok(Vec::new())
            }
            State::Campaigning { started, election } => {
                let started = *started;
                match election.now_or_never() {
                    None => Ok(Vec::new()),
                    Some(Ok(Ok((journal, events)))) => self.lead(journal, events, started, now),
                    Some(Ok(Err(error))) if error.is_deposed() => {
                        self.stand_by();
                        Ok(Vec::new())
                    }
                    Some(other) => Err(format!("an election failed: {:?}", other.map(Result::err))),
                }
            }
            State::Leading(leading) => leading.poll(now.mono),
        }
    }

    fn observed(
        &mut self,
        read: LogState,
        observation: Result<Observation, LogError>,
        now: Duration,
    ) -> Result<(), String> {
        let State::Standby(standby) = &mut self.state else { return Ok(()) };
        let stands = match observation {
            Ok(observation) => matches!(standby.monitor.observe(observation, now), Verdict::Campaign(_)),
            Err(LogError::Store(error)) if error.is_transient() => {
                standby.monitor.reset();
                false
            }
            Err(error) => return Err(format!("a standby cannot read the log: {error}")),
        };
        if stands {
            let election =
                tokio::spawn(Journal::campaign(self.store.clone(), read, "simulated", SNAPSHOT_POLICY));
            self.state = State::Campaigning { started: now, election };
        } else {
            standby.read = Some(read);
        }
        Ok(())
    }

    fn lead(
        &mut self,
        journal: Journal<Event>,
        events: Vec<Event>,
        started: Duration,
        now: Now,
    ) -> Result<Vec<Release>, String> {
        let term = journal.term();
        let second = Duration::from_secs(1);
        let deadlines = Deadlines {
            start: 20 * second,
            reaping: 2 * second,
            settling: second / 2,
            exit: second,
            obsolete: 2 * second,
            checkpoint: 2 * second,
        };
        let mut core = Core::replay(events, term, self.liveness, deadlines, issuer())
            .map_err(|error| error.to_string())?;
        core.set_policy(Policy { preempt_exempt: second, ..Policy::default() });
        core.recover(now);
        let mut leading = Leading {
            core,
            journal,
            term,
            lease_until: started + LeadershipTimeouts::default().lease,
            heartbeat: None,
            counter: 0,
            pending: VecDeque::new(),
            agents: BTreeMap::new(),
            ranks: BTreeMap::new(),
            heard: BTreeSet::new(),
        };
        leading.flush(None);
        self.state = State::Leading(Box::new(leading));
        self.heartbeat(now.mono);
        Ok(Vec::new())
    }
}

impl Leading {
    /// Appends decided events, and queues the output that depends on them.
    pub(super) fn flush(&mut self, submitted: Option<&'static str>) {
        let outbox = self.core.drain().expect("no impossible event");
        // The last event of a job has the job's revision, and those before it the ones below.
        let mut revisions: BTreeMap<&str, u64> = BTreeMap::new();
        let numbered = outbox.events.iter().rev().map(|event| {
            let last = || self.core.state(&event.job).map_or(0, |state| state.revision) + 1;
            let revision = revisions.entry(&event.job).or_insert_with(last);
            *revision -= 1;
            (*revision, event.clone())
        });
        let mut events: Vec<_> = numbered.collect();
        events.reverse();
        if events.is_empty() && outbox.actions.is_empty() && submitted.is_none() {
            return;
        }
        let durable = (!events.is_empty()).then(|| self.journal.append(&outbox.events).boxed());
        self.pending
            .push_back((durable, Release { events, actions: outbox.actions, submitted, renewal: None }));
    }

    fn poll(&mut self, now: Duration) -> Result<Vec<Release>, String> {
        self.renewed(now);
        let mut released = Vec::new();
        while let Some((durable, _)) = self.pending.front_mut() {
            match durable.as_mut().map(FutureExt::now_or_never) {
                Some(None) => break,
                Some(Some(Err(error))) if error.is_deposed() => return Err(String::new()),
                Some(Some(Err(error))) => return Err(error.to_string()),
                None | Some(Some(Ok(_))) => {
                    let Some((_, release)) = self.pending.pop_front() else { break };
                    if let Some(renewed) = release.renewal {
                        self.lease_until = renewed + LeadershipTimeouts::default().lease;
                    }
                    released.push(release);
                }
            }
        }
        Ok(released)
    }

    /// True if every decided event is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Extends the lease after a renewal in time; a late renewal must be confirmed by the log.
    fn renewed(&mut self, now: Duration) {
        let Some((started, write)) = &mut self.heartbeat else { return };
        let Some(written) = write.now_or_never() else { return };
        let started = *started;
        self.heartbeat = None;
        if written.is_ok_and(|written| written) {
            if now < self.lease_until {
                self.lease_until = started + LeadershipTimeouts::default().lease;
            } else {
                // An empty append: a deposed leader fails here.
                let confirmed = self.journal.append(&[]).boxed();
                let release = Release { renewal: Some(started), ..Release::default() };
                self.pending.push_back((Some(confirmed), release));
            }
        }
    }
}

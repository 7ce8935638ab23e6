//! One coordinator process: the production core and journal, with the world in the place of sockets and clocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foil_common::storage::Store;
use foil_common::storage::log::{Beat, LogError, LogState};
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::memory::InMemory;
use tokio::task::JoinHandle;

use super::Bug;
use super::disk::{Disk, Network};
use crate::clock::Now;
use crate::cluster::Liveness;
use crate::driver::core::{Action, Core};
use crate::job::{Event, fold};
use crate::journal::{Journal, JournalError, Keeping};
use crate::leadership::{Sight, Verdict, Vigil};
use crate::lease::Times;
use crate::schedule::Deadlines;
use crate::secret::Mint;

/// Few, so that names are emptied while a leader sleeps.
pub(super) const KEEPING: Keeping<Event> = Keeping { every: 6, fold };
pub(super) const FENCE: Duration = Duration::from_secs(12);
const SLACK: Duration = Duration::from_secs(1);

/// The same for all coordinators: what a later one needs of a secret is in the log.
pub(super) fn mint() -> Mint {
    Mint::new([1; 32])
}

/// What an election gives.
type Vote = Result<(Journal<Event>, Vec<Event>), JournalError>;

/// What the process is at.
pub(super) enum State {
    Dead,
    Standing(Box<Standing>),
    Electing { started: Duration, vote: JoinHandle<Vote> },
    Leading(Box<Leading>),
}

pub(super) struct Standing {
    vigil: Vigil,
    read: Option<LogState>,
    look: Option<JoinHandle<(LogState, Result<Sight, LogError>)>>,
}

/// Something of the world's that waits for the log.
#[derive(Debug, Default)]
pub(super) struct Release {
    /// With the job's revision after each.
    pub(super) events: Vec<(u64, Event)>,
    pub(super) actions: Vec<Action>,
    /// A client waits to hear that its job is there.
    pub(super) submitted: bool,
    /// A renewal of then that needs the log's word.
    renewal: Option<Duration>,
}

type Durable = BoxFuture<'static, Result<u64, JournalError>>;

pub(super) struct Leading {
    pub(super) core: Core,
    journal: Journal<Event>,
    pub(super) term: u64,
    pub(super) lease_until: Duration,
    beat: Option<(Duration, JoinHandle<bool>)>,
    counter: u64,
    /// What waits for the log to be durable.
    pending: VecDeque<(Option<Durable>, Release)>,
    /// Open streams.
    pub(super) agents: BTreeMap<String, u64>,
    pub(super) ranks: BTreeMap<String, u64>,
    /// Agents that have spoken to this leader.
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
    pub(super) fn start(process: u64, inner: &Arc<InMemory>, network: &Network, bug: Option<Bug>) -> Self {
        let disk = Disk { inner: Arc::clone(inner), network: network.clone(), process, bug };
        let store = Store::over(Arc::new(disk), "simulated", |_| Box::pin(tokio::task::yield_now()));
        let silence = if bug == Some(Bug::NoFenceWait) { Duration::ZERO } else { FENCE + SLACK };
        let two = Duration::from_secs(2);
        let liveness = Liveness { silence, reconnect: two, reaping: two, ..Liveness::default() };
        let mut node = Self { process, state: State::Dead, paused_until: Duration::ZERO, store, liveness };
        node.stand_by();
        node
    }

    pub(super) fn stand_by(&mut self) {
        let vigil = Vigil::new(Times::default().lease);
        let standing = Standing { vigil, read: Some(LogState::default()), look: None };
        self.state = State::Standing(Box::new(standing));
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leading> {
        match &mut self.state {
            State::Leading(leading) => Some(leading),
            State::Dead | State::Standing(_) | State::Electing { .. } => None,
        }
    }

    /// A standby looks whether there is a leader, one look at a time.
    pub(super) fn look(&mut self) {
        let State::Standing(standing) = &mut self.state else { return };
        let Some(mut read) = standing.read.take() else { return };
        let store = self.store.clone();
        standing.look = Some(tokio::spawn(async move {
            let sight = match read.catch_up(&store).await {
                Ok(()) => Beat::latest(&store).await,
                Err(error) => Err(error),
            };
            let sight = sight.map(|beat| Sight { term: read.term, next: read.next, beat });
            (read, sight)
        }));
    }

    /// Gives a sign of life, one at a time.
    pub(super) fn beat(&mut self, now: Duration) {
        let store = self.store.clone();
        let State::Leading(leading) = &mut self.state else { return };
        if leading.beat.is_some() {
            return;
        }
        leading.counter += 1;
        let (term, counter) = (leading.term, leading.counter);
        let write = async move {
            let beat = Beat { counter, ..Beat::default() };
            beat.write(&store, term).await.is_ok()
        };
        leading.beat = Some((now, tokio::spawn(write)));
    }

    /// Takes what has arrived. Gives what may leave the process; an error where it leads no more.
    pub(super) fn poll(&mut self, now: Now) -> Result<Vec<Release>, String> {
        match &mut self.state {
            State::Dead => Ok(Vec::new()),
            State::Standing(standing) => {
                if let Some(Ok((read, sight))) = standing.look.as_mut().and_then(FutureExt::now_or_never) {
                    standing.look = None;
                    self.seen(read, sight, now.mono)?;
                }
                Ok(Vec::new())
            }
            State::Electing { started, vote } => {
                let started = *started;
                match vote.now_or_never() {
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

    fn seen(&mut self, read: LogState, sight: Result<Sight, LogError>, now: Duration) -> Result<(), String> {
        let State::Standing(standing) = &mut self.state else { return Ok(()) };
        let stands = match sight {
            Ok(sight) => matches!(standing.vigil.looked(sight, now), Verdict::Stand(_)),
            Err(LogError::Store(error)) if error.is_transient() => {
                standing.vigil.blind();
                false
            }
            Err(error) => return Err(format!("a standby cannot read the log: {error}")),
        };
        if stands {
            let vote = tokio::spawn(Journal::stand(self.store.clone(), read, "simulated", KEEPING));
            self.state = State::Electing { started: now, vote };
        } else {
            standing.read = Some(read);
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
        };
        let mut core = Core::replay(events, term, self.liveness, deadlines, mint())
            .map_err(|error| error.to_string())?;
        core.recover(now);
        let mut leading = Leading {
            core,
            journal,
            term,
            lease_until: started + Times::default().lease,
            beat: None,
            counter: 0,
            pending: VecDeque::new(),
            agents: BTreeMap::new(),
            ranks: BTreeMap::new(),
            heard: BTreeSet::new(),
        };
        leading.flush(false);
        self.state = State::Leading(Box::new(leading));
        self.beat(now.mono);
        Ok(Vec::new())
    }
}

impl Leading {
    /// Hands the log what was decided, and keeps what waits for it.
    pub(super) fn flush(&mut self, submitted: bool) {
        let outbox = self.core.drain().expect("no impossible event");
        let revision = |job: &str| self.core.state(job).map_or(0, |state| state.revision);
        let count = outbox.events.len() as u64;
        let numbered = outbox
            .events
            .iter()
            .zip(1..)
            .map(|(event, at)| (revision(&event.job) - count + at, event.clone()));
        let events: Vec<_> = numbered.collect();
        if events.is_empty() && outbox.actions.is_empty() && !submitted {
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
                        self.lease_until = renewed + Times::default().lease;
                    }
                    released.push(release);
                }
            }
        }
        Ok(released)
    }

    /// All that was decided is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// A renewal in time extends the lease; one that was late needs the log's word.
    fn renewed(&mut self, now: Duration) {
        let Some((started, write)) = &mut self.beat else { return };
        let Some(written) = write.now_or_never() else { return };
        let started = *started;
        self.beat = None;
        if written.is_ok_and(|written| written) {
            if now < self.lease_until {
                self.lease_until = started + Times::default().lease;
            } else {
                // Its place in the order is what counts; a deposed leader learns it here.
                let confirmed = self.journal.append(&[]).boxed();
                let release = Release { renewal: Some(started), ..Release::default() };
                self.pending.push_back((Some(confirmed), release));
            }
        }
    }
}

//! Allocation of free devices, and notices about what a job waits for.

use std::collections::BTreeMap;
use std::time::Duration;

use foil_proto::v1;

use super::{Core, Entry, Waiting};
use crate::clock::Now;
use crate::cluster::Placement;
use crate::job::{Change, RankStarted};
use crate::queue::{self, Demand, Grant, Supply};
use crate::schedule::{Attempt, Level, Process};

/// Time that a job waits before its watchers are notified, and before it is passed over if it is too large
/// for the connected workers.
const PATIENCE: Duration = Duration::from_secs(3);

/// Time that an attempt keeps its devices while it needs more than the connected workers have.
const HOLDING: Duration = Duration::from_secs(60);

impl Core {
    /// Gives free devices to waiting jobs, as [`queue::allocate`] decides.
    pub(super) fn allocate(&mut self, now: Now) {
        let (mut demands, mut supply) = (Vec::new(), BTreeMap::new());
        for id in &self.order {
            let Some(entry) = self.jobs.get_mut(id) else { continue };
            let Some(demand) = demand(id, entry) else {
                entry.waiting = None;
                continue;
            };
            let kind_supply =
                *supply.entry(demand.kind.clone()).or_insert_with(|| self.cluster.supply(&demand.kind));
            let passed_over = is_passed_over(entry, kind_supply, now);
            demands.push(Demand { passed_over, ..demand });
        }
        let grants = queue::allocate(&supply, &demands);
        self.yield_devices(&demands, &grants, now);
        for (demand, grant) in demands.into_iter().zip(grants) {
            if demand.starts && grant == Grant::Full {
                self.start_attempt(&demand.job, now);
            }
            match grant {
                Grant::Full => {
                    self.start_ranks(&demand, demand.ranks, now);
                    if demand.starts {
                        self.check_addresses(&demand.job, now);
                    }
                    if let Some(entry) = self.jobs.get_mut(&demand.job) {
                        entry.waiting = None;
                    }
                }
                Grant::Partial(ranks, wait) => {
                    self.start_ranks(&demand, ranks, now);
                    self.wait(&demand.job, wait, now);
                }
                Grant::Wait(wait) => self.wait(&demand.job, wait, now),
            }
        }
    }

    /// Makes attempts that cannot get all their ranks on the connected workers release their devices to
    /// waiting jobs.
    fn yield_devices(&mut self, demands: &[Demand], grants: &[Grant], now: Now) {
        let waits = |kind: &str, but: &str| {
            let others =
                demands.iter().zip(grants).filter(|(other, _)| other.kind == kind && other.job != but);
            others.into_iter().any(|(_, grant)| *grant != Grant::Full)
        };
        for demand in demands.iter().filter(|demand| !demand.starts) {
            let since = self.jobs.get(&demand.job).and_then(|entry| entry.waiting.as_ref()?.too_large_since);
            if since.is_some_and(|since| now.since(since) >= HOLDING) && waits(&demand.kind, &demand.job) {
                self.with_attempt(&demand.job, |attempt, _| attempt.yield_devices(now));
            }
        }
    }

    fn start_attempt(&mut self, id: &str, now: Now) {
        let Some(entry) = self.jobs.get(id) else { return };
        let attempt = entry.state.attempt + 1;
        let world = entry.state.spec.resources.ranks;
        let phase = entry.state.phase().map(|phase| phase.id.clone()).unwrap_or_default();
        self.commit(id, Change::AttemptStarted { attempt, phase, world }, "devices are free", now);
        if let Some(entry) = self.jobs.get_mut(id) {
            entry.attempt = Some(Attempt::new(&entry.state, attempt, self.term, self.deadlines, now));
        }
    }

    /// Starts processes for this many of the attempt's vacant ranks.
    fn start_ranks(&mut self, demand: &Demand, ranks: usize, now: Now) {
        let (id, kind) = (demand.job.as_str(), demand.kind.as_str());
        let vacant = self.with_attempt(id, |attempt, _| attempt.vacancies()).unwrap_or_default();
        for rank in vacant.into_iter().take(ranks) {
            let Some(placement) =
                self.cluster.find_free(kind, 1).and_then(|placements| placements.into_iter().next())
            else {
                return;
            };
            let issuer = self.issuer.clone();
            let Some((process, effect)) =
                self.with_attempt(id, |attempt, _| attempt.start_rank(rank, placement, &issuer, now))
            else {
                return;
            };
            self.cluster.assign(&process.placement, &process.session, now);
            self.sessions.insert(process.session.clone(), id.to_owned());
            self.record_start(id, rank, process, now);
            self.apply_effect(id, effect, now);
        }
    }

    /// Records a process before it is started, so that a later coordinator knows of it.
    fn record_start(&mut self, id: &str, rank: usize, process: Process, now: Now) {
        let attempt = self.state(id).map_or(0, |state| state.attempt);
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let Process { session, placement: Placement { agent, device }, proof, .. } = process;
        let started = RankStarted { attempt, rank, session, agent, device, proof };
        self.commit(id, Change::RankStarted(started), "a device is free", now);
    }

    /// Number of connected devices of a kind, including busy ones.
    pub fn devices(&self, kind: &str) -> usize {
        self.cluster.supply(kind).connected
    }

    /// Updates what the job waits for, and notifies its watchers if that has changed.
    fn wait(&mut self, id: &str, wait: v1::JobWait, now: Now) {
        let Some(waiting) = self.jobs.get_mut(id).and_then(|entry| entry.waiting.as_mut()) else { return };
        waiting.current = wait;
        // The number of free devices changes too often to be news.
        let key = |wait: &v1::JobWait| (wait.wanted, wait.connected, wait.position);
        let is_announced =
            waiting.announced.as_ref().is_some_and(|announced| key(announced) == key(&waiting.current));
        if is_announced || now.since(waiting.since) < PATIENCE {
            return;
        }
        waiting.announced = Some(waiting.current.clone());
        let text = waiting.current.reason.clone();
        self.notify_watchers(id, Level::Info, text, now);
    }
}

/// The devices that a job lacks, if any.
fn demand(id: &str, entry: &Entry) -> Option<Demand> {
    let resources = &entry.state.spec.resources;
    let starts = entry.state.wants_devices() && entry.attempt.is_none();
    let ranks = match &entry.attempt {
        Some(attempt) => attempt.vacancies().len(),
        None if starts => resources.ranks as usize,
        None => 0,
    };
    let kind = resources.device.to_string();
    (ranks > 0).then(|| Demand { job: id.to_owned(), kind, ranks, starts, passed_over: false })
}

/// True if the job has been too large for the cluster for long enough. Records since when it waits.
fn is_passed_over(entry: &mut Entry, supply: Supply, now: Now) -> bool {
    let fits = entry.state.spec.resources.ranks as usize <= supply.connected;
    let waiting = entry.waiting.get_or_insert_with(|| Waiting {
        since: now.mono,
        too_large_since: None,
        current: v1::JobWait::default(),
        announced: None,
    });
    if fits {
        waiting.too_large_since = None;
        return false;
    }
    let since = *waiting.too_large_since.get_or_insert(now.mono);
    now.since(since) >= PATIENCE
}

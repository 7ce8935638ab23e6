//! Allocation of free devices, preemption, and notices about what a job waits for.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use foil_common::spec::DeviceKind;

use super::{Core, Entry, Waiting, tenants};
use crate::clock::Now;
use crate::cluster::{Cluster, Placement, Release};
use crate::job::{Change, RankStarted, view};
use crate::queue::{self, Claim, Demand, Grant, Policy, Preemption, Queue, Running, Supply, Wait, WaitCause};
use crate::schedule::{Attempt, Process};

/// The releases of the agents that have devices of a kind, in the order of the queue's supplies. None stands
/// for agents that have not reported theirs yet.
type Releases = HashMap<DeviceKind, Vec<Option<Release>>>;

impl Core {
    /// Allocates if devices were released or ranks lost. Most rank reports do not affect the queue.
    pub(super) fn allocate_released(&mut self, now: Now) {
        if self.released {
            self.allocate(now);
        }
    }

    /// Gives free devices to waiting jobs, as [`queue::allocate`] decides.
    pub(super) fn allocate(&mut self, now: Now) {
        self.released = false;
        let (mut queue, releases) = self.queue(now);
        if queue.demands.is_empty() {
            return;
        }
        let allocation = queue::allocate(&mut queue);
        for preemption in allocation.preemptions {
            self.preempt(preemption, now);
        }
        for job in allocation.yields {
            let id = self.jobs[job].state.id.clone();
            self.with_attempt(&id, |attempt, _| attempt.yield_devices(now));
            self.advance_job(&id, now);
        }
        let mut changed = Vec::new();
        let pools = allocation.releases.into_iter().zip(allocation.grants);
        for (demand, (release, grant)) in queue.demands.iter().zip(pools) {
            let (ranks, wait) = match grant {
                Grant::Full => (demand.ranks, None),
                Grant::Partial(ranks, wait) => (ranks, Some(wait)),
                Grant::Wait(wait) => (0, Some(wait)),
            };
            let release = releases.get(&demand.kind).and_then(|releases| releases.get(release)?.as_ref());
            if let Some(release) = release.filter(|_| ranks > 0) {
                let id = self.jobs[demand.job].state.id.clone();
                self.place(&id, demand, release, ranks, now);
            }
            let is_unheard = release.is_none() && demand.release.is_some();
            match wait {
                Some(wait) => {
                    let cause = if is_unheard { WaitCause::Unheard } else { wait.cause };
                    changed.extend(self.wait(demand.job, Wait { cause, ..wait }, now));
                }
                None => self.jobs[demand.job].waiting = None,
            }
        }
        log_waits(&changed);
    }

    /// The jobs that lack devices, the jobs that could be preempted for them, and the available devices.
    fn queue(&mut self, now: Now) -> (Queue, Releases) {
        let mut queue = Queue { policy: self.policy, ..Queue::default() };
        let mut releases = Releases::new();
        let mut indices: BTreeMap<String, usize> = BTreeMap::new();
        for (job, entry) in self.jobs.values_mut().enumerate() {
            let Entry { state, attempt, waiting, .. } = entry;
            if attempt.is_none() && !state.wants_devices() {
                *waiting = None;
                continue;
            }
            let kind = state.spec.resources.device;
            let names = releases.entry(kind).or_default();
            let supply = queue.supply.entry(kind).or_insert_with(|| supplies(&self.cluster, kind, names));
            let name = state.submitted.tenant();
            let tenant = indices.get(name).copied().unwrap_or_else(|| {
                queue.shares.push(tenants::share(&self.quotas, name));
                indices.insert(name.to_owned(), queue.shares.len() - 1);
                queue.shares.len() - 1
            });
            let release = attempt.as_ref().and_then(|attempt| release_of(attempt, &self.cluster));
            let release = release.map(|release| index(release, names, supply));
            if let Some(attempt) = attempt {
                let share = &mut queue.shares[tenant];
                share.jobs += 1;
                share.devices.entry(kind).or_default().used += state.spec.resources.ranks as usize;
                let held = usable(attempt, &self.cluster);
                let release = release.unwrap_or_default();
                if !attempt.is_ending() {
                    let priority =
                        self.policy.aged(state.spec.scheduling.priority.value(), millis(state.times.waited));
                    let ran = millis(now.wall.saturating_sub(state.times.attempt_started));
                    queue.running.push(Running { job, kind, release, held, priority, ran });
                } else if let Some(supply) = supply.get_mut(release) {
                    supply.releasing += held;
                }
            }
            let Some((ranks, claim)) = claim(entry) else {
                entry.waiting = None;
                continue;
            };
            let known = now.since(entry.waiting.get_or_insert_with(|| Waiting::new(now)).since);
            let waited = millis(now.wall.saturating_sub(entry.state.times.waits_since));
            let priority = entry.state.spec.scheduling.priority.value();
            let demand = Demand { job, tenant, kind, release, ranks, priority, waited, known, claim };
            queue.demands.push(demand);
        }
        (queue, releases)
    }

    /// Starts ranks of a job, beginning its attempt first if it has none.
    fn place(&mut self, id: &str, demand: &Demand, release: &Release, ranks: usize, now: Now) {
        let starts = demand.claim == Claim::Start;
        if starts {
            self.start_attempt(id, now);
        }
        self.start_ranks(id, demand.kind, release, ranks, now);
        if starts {
            self.check_addresses(id, now);
        }
    }

    /// Asks a job's ranks to save a checkpoint and exit, for a job of higher priority.
    fn preempt(&mut self, preemption: Preemption, now: Now) {
        let Preemption { job, by } = preemption;
        let [id, by] = [job, by].map(|job| self.jobs[job].state.id.clone());
        tracing::info!(job = id, by, "preempting a job for one of higher priority");
        self.with_attempt(&id, |attempt, _| attempt.preempt(&by, now));
        self.advance_job(&id, now);
    }

    fn start_attempt(&mut self, id: &str, now: Now) {
        let Some(entry) = self.jobs.get(id) else { return };
        let attempt = entry.state.attempt + 1;
        let world = entry.state.spec.resources.ranks;
        let phase = entry.state.phase().map(|phase| phase.id.to_string()).unwrap_or_default();
        self.commit(id, Change::AttemptStarted { attempt, phase, world }, "devices are free", now);
        if let Some(entry) = self.jobs.get_mut(id) {
            let new = Attempt::new(&entry.state, attempt, self.term, self.deadlines, now);
            entry.attempt = Some(Box::new(new));
        }
    }

    /// Starts processes for this many of the attempt's vacant ranks, on agents of the release.
    fn start_ranks(&mut self, id: &str, kind: DeviceKind, release: &Release, ranks: usize, now: Now) {
        let vacant = self.with_attempt(id, |attempt, _| attempt.vacancies()).unwrap_or_default();
        let ranks = ranks.min(vacant.len());
        let placements =
            (1..=ranks).rev().find_map(|ranks| self.cluster.find_free(kind.name(), release, ranks));
        for (rank, placement) in vacant.into_iter().zip(placements.unwrap_or_default()) {
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

    /// Records a process before it is started, so that a later coordinator knows about it.
    fn record_start(&mut self, id: &str, rank: usize, process: Process, now: Now) {
        let attempt = self.state(id).map_or(0, |state| state.attempt);
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let Process { session, placement: Placement { agent, device }, proof, .. } = process;
        let started = RankStarted { attempt, rank, session, agent, device, proof };
        self.commit(id, Change::RankStarted(started), "a device is free", now);
    }

    /// Maximum number of connected devices of a kind that one job can get, including busy ones.
    pub fn devices(&self, kind: &str) -> usize {
        self.cluster.supplies(kind).values().map(|supply| supply.connected).max().unwrap_or_default()
    }

    /// Updates what the job waits for, and notifies its watchers if that has changed. Returns the job and the
    /// reason if the change is also to be logged.
    fn wait(&mut self, job: usize, wait: Wait, now: Now) -> Option<(String, String)> {
        let settling = self.policy.settling;
        let entry = &mut self.jobs[job];
        let waiting = entry.waiting.as_mut()?;
        waiting.current = Some(wait);
        let announced = waiting.announced;
        let is_announced = announced.is_some_and(|announced| announced.news() == wait.news());
        if is_announced || now.since(waiting.since) < settling {
            return None;
        }
        waiting.announced = Some(wait);
        let text = wait.view(entry.state.submitted.tenant()).reason;
        let id = entry.state.id.clone();
        self.publish(&id, view::notice("info", text.clone()), now);
        // When the queue moves, every job in it changes its position: watchers are notified of that, but it
        // is not logged.
        let has_moved = announced.is_some_and(|announced| announced.moved() == wait.moved());
        (!has_moved).then_some((id, text))
    }

    /// Sets the times that govern the queue.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }
}

impl Waiting {
    fn new(now: Now) -> Self {
        Self { since: now.mono, current: None, announced: None }
    }
}

/// Logs what jobs wait for. An agent that joins or is lost changes that for the whole queue, so a long list
/// is summarized in one line.
fn log_waits(waits: &[(String, String)]) {
    const MAX_LINES: usize = 4;
    match waits {
        [] => {}
        [(job, reason), ..] if waits.len() > MAX_LINES => {
            tracing::info!(
                jobs = waits.len(),
                first_job = job,
                "jobs wait for devices; the first is {reason}"
            );
        }
        _ => waits.iter().for_each(|(job, reason)| tracing::info!(job, "{reason}")),
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Number of an attempt's devices that others could use.
fn usable(attempt: &Attempt, cluster: &Cluster) -> usize {
    attempt.placements().filter(|placement| cluster.is_usable(placement)).count()
}

/// The devices that a job lacks, if any.
fn claim(entry: &Entry) -> Option<(usize, Claim)> {
    let ranks = entry.state.spec.resources.ranks as usize;
    let Some(attempt) = &entry.attempt else { return Some((ranks, Claim::Start)) };
    let lacking = attempt.vacancies().len();
    let claim = Claim::Replace { held: ranks - lacking, stalled: attempt.is_stalled() };
    (lacking > 0).then_some((lacking, claim))
}

/// The supply of one kind of device, by release; agents that have not registered yet come last. Appends the
/// releases to `names`.
fn supplies(cluster: &Cluster, kind: DeviceKind, names: &mut Vec<Option<Release>>) -> Vec<Supply> {
    let mut found: Vec<(Option<&Release>, Supply)> =
        cluster.supplies(kind.name()).into_iter().rev().collect();
    // Usually all agents are of one release, including those that have not registered yet.
    if let [(Some(_), heard), (None, unheard)] = &mut found[..] {
        heard.connected += unheard.connected;
        heard.excluded += unheard.excluded;
        found.pop();
    }
    names.extend(found.iter().map(|(name, _)| name.cloned()));
    found.into_iter().map(|(_, supply)| supply).collect()
}

/// The release of an attempt's ranks, if it has any; `Some(None)` if none of their agents has registered yet.
/// All ranks are of one release, so one registered agent determines it for the others.
fn release_of(attempt: &Attempt, cluster: &Cluster) -> Option<Option<Release>> {
    let mut found = None;
    for placement in attempt.placements() {
        match cluster.release_of(&placement.agent) {
            Some(release) => return Some(Some(release.clone())),
            None => found = Some(None),
        }
    }
    found
}

/// The index of a release among those of a kind. It is added if no agent has it.
fn index(release: Option<Release>, names: &mut Vec<Option<Release>>, supplies: &mut Vec<Supply>) -> usize {
    names.iter().position(|other| *other == release).unwrap_or_else(|| {
        names.push(release);
        supplies.push(Supply::default());
        names.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::sync::Mutex;

    use super::*;

    fn logged(jobs: usize) -> String {
        let waits: Vec<_> = (0..jobs).map(|job| (format!("job-{job}"), format!("reason {job}"))).collect();
        let (mut lines, writer) = io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, || log_waits(&waits));
        let mut text = String::new();
        lines.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_waits_of_a_long_queue_are_one_line() {
        assert_eq!(logged(0), "");
        let few = logged(4);
        assert_eq!(few.lines().count(), 4);
        assert!(few.contains("reason 3") && few.contains("job-3"), "{few}");
        let many = logged(5);
        assert_eq!(many.lines().count(), 1);
        assert!(many.contains("jobs=5") && many.contains("the first is reason 0"), "{many}");
    }
}

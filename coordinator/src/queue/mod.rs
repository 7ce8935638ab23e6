//! Allocation of devices to jobs, and the reasons why jobs wait. Pure: times are passed in as durations.
//!
//! Jobs of one device kind get devices in order of priority, then of submission; waiting raises a job's
//! priority, so that none starves. A job starts with all its devices or with none. An attempt that has lost
//! ranks gets devices before another one starts, because the devices that it holds are idle until then. Two
//! such attempts cannot wait for each other's devices forever, because the last one gives its own back.
//!
//! A job that cannot be placed lets smaller ones go ahead (backfill) until it has waited for
//! [`Policy::backfill`]; from then on nothing behind it starts. A job that asks for more devices than the
//! connected workers have, or than its tenant may use, is passed over while that is the case.
//!
//! A job of higher priority that cannot be placed takes the devices of running jobs ([`preempt`]).
//!
//! All devices of an attempt are on workers of one release. While workers of several releases are connected,
//! as during an upgrade, each release is a separate pool: an attempt that has ranks gets more from their
//! pool, and any other job waits in the pool that fits it best.

mod policy;
mod pool;
mod preempt;
mod share;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::HashMap;
use std::time::Duration;

use foil_common::spec::DeviceKind;

pub use self::policy::Policy;
use self::pool::DevicePool;
pub use self::preempt::{Preemption, Running};
pub use self::share::{Portion, Share};
pub use self::wait::{Wait, WaitCause};

/// Devices of one kind on the non-excluded workers of one release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    /// Devices that no rank holds.
    pub free: usize,
    /// Devices of attempts that are ending.
    pub releasing: usize,
    pub connected: usize,
    /// Devices on excluded workers; not counted above.
    pub excluded: usize,
}

/// A job that lacks devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Number of the job in the order of submission.
    pub job: usize,
    /// Index of its tenant's share.
    pub tenant: usize,
    pub kind: DeviceKind,
    /// Index of the release of the job's existing ranks, among the supplies of its kind.
    pub release: Option<usize>,
    /// Number of ranks that need a device.
    pub ranks: usize,
    pub priority: i32,
    /// Time since the job began to wait, according to the log.
    pub waited: Duration,
    /// Time since this coordinator learned that the job waits.
    pub known: Duration,
    pub claim: Claim,
}

/// The devices available to the ranks of one attempt: those of a kind on workers of one release, given by its
/// index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PoolId {
    kind: DeviceKind,
    release: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The job has no devices yet, and starts with all of them or not at all.
    Start,
    /// The job's attempt runs on `held` devices and has lost the others. A stalled attempt is idle until it
    /// has them again.
    Replace { held: usize, stalled: bool },
}

/// State from which devices are allocated.
#[derive(Debug, Default)]
pub struct Queue {
    pub policy: Policy,
    /// One for each release.
    pub supply: HashMap<DeviceKind, Vec<Supply>>,
    /// In the order of submission.
    pub demands: Vec<Demand>,
    /// Attempts that could be preempted.
    pub running: Vec<Running>,
    pub shares: Vec<Share>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// A device for every rank that lacks one.
    Full,
    /// This many devices; the job waits for the others.
    Partial(usize, Wait),
    Wait(Wait),
}

/// A decision on all jobs that lack devices.
#[derive(Debug, Default, PartialEq)]
pub struct Allocation {
    /// One for each demand.
    pub grants: Vec<Grant>,
    /// Index of the release in whose pool each demand was considered.
    pub releases: Vec<usize>,
    /// Jobs whose attempts give their devices back because they cannot get the missing ones.
    pub yields: Vec<usize>,
    pub preemptions: Vec<Preemption>,
}

impl Demand {
    fn starts(&self) -> bool {
        self.claim == Claim::Start
    }

    /// True if nothing may overtake the job while it cannot be placed. `fits` tells whether the connected
    /// workers have enough devices at all.
    fn reserves(&self, policy: &Policy, fits: bool) -> bool {
        self.known < policy.settling || (fits && self.waited >= policy.backfill)
    }

    /// Place in the queue; smaller is sooner. Running attempts come first.
    ///
    /// Two waiting jobs keep their order, because both age alike.
    fn turn(&self, policy: &Policy) -> (bool, i64, usize) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let head_start = i64::from(self.priority).saturating_mul(millis(policy.aging));
        (self.starts(), -head_start.saturating_add(millis(self.waited)), self.job)
    }
}

/// Allocates the free devices, and decides which devices others must give back.
pub fn allocate(queue: &mut Queue) -> Allocation {
    let policy = queue.policy;
    let Queue { supply, demands, shares, .. } = queue;
    let mut pools: HashMap<DeviceKind, Vec<DevicePool>> = HashMap::new();
    let mut grants = vec![Grant::Full; demands.len()];
    let mut releases = vec![0; demands.len()];
    let mut turns: Vec<usize> = (0..demands.len()).collect();
    turns.sort_by_cached_key(|&index| demands[index].turn(&policy));
    for &index in &turns {
        let demand = &demands[index];
        let of_kind = || DevicePool::of_kind(policy, supply.get(&demand.kind).map_or(&[][..], Vec::as_slice));
        let pools = pools.entry(demand.kind).or_insert_with(of_kind);
        releases[index] = demand.release.unwrap_or_else(|| pool::choose(pools, demand));
        grants[index] = pools[releases[index]].grant(demand, shares.get_mut(demand.tenant));
    }
    let mut allocation = Allocation { grants, releases, ..Allocation::default() };
    for (kind, pools) in pools {
        for (release, pool) in pools.iter().enumerate() {
            let id = PoolId { kind, release };
            let is_here =
                |index: &usize| queue.demands[*index].kind == kind && allocation.releases[*index] == release;
            let waiting: Vec<usize> = turns.iter().copied().filter(is_here).collect();
            preempt::preempt(queue, id, pool.supply(), &waiting, &mut allocation);
            yield_stalled(queue, id, pool.supply(), &waiting, &mut allocation);
        }
    }
    allocation.preemptions.sort_by_key(|preemption| preemption.job);
    allocation.yields.sort_unstable();
    allocation
}

/// Makes the last stalled attempt give its devices back if nothing else can end its wait: another stalled
/// attempt may hold what it lacks, the remaining workers of its release may have too few devices while other
/// jobs can use them, or another release may have enough for the whole attempt. Only one attempt yields at a
/// time, because its devices may let those before it continue.
fn yield_stalled(queue: &Queue, pool: PoolId, supply: Supply, turns: &[usize], allocation: &mut Allocation) {
    let cause = |index: usize| match &allocation.grants[index] {
        Grant::Full => None,
        Grant::Partial(_, wait) | Grant::Wait(wait) => Some(wait.cause),
    };
    let can_use = |index: usize| matches!(cause(index), Some(WaitCause::Devices | WaitCause::Kept));
    let is_overdue = |index: usize| {
        let demand = &queue.demands[index];
        let is_stalled = matches!(demand.claim, Claim::Replace { stalled: true, held: 1.. });
        let is_preempted = allocation.preemptions.iter().any(|preemption| preemption.job == demand.job);
        is_stalled && !is_preempted && demand.known >= queue.policy.holding && can_use(index)
    };
    let stalled: Vec<usize> = turns.iter().copied().filter(|index| is_overdue(*index)).collect();
    let Some(&last) = stalled.last() else { return };
    let demand = &queue.demands[last];
    let Claim::Replace { held, .. } = demand.claim else { return };
    let is_too_large = held + demand.ranks > supply.connected;
    let releases = queue.supply.get(&pool.kind).map_or(&[][..], Vec::as_slice).iter().enumerate();
    let fits_elsewhere = releases
        .filter(|(release, _)| *release != pool.release)
        .any(|(_, other)| held + demand.ranks <= other.connected);
    // Other jobs of its tenant may wait for the tenant's quota, also for another kind of device.
    let waits_for_quota = |index: usize| {
        let other = &queue.demands[index];
        let releases = queue.supply.get(&other.kind).into_iter().flatten();
        let connected = releases.map(|supply| supply.connected).max().unwrap_or(0);
        let is_short = match cause(index) {
            Some(WaitCause::TenantJobs { .. }) => true,
            Some(WaitCause::TenantDevices { .. } | WaitCause::TenantKept) => other.kind == demand.kind,
            _ => false,
        };
        is_short && other.tenant == demand.tenant && other.ranks <= connected
    };
    let others_wait = turns.iter().any(|&index| index != last && can_use(index))
        || (0..queue.demands.len()).any(waits_for_quota);
    if stalled.len() > 1 || (is_too_large && (others_wait || fits_elsewhere)) {
        allocation.yields.push(demand.job);
    }
}

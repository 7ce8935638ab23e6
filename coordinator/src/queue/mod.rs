//! Allocation of devices to jobs, and the reasons why others wait. Pure: times are passed in as durations.
//!
//! Jobs of one device kind get devices in the order of their priority, then of submission; waiting raises a
//! priority, so that none is starved. A job starts with all its devices or with none. An attempt that has
//! lost ranks gets devices before another one starts, because those it holds are idle until then; two such
//! attempts cannot wait for each other's devices for ever, because the last one gives its own back.
//!
//! A job that cannot be placed lets smaller ones go ahead (backfill) until it has waited for
//! [`Policy::backfill`]; from then on nothing behind it starts. One that asks for more devices than the
//! connected workers have, or than its tenant may use, is passed over as long as that is so.
//!
//! A job of higher priority that cannot be placed takes the devices of running jobs ([`preempt`]).

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

/// Devices of one kind on the workers in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    /// Devices that no rank holds.
    pub free: usize,
    /// Devices of attempts that are ending.
    pub releasing: usize,
    pub connected: usize,
    /// Devices on workers that are excluded; not counted above.
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
    /// Number of ranks that need a device.
    pub ranks: usize,
    pub priority: i32,
    /// Time since it began to wait, from the log.
    pub waited: Duration,
    /// Time since this coordinator has known that it waits.
    pub known: Duration,
    pub claim: Claim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It has no devices yet, and starts with all of them or not at all.
    Start,
    /// Its attempt runs on `held` devices and has lost the others. A stalled one does nothing until it has
    /// them again.
    Replace { held: usize, stalled: bool },
}

/// State from which devices are allocated.
#[derive(Debug, Default)]
pub struct Queue {
    pub policy: Policy,
    pub supply: HashMap<DeviceKind, Supply>,
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
    /// This many devices; the job waits for the rest.
    Partial(usize, Wait),
    Wait(Wait),
}

/// A decision on all jobs that lack devices.
#[derive(Debug, Default, PartialEq)]
pub struct Allocation {
    /// One for each demand.
    pub grants: Vec<Grant>,
    /// Jobs whose attempts give their devices back, because they cannot get the others.
    pub yields: Vec<usize>,
    pub preemptions: Vec<Preemption>,
}

impl Demand {
    fn starts(&self) -> bool {
        self.claim == Claim::Start
    }

    /// True if nothing may go ahead of it while it cannot be placed; `fits` is whether the connected workers
    /// have enough devices at all.
    fn reserves(&self, policy: &Policy, fits: bool) -> bool {
        self.known < policy.settling || (fits && self.waited >= policy.backfill)
    }

    /// Place in the queue; less is sooner. Running attempts come first.
    ///
    /// Two jobs that wait keep their order: both age alike.
    fn turn(&self, policy: &Policy) -> (bool, i64, usize) {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let head_start = i64::from(self.priority).saturating_mul(millis(policy.aging));
        (self.starts(), -head_start.saturating_add(millis(self.waited)), self.job)
    }
}

/// Allocates the free devices, and those that others must give back.
pub fn allocate(queue: &mut Queue) -> Allocation {
    let policy = queue.policy;
    let mut pools: HashMap<DeviceKind, DevicePool> = HashMap::new();
    let mut grants = vec![Grant::Full; queue.demands.len()];
    let mut turns: Vec<usize> = (0..queue.demands.len()).collect();
    turns.sort_by_cached_key(|&index| queue.demands[index].turn(&policy));
    for &index in &turns {
        let demand = queue.demands[index];
        let supply = queue.supply.get(&demand.kind).copied().unwrap_or_default();
        let pool = pools.entry(demand.kind).or_insert_with(|| DevicePool::new(policy, supply));
        grants[index] = pool.grant(&demand, queue.shares.get_mut(demand.tenant));
    }
    let mut allocation = Allocation { grants, ..Allocation::default() };
    for (kind, pool) in pools {
        let of_kind = |index: &&usize| queue.demands[**index].kind == kind;
        let waiting: Vec<usize> = turns.iter().filter(of_kind).copied().collect();
        preempt::preempt(queue, pool.supply(), &waiting, &mut allocation);
        yield_stalled(queue, pool.supply(), &waiting, &mut allocation);
    }
    allocation.preemptions.sort_by_key(|preemption| preemption.job);
    allocation.yields.sort_unstable();
    allocation
}

/// Makes the last stalled attempt give its devices back if nothing else can end its wait: another stalled
/// attempt may hold what it lacks, or the workers left have too few for it and other jobs can use them. One
/// at a time: with the devices of the last, those before it may go on.
fn yield_stalled(queue: &Queue, supply: Supply, turns: &[usize], allocation: &mut Allocation) {
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
    // Others of its tenant may wait for its share of the quota, also for another kind of device.
    let waits_for_quota = |index: usize| {
        let other = &queue.demands[index];
        let connected = queue.supply.get(&other.kind).map_or(0, |supply| supply.connected);
        let is_short = match cause(index) {
            Some(WaitCause::TenantJobs { .. }) => true,
            Some(WaitCause::TenantDevices { .. } | WaitCause::TenantKept) => other.kind == demand.kind,
            _ => false,
        };
        is_short && other.tenant == demand.tenant && other.ranks <= connected
    };
    let others_wait = turns.iter().any(|&index| index != last && can_use(index))
        || (0..queue.demands.len()).any(waits_for_quota);
    if stalled.len() > 1 || (is_too_large && others_wait) {
        allocation.yields.push(demand.job);
    }
}

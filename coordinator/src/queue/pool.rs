use std::cmp::Reverse;

use super::{Claim, Demand, Grant, Policy, Share, Supply, Wait, WaitCause};

/// The devices of one kind and release while they are allocated.
pub(super) struct DevicePool {
    policy: Policy,
    supply: Supply,
    /// Devices of the kind on workers of other releases.
    others: usize,
    waiting: u32,
    /// The free devices are reserved for a job that waits for more.
    reserved: bool,
}

impl DevicePool {
    /// One pool for each release, and at least one.
    pub(super) fn of_kind(policy: Policy, supplies: &[Supply]) -> Vec<Self> {
        let total: usize = supplies.iter().map(|supply| supply.connected).sum();
        let pool = |supply: Supply| {
            let others = total - supply.connected;
            Self { policy, supply, others, waiting: 0, reserved: false }
        };
        let mut pools: Vec<Self> = supplies.iter().copied().map(pool).collect();
        if pools.is_empty() {
            pools.push(pool(Supply::default()));
        }
        pools
    }

    /// The remaining devices.
    pub(super) fn supply(&self) -> Supply {
        self.supply
    }

    /// The grant of the next demand in the queue; `share` belongs to its tenant.
    pub(super) fn grant(&mut self, demand: &Demand, share: Option<&mut Share>) -> Grant {
        match demand.claim {
            Claim::Start => self.start(demand, share),
            Claim::Replace { .. } => self.replace(demand),
        }
    }

    fn replace(&mut self, demand: &Demand) -> Grant {
        let given = self.supply.free.min(demand.ranks);
        self.supply.free -= given;
        if given == demand.ranks {
            return Grant::Full;
        }
        let wait = self.wait(demand, demand.ranks - given, WaitCause::Devices);
        if given > 0 { Grant::Partial(given, wait) } else { Grant::Wait(wait) }
    }

    fn start(&mut self, demand: &Demand, mut share: Option<&mut Share>) -> Grant {
        let is_due = demand.waited >= self.policy.backfill;
        if let Some(cause) = share.as_mut().and_then(|share| share.check(demand, is_due)) {
            return Grant::Wait(self.wait(demand, demand.ranks, cause));
        }
        if !self.reserved && demand.ranks <= self.supply.free {
            self.supply.free -= demand.ranks;
            share.into_iter().for_each(|share| share.take(demand));
            return Grant::Full;
        }
        let is_too_large = demand.ranks > self.supply.connected;
        let is_coming = demand.ranks <= self.supply.free + self.supply.releasing;
        let cause = match self.reserved {
            _ if is_too_large => WaitCause::TooLarge,
            true if self.supply.free > 0 => WaitCause::Kept,
            _ => WaitCause::Devices,
        };
        // A preempted job must not take back the devices that it gave up for this one.
        self.reserved |= is_coming || demand.reserves(&self.policy, !is_too_large);
        Grant::Wait(self.wait(demand, demand.ranks, cause))
    }

    fn wait(&mut self, demand: &Demand, lacking: usize, cause: WaitCause) -> Wait {
        self.waiting += 1;
        let (Supply { free, connected, excluded, .. }, others) = (self.supply, self.others);
        let (kind, starts, position) = (demand.kind, demand.claim == Claim::Start, self.waiting);
        Wait { kind, lacking, starts, free, connected, excluded, others, position, cause }
    }
}

/// Index of the pool for a job that has no ranks yet: a pool in which it can start immediately, or else the
/// largest, in which it waits.
pub(super) fn choose(pools: &[DevicePool], demand: &Demand) -> usize {
    let rank = |(_, pool): &(usize, &DevicePool)| {
        let Supply { free, connected, .. } = pool.supply;
        let starts = demand.ranks <= free && !(pool.reserved && demand.starts());
        Reverse((starts, connected, free))
    };
    pools.iter().enumerate().min_by_key(rank).map_or(0, |(index, _)| index)
}

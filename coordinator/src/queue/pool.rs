use super::{Claim, Demand, Grant, Policy, Share, Supply, Wait, WaitCause};

/// The devices of one kind while they are allocated.
pub(super) struct DevicePool {
    policy: Policy,
    supply: Supply,
    waiting: u32,
    /// The free devices are reserved for a job that waits for more.
    reserved: bool,
}

impl DevicePool {
    pub(super) fn new(policy: Policy, supply: Supply) -> Self {
        Self { policy, supply, waiting: 0, reserved: false }
    }

    /// The devices that are left.
    pub(super) fn supply(&self) -> Supply {
        self.supply
    }

    /// The grant of the next demand in the queue, whose tenant has the share.
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
        // A job that was preempted for it must not take the devices again.
        self.reserved |= is_coming || demand.reserves(&self.policy, !is_too_large);
        Grant::Wait(self.wait(demand, demand.ranks, cause))
    }

    fn wait(&mut self, demand: &Demand, lacking: usize, cause: WaitCause) -> Wait {
        self.waiting += 1;
        let Supply { free, connected, excluded, .. } = self.supply;
        let (kind, starts, position) = (demand.kind, demand.claim == Claim::Start, self.waiting);
        Wait { kind, lacking, starts, free, connected, excluded, position, cause }
    }
}

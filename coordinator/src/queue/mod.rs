//! Allocation of devices to jobs, and the reasons why others wait. Pure.
//!
//! First come, first served among jobs of one device kind, with two exceptions. Running attempts get their
//! missing ranks before new ones start, because the devices they hold are idle until then. And a job that
//! asks for more devices than the connected workers have is passed over as long as that is so; every other
//! job blocks those behind it, so that it gets its devices eventually.

use std::collections::BTreeMap;

use foil_proto::v1;

/// Devices of one kind on the workers in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    /// Devices that no rank holds.
    pub free: usize,
    pub connected: usize,
    /// Devices on workers that are excluded; not counted above.
    pub excluded: usize,
}

/// A job that lacks devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    pub job: String,
    pub kind: String,
    /// Number of ranks that need a device.
    pub ranks: usize,
    /// It has no devices yet, and starts with all of them or not at all.
    pub starts: bool,
    /// It has been too large for the connected workers for so long that others go first.
    pub passed_over: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// A device for every rank that lacks one.
    Full,
    /// This many devices; the job waits for the rest.
    Partial(usize, v1::JobWait),
    Wait(v1::JobWait),
}

/// Allocates the free devices to demands, which are in order of submission. Returns each one's grant.
pub fn allocate(supply: &BTreeMap<String, Supply>, demands: &[Demand]) -> Vec<Grant> {
    let mut pools: BTreeMap<&str, DevicePool> = BTreeMap::new();
    let mut grants = vec![Grant::Full; demands.len()];
    // Stable: the order of submission holds among running jobs, and among those that start.
    let mut turns: Vec<usize> = (0..demands.len()).collect();
    turns.sort_by_key(|&index| demands[index].starts);
    for index in turns {
        let demand = &demands[index];
        let pool = pools
            .entry(&demand.kind)
            .or_insert_with(|| DevicePool::new(supply.get(&demand.kind).copied().unwrap_or_default()));
        grants[index] = pool.grant(demand);
    }
    grants
}

/// The devices of one kind while they are allocated.
struct DevicePool {
    supply: Supply,
    waiting: u32,
    /// The free devices are reserved for a job that waits for more.
    reserved: bool,
}

impl DevicePool {
    fn new(supply: Supply) -> Self {
        Self { supply, waiting: 0, reserved: false }
    }

    fn grant(&mut self, demand: &Demand) -> Grant {
        let given = match self.supply.free {
            _ if self.reserved => 0,
            free if demand.starts && free < demand.ranks => 0,
            free => free.min(demand.ranks),
        };
        self.supply.free -= given;
        if given == demand.ranks {
            return Grant::Full;
        }
        self.waiting += 1;
        let wait = self.wait(demand, demand.ranks - given);
        let too_large = demand.starts && demand.ranks > self.supply.connected;
        self.reserved |= demand.starts && !(too_large && demand.passed_over);
        if given > 0 { Grant::Partial(given, wait) } else { Grant::Wait(wait) }
    }

    fn wait(&self, demand: &Demand, lacking: usize) -> v1::JobWait {
        let Supply { free, connected, excluded } = self.supply;
        let kind = &demand.kind;
        let more = if demand.starts { "" } else { "more " };
        let wanted = format!("waiting for {lacking} {more}{kind} {}", devices(lacking));
        let note = match excluded {
            0 => String::new(),
            others => format!(" (and {others} on workers that are excluded)"),
        };
        let position = match self.waiting {
            1 => String::new(),
            waiting => format!("; {} in the queue", ordinal(waiting)),
        };
        let reason = if demand.starts && demand.ranks > connected {
            format!("{wanted}; the workers connected now have {connected}{note}{position}")
        } else {
            let reserved = if self.reserved && free > 0 { ", kept for a job before this one" } else { "" };
            format!("{wanted}; {free} of {connected} free{reserved}{note}{position}")
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        v1::JobWait {
            reason,
            device: kind.clone(),
            wanted: count(lacking),
            free: count(free),
            connected: count(connected),
            position: self.waiting,
        }
    }
}

fn devices(count: usize) -> &'static str {
    if count == 1 { "device" } else { "devices" }
}

fn ordinal(number: u32) -> String {
    const WORDS: [&str; 9] =
        ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];
    let word = (number as usize).checked_sub(1).and_then(|index| WORDS.get(index));
    word.map_or_else(|| format!("number {number}"), |word| (*word).to_owned())
}

#[cfg(test)]
mod tests;

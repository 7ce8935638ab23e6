//! Who gets devices next, and why the others wait. Pure.
//!
//! First come, first served among jobs of one device kind, with two exceptions. Running attempts are made whole before
//! others begin: they hold devices that nobody else gets until then. And a job that asks for more devices than the
//! connected workers have is passed over for as long as that is so; every other job keeps those behind it waiting, so that
//! it gets its devices in the end.

use std::collections::BTreeMap;

use foil_proto::v1;

/// Devices of one kind on the workers in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    /// Held by no rank.
    pub free: usize,
    pub connected: usize,
    /// On workers that are set aside, and so not among the others.
    pub set_aside: usize,
}

/// A job that lacks devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    pub job: String,
    pub kind: String,
    /// Devices that it lacks.
    pub seats: usize,
    /// It has none, and begins with all of them or not at all.
    pub starts: bool,
    /// It has been too large for the connected workers for long enough not to be waited for.
    pub passed_over: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Grant {
    /// All that it lacks.
    Whole,
    /// So many of them; for the rest it waits.
    Part(usize, v1::JobWait),
    Wait(v1::JobWait),
}

/// Shares out what is free among demands in the order of submission. Gives each one's grant.
pub fn share(supply: &BTreeMap<String, Supply>, demands: &[Demand]) -> Vec<Grant> {
    let mut hall: BTreeMap<&str, Counter> = BTreeMap::new();
    let mut grants = vec![Grant::Whole; demands.len()];
    // Stable: the order of submission holds among those that run, and among those that begin.
    let mut turns: Vec<usize> = (0..demands.len()).collect();
    turns.sort_by_key(|&index| demands[index].starts);
    for index in turns {
        let demand = &demands[index];
        let counter = hall
            .entry(&demand.kind)
            .or_insert_with(|| Counter::new(supply.get(&demand.kind).copied().unwrap_or_default()));
        grants[index] = counter.serve(demand);
    }
    grants
}

/// Where jobs of one device kind are served.
struct Counter {
    supply: Supply,
    waiting: u32,
    /// A job waits that can be served in time: what is free is kept for it.
    reserved: bool,
}

impl Counter {
    fn new(supply: Supply) -> Self {
        Self { supply, waiting: 0, reserved: false }
    }

    fn serve(&mut self, demand: &Demand) -> Grant {
        let given = match self.supply.free {
            _ if self.reserved => 0,
            free if demand.starts && free < demand.seats => 0,
            free => free.min(demand.seats),
        };
        self.supply.free -= given;
        if given == demand.seats {
            return Grant::Whole;
        }
        self.waiting += 1;
        let wait = self.wait(demand, demand.seats - given);
        let too_large = demand.starts && demand.seats > self.supply.connected;
        self.reserved |= demand.starts && !(too_large && demand.passed_over);
        if given > 0 { Grant::Part(given, wait) } else { Grant::Wait(wait) }
    }

    fn wait(&self, demand: &Demand, lacking: usize) -> v1::JobWait {
        let Supply { free, connected, set_aside } = self.supply;
        let kind = &demand.kind;
        let more = if demand.starts { "" } else { "more " };
        let wanted = format!("waiting for {lacking} {more}{kind} {}", devices(lacking));
        let apart = match set_aside {
            0 => String::new(),
            apart => format!(" (and {apart} on workers that are set aside)"),
        };
        let place = match self.waiting {
            1 => String::new(),
            waiting => format!("; {} in the queue", ordinal(waiting)),
        };
        let reason = if demand.starts && demand.seats > connected {
            format!("{wanted}; the workers connected now have {connected}{apart}{place}")
        } else {
            let kept = if self.reserved && free > 0 { ", kept for a job before this one" } else { "" };
            format!("{wanted}; {free} of {connected} free{kept}{apart}{place}")
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

//! The devices that jobs can use, by kind and by the release of their agents' program.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use foil_proto::v1;

use super::{Agent, Cluster, Placement};
use crate::queue::Supply;

/// Version and build of an agent's program and of the ranks that it starts. All ranks of one attempt are of
/// one release: ranks of different releases may take different steps or fail to understand each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub version: String,
    /// Empty if the builder set none.
    pub build: String,
}

impl From<&v1::AgentRegister> for Release {
    fn from(hello: &v1::AgentRegister) -> Self {
        Self { version: hello.version.clone(), build: hello.build.clone() }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.build.as_str() {
            "" => write!(f, "{}", self.version),
            build => write!(f, "{} (build {build})", self.version),
        }
    }
}

/// A host's free devices of a kind.
#[derive(Debug, Default)]
struct FreeHost {
    /// Maximum number of strikes among the host's agents.
    strikes: u32,
    devices: Vec<Placement>,
}

impl Cluster {
    /// `count` free devices of a kind on agents of a release; none if there are fewer. They are spread over
    /// as few hosts as possible, to minimize network traffic for gradients, and devices of a host are
    /// adjacent. Hosts of agents without strikes come first. The order is stable.
    pub fn find_free(&self, kind: &str, release: &Release, count: usize) -> Option<Vec<Placement>> {
        let mut hosts = self.free_by_host(kind, release);
        let mut placements = Vec::with_capacity(count);
        while placements.len() < count {
            let lacking = count - placements.len();
            // Prefer the smallest host with room for all, or else the host that takes the most.
            let fit = |(_, host): &(usize, &FreeHost)| {
                let free = host.devices.len();
                let is_enough = free >= lacking;
                (host.strikes, !is_enough, if is_enough { free } else { usize::MAX - free })
            };
            let (best, _) = hosts.iter().enumerate().min_by_key(fit)?;
            placements.extend(hosts.remove(best).devices.into_iter().take(lacking));
        }
        Some(placements)
    }

    /// The hosts with free devices of a kind, ordered by their first agent. An agent without a host name is a
    /// host of its own.
    fn free_by_host(&self, kind: &str, release: &Release) -> Vec<FreeHost> {
        let is_one = |agent: &Agent| agent.takes_ranks() && agent.release.as_ref() == Some(release);
        let mut hosts: Vec<FreeHost> = Vec::new();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for (id, agent) in self.in_use(kind).filter(|(_, agent)| is_one(agent)) {
            let free = agent.devices(kind).filter(|device| device.holder.is_none());
            let devices: Vec<Placement> = free
                .map(|device| Placement { agent: id.clone(), device: device.device.id.clone() })
                .collect();
            if devices.is_empty() {
                continue;
            }
            let name = if agent.hostname.is_empty() { id } else { &agent.hostname };
            let at = *by_name.entry(name).or_insert(hosts.len());
            if at == hosts.len() {
                hosts.push(FreeHost::default());
            }
            hosts[at].strikes = hosts[at].strikes.max(agent.trust.strikes());
            hosts[at].devices.extend(devices);
        }
        hosts
    }

    /// Devices of a kind that jobs can use, by release; none for agents that have not registered yet.
    pub fn supplies(&self, kind: &str) -> BTreeMap<Option<&Release>, Supply> {
        let mut supplies: BTreeMap<Option<&Release>, Supply> = BTreeMap::new();
        for agent in self.agents.values().filter(|agent| agent.devices(kind).next().is_some()) {
            supplies.entry(agent.release.as_ref()).or_default().excluded += agent.devices(kind).count();
        }
        for (_, agent) in self.in_use(kind) {
            let Some(supply) = supplies.get_mut(&agent.release.as_ref()) else { continue };
            supply.connected += agent.devices(kind).count();
            supply.excluded -= agent.devices(kind).count();
            if agent.takes_ranks() {
                supply.free += agent.devices(kind).filter(|device| device.holder.is_none()).count();
            }
        }
        supplies
    }

    /// The release of an agent; none if it has not registered yet.
    pub fn release_of(&self, agent: &str) -> Option<&Release> {
        self.agents.get(agent)?.release.as_ref()
    }

    /// True if the device can take another rank as soon as it is free.
    pub fn is_usable(&self, placement: &Placement) -> bool {
        self.agents.get(&placement.agent).is_some_and(|agent| agent.is_up() && !agent.leaving)
    }

    /// The agents that may get ranks: those not excluded, unless no other agent has devices of the kind.
    fn in_use(&self, kind: &str) -> impl Iterator<Item = (&String, &Agent)> {
        let others = self.agents.values().any(|agent| agent.is_trusted(kind));
        self.agents.iter().filter(move |(_, agent)| !agent.leaving && (!others || !agent.trust.is_excluded()))
    }
}

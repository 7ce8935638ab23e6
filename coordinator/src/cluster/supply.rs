//! The devices that jobs can use, by kind and by the release of their agents' program.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use foil_proto::v1;

use super::{Agent, Cluster, Placement};
use crate::queue::Supply;

/// Version and build of an agent's program, which is also that of the ranks that it starts. The ranks of one
/// attempt are of one release: those of two need not take the same steps, nor understand each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub version: String,
    /// Empty if its builder named none.
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
    /// Most strikes of an agent of it.
    strikes: u32,
    devices: Vec<Placement>,
}

impl Cluster {
    /// `count` free devices of a kind on agents of a release; none if there are fewer. They are on as few
    /// hosts as have room, so that gradients cross the network as seldom as can be, and those of a host
    /// follow each other. Hosts of agents without strikes come first. The order is stable.
    pub fn find_free(&self, kind: &str, release: &Release, count: usize) -> Option<Vec<Placement>> {
        let mut hosts = self.free_by_host(kind, release);
        let mut placements = Vec::with_capacity(count);
        while placements.len() < count {
            let lacking = count - placements.len();
            // The smallest that has room for all, else the one that takes most.
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

    /// The hosts with free devices of a kind, by their first agent. An agent that names none is a host.
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

    /// Devices of a kind that jobs can use, by release. Agents that are not heard yet are without one.
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

    /// The release of an agent; none if it is not heard yet.
    pub fn release_of(&self, agent: &str) -> Option<&Release> {
        self.agents.get(agent)?.release.as_ref()
    }

    /// True if the device can take another rank as soon as it is free.
    pub fn is_usable(&self, placement: &Placement) -> bool {
        self.agents.get(&placement.agent).is_some_and(|agent| agent.is_up() && !agent.leaving)
    }

    /// The agents that may get ranks: not excluded ones, unless no other has devices of the kind.
    fn in_use(&self, kind: &str) -> impl Iterator<Item = (&String, &Agent)> {
        let others = self.agents.values().any(|agent| agent.is_trusted(kind));
        self.agents.iter().filter(move |(_, agent)| !agent.leaving && (!others || !agent.trust.is_excluded()))
    }
}

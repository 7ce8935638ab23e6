//! Where agents say that their ranks are reached, and which of them only their own machine can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use foil_proto::v1;

use super::Core;
use crate::clock::Now;
use crate::schedule::Level;

/// By agent.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, Host>);

#[derive(Debug)]
struct Host {
    name: String,
    address: String,
}

impl Host {
    fn is_loopback(&self) -> bool {
        self.address == "localhost" || self.address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl Hosts {
    pub(super) fn note(&mut self, hello: &v1::AgentRegister) {
        let host = Host { name: hello.hostname.clone(), address: hello.advertise_address.clone() };
        self.0.insert(hello.agent_id.clone(), host);
    }

    pub(super) fn forget(&mut self, agent: &str) {
        self.0.remove(agent);
    }

    /// What is wrong with the addresses of agents that share a job: one has the loopback address and another one is on
    /// another machine.
    fn fault(&self, agents: &BTreeSet<&str>) -> Option<String> {
        let known: Vec<(&str, &Host)> =
            agents.iter().filter_map(|agent| Some((*agent, self.0.get(*agent)?))).collect();
        known.iter().filter(|(_, host)| host.is_loopback()).find_map(|(agent, host)| {
            let (other, elsewhere) = known.iter().find(|(_, other)| other.name != host.name)?;
            Some(format!(
                "agent {agent} on {} advertises {}, where the ranks of agent {other} on {} will not find its own; start it \
                 with --advertise-address and an address that they can connect to",
                host.name, host.address, elsewhere.name
            ))
        })
    }
}

impl Core {
    /// Tells watchers before the ranks of an attempt fail to find each other.
    pub(super) fn check_addresses(&mut self, id: &str, now: Now) {
        let Some(state) = self.state(id) else { return };
        let agents = state.seats.values().map(|seat| seat.agent.as_str()).collect();
        if let Some(fault) = self.hosts.fault(&agents) {
            self.tell_watchers(id, Level::Warning, fault, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(agents: &[(&str, &str, &str)]) -> Hosts {
        let mut hosts = Hosts::default();
        for (agent, hostname, address) in agents {
            hosts.note(&v1::AgentRegister {
                agent_id: (*agent).to_owned(),
                hostname: (*hostname).to_owned(),
                advertise_address: (*address).to_owned(),
                ..Default::default()
            });
        }
        hosts
    }

    #[test]
    fn a_loopback_address_is_at_fault_where_ranks_are_on_several_machines() {
        let hosts = hosts(&[
            ("a", "one", "127.0.0.1"),
            ("b", "one", "127.0.0.1"),
            ("c", "two", "10.0.0.2"),
            ("d", "three", "::1"),
            ("e", "four", "10.0.0.4"),
        ]);
        let fault = |agents: &[&str]| hosts.fault(&agents.iter().copied().collect());
        assert_eq!(fault(&["a", "b"]), None, "one machine");
        assert_eq!(fault(&["c", "e"]), None);
        assert_eq!(fault(&["a"]), None);
        let told = fault(&["a", "b", "c"]).unwrap();
        assert!(
            told.contains("agent a on one advertises 127.0.0.1") && told.contains("agent c on two"),
            "{told}"
        );
        assert!(fault(&["d", "e"]).unwrap().contains("--advertise-address"));
    }
}

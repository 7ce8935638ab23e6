//! The addresses that agents advertise for their ranks, and checks that ranks on several machines can reach
//! each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use foil_proto::v1;

use super::Core;
use crate::clock::Now;
use crate::cluster::NameTaken;
use crate::schedule::Level;

/// Host names and advertised addresses, by agent.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, Host>);

#[derive(Debug)]
struct Host {
    name: String,
    address: String,
}

/// An agent advertises a loopback address although there are agents on other machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "agent {agent} on {host} advertises {address}, which the ranks of agent {other} on {elsewhere} cannot reach; start it \
     with --advertise-address and an address of this machine that they can connect to"
)]
pub struct LoopbackAddress {
    agent: String,
    host: String,
    address: String,
    other: String,
    elsewhere: String,
}

/// Why an agent may not register.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    #[error(transparent)]
    Loopback(#[from] LoopbackAddress),
}

impl Host {
    fn new(hello: &v1::AgentRegister) -> Self {
        Self { name: hello.hostname.clone(), address: hello.advertise_address.clone() }
    }

    fn is_loopback(&self) -> bool {
        self.address == "localhost" || self.address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl Hosts {
    pub(super) fn insert(&mut self, hello: &v1::AgentRegister) {
        self.0.insert(hello.agent_id.clone(), Host::new(hello));
    }

    /// Checks that the ranks of agents on other machines can reach those of this one. An agent that runs
    /// ranks may always register, or it would lose them.
    pub(super) fn admits(&self, hello: &v1::AgentRegister) -> Result<(), LoopbackAddress> {
        let host = Host::new(hello);
        let mut others =
            self.0.iter().filter(|(agent, other)| **agent != hello.agent_id && other.name != host.name);
        match others.next() {
            Some((other, elsewhere)) if host.is_loopback() && hello.session_ids.is_empty() => {
                Err(LoopbackAddress {
                    agent: hello.agent_id.clone(),
                    host: host.name,
                    address: host.address,
                    other: other.clone(),
                    elsewhere: elsewhere.name.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, agent: &str) {
        self.0.remove(agent);
    }

    /// The problem with the addresses of agents that share a job, if any: one advertises a loopback address
    /// while another is on a different machine.
    fn problem(&self, agents: &BTreeSet<&str>) -> Option<String> {
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
    /// Warns watchers before the ranks of an attempt fail to reach each other.
    pub(super) fn check_addresses(&mut self, id: &str, now: Now) {
        let Some(state) = self.state(id) else { return };
        let agents = state.ranks.values().map(|process| process.agent.as_str()).collect();
        if let Some(problem) = self.hosts.problem(&agents) {
            self.notify_watchers(id, Level::Warning, problem, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(agents: &[(&str, &str, &str)]) -> Hosts {
        let mut hosts = Hosts::default();
        for (agent, hostname, address) in agents {
            hosts.insert(&v1::AgentRegister {
                agent_id: (*agent).to_owned(),
                hostname: (*hostname).to_owned(),
                advertise_address: (*address).to_owned(),
                ..Default::default()
            });
        }
        hosts
    }

    #[test]
    fn an_agent_with_a_loopback_address_is_refused_beside_those_of_other_machines() {
        let hosts = hosts(&[("a", "one", "127.0.0.1"), ("b", "two", "10.0.0.2")]);
        let admits = |agent: &str, hostname: &str, address: &str, sessions: &[&str]| {
            hosts.admits(&v1::AgentRegister {
                agent_id: agent.to_owned(),
                hostname: hostname.to_owned(),
                advertise_address: address.to_owned(),
                session_ids: sessions.iter().map(|session| (*session).to_owned()).collect(),
                ..Default::default()
            })
        };
        let refused = admits("c", "three", "127.0.0.1", &[]).unwrap_err().to_string();
        for part in ["agent c on three advertises 127.0.0.1", "agent a on one", "--advertise-address"] {
            assert!(refused.contains(part), "{refused}");
        }
        assert!(admits("b", "two", "::1", &[]).unwrap_err().to_string().contains("agent a on one"));
        assert_eq!(admits("c", "three", "127.0.0.1", &["s"]), Ok(()), "its ranks must not be lost");
        assert_eq!(admits("c", "three", "10.0.0.3", &[]), Ok(()));
        let alone = self::hosts(&[("a", "one", "127.0.0.1")]);
        let again = |agent: &str| v1::AgentRegister {
            agent_id: agent.to_owned(),
            hostname: "one".to_owned(),
            advertise_address: "127.0.0.1".to_owned(),
            ..Default::default()
        };
        assert_eq!((alone.admits(&again("a")), alone.admits(&again("b"))), (Ok(()), Ok(())));
    }

    #[test]
    fn a_loopback_address_is_a_problem_if_ranks_are_on_several_machines() {
        let hosts = hosts(&[
            ("a", "one", "127.0.0.1"),
            ("b", "one", "127.0.0.1"),
            ("c", "two", "10.0.0.2"),
            ("d", "three", "::1"),
            ("e", "four", "10.0.0.4"),
        ]);
        let problem = |agents: &[&str]| hosts.problem(&agents.iter().copied().collect());
        assert_eq!(problem(&["a", "b"]), None, "one machine");
        assert_eq!(problem(&["c", "e"]), None);
        assert_eq!(problem(&["a"]), None);
        let message = problem(&["a", "b", "c"]).unwrap();
        assert!(
            message.contains("agent a on one advertises 127.0.0.1") && message.contains("agent c on two"),
            "{message}"
        );
        assert!(problem(&["d", "e"]).unwrap().contains("--advertise-address"));
    }
}

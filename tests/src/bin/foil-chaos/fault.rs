//! The faults of the schedule.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use foil_tests::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::{Cluster, children};

/// Time until a killed agent is restarted.
const AGENT_DOWN: Duration = Duration::from_millis(300);
/// Time for which a leader is stopped; longer than the leader timeout.
const LEADER_STOPPED: Duration = Duration::from_secs(7);
const AGENT_STOPPED: Duration = Duration::from_secs(3);
const PARTITION: Duration = Duration::from_secs(4);
const STORE_OUTAGE: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillRank,
    KillAgent,
    KillLeader,
    KillStandby,
    /// A rank hangs until the watchdog kills it.
    StopRank,
    /// A leader sleeps through the election of another.
    StopLeader,
    StopAgent,
    /// An agent's host is partitioned for a while.
    Partition,
    /// Requests to the store are refused, reset, delayed, or performed with the reply lost.
    StoreFaults,
    StoreOutage,
}

/// Faults with their weights and names.
const KINDS: [(Fault, u32, &str); 10] = [
    (Fault::KillRank, 30, "rank killed"),
    (Fault::KillAgent, 14, "agent killed"),
    (Fault::KillLeader, 16, "leader killed"),
    (Fault::KillStandby, 4, "standby killed"),
    (Fault::StopRank, 3, "rank stopped"),
    (Fault::StopLeader, 6, "leader stopped"),
    (Fault::StopAgent, 5, "agent stopped"),
    (Fault::Partition, 8, "network partition"),
    (Fault::StoreFaults, 10, "store faults"),
    (Fault::StoreOutage, 4, "store outage"),
];

impl Fault {
    /// A random fault that is possible in this cluster.
    pub(crate) fn random(random: &mut fastrand::Rng, cluster: &Cluster) -> Self {
        let possible = |fault: Self| match fault {
            Self::Partition => cluster.hosts.are_separate(),
            Self::StoreFaults | Self::StoreOutage => cluster.proxy.is_some(),
            _ => true,
        };
        let kinds: Vec<_> = KINDS.into_iter().filter(|(fault, ..)| possible(*fault)).collect();
        let mut drawn = random.u32(0..kinds.iter().map(|(_, weight, _)| weight).sum());
        for (fault, weight, _) in kinds {
            match drawn.checked_sub(weight) {
                Some(left) => drawn = left,
                None => return fault,
            }
        }
        Self::KillRank
    }

    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(fault, ..)| *fault == self).map_or("", |(.., name)| name)
    }

    /// Whether the fault kills a process.
    pub(crate) fn is_death(self) -> bool {
        matches!(self, Self::KillRank | Self::KillAgent | Self::KillLeader | Self::KillStandby)
    }

    /// Injects the fault and waits for its end. Afterwards killed processes are running again. Returns false
    /// if there was no process for it.
    pub(crate) fn inject(self, cluster: &mut Cluster, random: &mut fastrand::Rng) -> Result<bool> {
        let agent = random.usize(0..cluster.agents.len());
        match self {
            Self::KillRank | Self::StopRank => return Ok(signal_rank(self, cluster, agent, random)),
            Self::KillAgent => {
                cluster.agents[agent].process().signal(Signal::SIGKILL);
                thread::sleep(AGENT_DOWN);
                cluster.agents[agent].restart();
            }
            Self::KillLeader | Self::KillStandby => {
                let leader = cluster.leader()?;
                let number = if self == Self::KillLeader { leader } else { 1 - leader };
                cluster.coordinators[number].process().signal(Signal::SIGKILL);
                cluster.coordinators[number].restart();
            }
            Self::StopLeader => {
                let leader = cluster.leader()?;
                pause(cluster.coordinators[leader].process(), LEADER_STOPPED);
            }
            Self::StopAgent => pause(cluster.agents[agent].process(), AGENT_STOPPED),
            Self::Partition => {
                cluster.hosts.connect(agent, false)?;
                thread::sleep(PARTITION);
                cluster.hosts.connect(agent, true)?;
            }
            Self::StoreFaults => {
                let delay = Duration::from_millis(30);
                let faults = Faults { refuse: 15, reset: 10, lose_reply: 15, delay, ..Faults::default() };
                with_store_faults(cluster, faults, Duration::from_secs(random.u64(2..6)));
            }
            Self::StoreOutage => with_store_faults(cluster, Faults::OUTAGE, STORE_OUTAGE),
        }
        Ok(true)
    }
}

/// Sends a signal to a rank of this agent, or of the other agent if it has none.
fn signal_rank(fault: Fault, cluster: &Cluster, agent: usize, random: &mut fastrand::Rng) -> bool {
    let signal = if fault == Fault::StopRank { Signal::SIGSTOP } else { Signal::SIGKILL };
    for agent in [agent, 1 - agent] {
        let ranks = children(cluster.agents[agent].process().id());
        if let Some(&rank) = random.choice(&ranks) {
            // The rank may have ended by itself in between.
            return kill(Pid::from_raw(rank), signal).is_ok();
        }
    }
    false
}

fn pause(process: &foil_tests::Process, time: Duration) {
    process.signal(Signal::SIGSTOP);
    thread::sleep(time);
    process.signal(Signal::SIGCONT);
}

fn with_store_faults(cluster: &Cluster, faults: Faults, time: Duration) {
    let Some(proxy) = &cluster.proxy else { return };
    proxy.set(faults);
    thread::sleep(time);
    proxy.set(Faults::default());
}

//! One thing that goes wrong.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use foil_tests::Faults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::world::{World, children};

/// A killed agent is away for so long.
const AWAY: Duration = Duration::from_millis(300);
/// Longer than a leader may be silent.
const LEADER_STOPPED: Duration = Duration::from_secs(7);
const AGENT_STOPPED: Duration = Duration::from_secs(3);
const APART: Duration = Duration::from_secs(4);
const STORE_AWAY: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    KillRank,
    KillAgent,
    KillLeader,
    KillStandby,
    /// A rank stands still until it is taken for dead.
    StopRank,
    /// A leader sleeps through the election of another.
    StopLeader,
    StopAgent,
    /// An agent's host is cut off the network for a while.
    Partition,
    /// Requests are refused, reset, held up, or done with their reply lost.
    StoreFaults,
    StoreOutage,
}

/// How often each is drawn, and its name.
const KINDS: [(Trouble, u32, &str); 10] = [
    (Trouble::KillRank, 30, "rank killed"),
    (Trouble::KillAgent, 14, "agent killed"),
    (Trouble::KillLeader, 16, "leader killed"),
    (Trouble::KillStandby, 4, "standby killed"),
    (Trouble::StopRank, 3, "rank stopped"),
    (Trouble::StopLeader, 6, "leader stopped"),
    (Trouble::StopAgent, 5, "agent stopped"),
    (Trouble::Partition, 8, "network cut"),
    (Trouble::StoreFaults, 10, "store faults"),
    (Trouble::StoreOutage, 4, "store away"),
];

impl Trouble {
    /// One that this world can have.
    pub(crate) fn draw(random: &mut fastrand::Rng, world: &World) -> Self {
        let possible = |trouble: Self| match trouble {
            Self::Partition => world.hosts.are_apart(),
            Self::StoreFaults | Self::StoreOutage => world.proxy.is_some(),
            _ => true,
        };
        let kinds: Vec<_> = KINDS.into_iter().filter(|(trouble, ..)| possible(*trouble)).collect();
        let mut drawn = random.u32(0..kinds.iter().map(|(_, weight, _)| weight).sum());
        for (trouble, weight, _) in kinds {
            match drawn.checked_sub(weight) {
                Some(left) => drawn = left,
                None => return trouble,
            }
        }
        Self::KillRank
    }

    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(trouble, ..)| *trouble == self).map_or("", |(.., name)| name)
    }

    /// Whether a process is gone by it at once.
    pub(crate) fn is_death(self) -> bool {
        matches!(self, Self::KillRank | Self::KillAgent | Self::KillLeader | Self::KillStandby)
    }

    /// Lets it happen, to its end; whatever died is running again afterwards. False if there was nobody that it could
    /// happen to.
    pub(crate) fn inflict(self, world: &mut World, random: &mut fastrand::Rng) -> Result<bool> {
        let agent = random.usize(0..world.agents.len());
        match self {
            Self::KillRank | Self::StopRank => return Ok(hit_rank(self, world, agent, random)),
            Self::KillAgent => {
                world.agents[agent].process().signal(Signal::SIGKILL);
                thread::sleep(AWAY);
                world.agents[agent].start_again();
            }
            Self::KillLeader | Self::KillStandby => {
                let leader = world.leader()?;
                let number = if self == Self::KillLeader { leader } else { 1 - leader };
                world.coordinators[number].process().signal(Signal::SIGKILL);
                world.coordinators[number].start_again();
            }
            Self::StopLeader => {
                let leader = world.leader()?;
                pause(world.coordinators[leader].process(), LEADER_STOPPED);
            }
            Self::StopAgent => pause(world.agents[agent].process(), AGENT_STOPPED),
            Self::Partition => {
                world.hosts.connect(agent, false)?;
                thread::sleep(APART);
                world.hosts.connect(agent, true)?;
            }
            Self::StoreFaults => {
                let delay = Duration::from_millis(30);
                let faults = Faults { refuse: 15, reset: 10, lose_reply: 15, delay, ..Faults::default() };
                weather(world, faults, Duration::from_secs(random.u64(2..6)));
            }
            Self::StoreOutage => weather(world, Faults::OUTAGE, STORE_AWAY),
        }
        Ok(true)
    }
}

/// A rank of this agent, or of the other where it has none.
fn hit_rank(trouble: Trouble, world: &World, agent: usize, random: &mut fastrand::Rng) -> bool {
    let signal = if trouble == Trouble::StopRank { Signal::SIGSTOP } else { Signal::SIGKILL };
    for agent in [agent, 1 - agent] {
        let ranks = children(world.agents[agent].process().id());
        if let Some(&rank) = random.choice(&ranks) {
            // It may have ended by itself meanwhile.
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

fn weather(world: &World, faults: Faults, time: Duration) {
    let Some(proxy) = &world.proxy else { return };
    proxy.set(faults);
    thread::sleep(time);
    proxy.set(Faults::default());
}

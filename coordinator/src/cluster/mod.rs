//! Agents and their devices: which agents are connected, and which rank process holds which device. Pure:
//! time is passed in.

mod supply;
mod trust;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_proto::v1;

pub use self::supply::Release;
pub use self::trust::AgentFault;
use self::trust::Trust;
pub use self::view::{AgentView, DeviceView, LinkView};
use crate::clock::Now;

/// Timeouts after which an agent is considered lost.
#[derive(Debug, Clone, Copy)]
pub struct Liveness {
    /// For an agent with an open stream but without heartbeats, or one that has not registered since this
    /// coordinator took over: the agent's own fence plus some slack, so that its ranks are dead before their
    /// work goes to others.
    pub heartbeat_timeout: Duration,
    /// For an agent without a stream.
    pub reconnect_timeout: Duration,
    /// For an agent to report the death of processes that it was asked to stop.
    pub stop_timeout: Duration,
    /// An agent that has been silent for this long, a few heartbeats, may be replaced by another process of
    /// the same name.
    pub takeover_after: Duration,
    /// How long a faulty agent is excluded the first time.
    pub probation: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            heartbeat_timeout: Duration::from_secs(65),
            reconnect_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
            takeover_after: Duration::from_secs(6),
            probation: Duration::from_secs(30),
        }
    }
}

/// One device of one agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placement {
    pub agent: String,
    pub device: String,
}

/// All agents that are not lost.
#[derive(Debug)]
pub struct Cluster {
    liveness: Liveness,
    agents: BTreeMap<String, Agent>,
}

/// Another process is connected under an agent's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an agent named {agent} is connected already, from host {host}, and was heard {:.1} s ago; give --agent-id another \
     value here, or stop that one", heard.as_secs_f64()
)]
pub struct NameTaken {
    pub agent: String,
    pub host: String,
    pub heard: Duration,
}

/// Agents by the state of their streams, and devices by kind and state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClusterCounts {
    /// By `connected`, `disconnected` or `expected` (known from a previous leader, not registered yet).
    pub agents: BTreeMap<&'static str, usize>,
    /// By kind and `held`, `free` or `unreachable`.
    pub devices: BTreeMap<(String, &'static str), usize>,
}

#[derive(Debug)]
struct Agent {
    link: Link,
    /// Random id of its process; empty if unknown.
    instance: String,
    hostname: String,
    /// None until the agent registers.
    release: Option<Release>,
    /// When the agent's process registered, or when the cluster began to wait for it.
    since: Duration,
    trust: Trust,
    /// The agent is shutting down and starts no more ranks.
    leaving: bool,
    devices: Vec<Device>,
    /// Processes started by a previous leader that were asked to stop and have not been reported dead.
    orphans: BTreeMap<String, Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up {
        connection: u64,
        heard: Duration,
    },
    Down {
        since: Duration,
    },
    /// Known from a previous leader's log; not registered yet.
    Expected {
        since: Duration,
    },
}

#[derive(Debug)]
struct Device {
    device: v1::Device,
    /// Session of the rank process on the device. At most one: NCCL refuses two ranks on one device.
    holder: Option<String>,
    /// Since when the device has had this holder, or none.
    since: Duration,
}

/// The processes of a registering agent, compared with what was known about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Sessions that should be running there but are not.
    pub lost: Vec<String>,
    /// Sessions that are running there but should not be; they must be stopped.
    pub orphans: Vec<String>,
    /// Sessions that are running there as expected.
    pub kept: Vec<String>,
}

impl Cluster {
    pub fn new(liveness: Liveness) -> Self {
        Self { liveness, agents: BTreeMap::new() }
    }

    /// Checks an agent's name: while a process of that name is connected and responsive, only that process
    /// may register again.
    pub fn admits(&self, hello: &v1::AgentRegister, now: Now) -> Result<(), NameTaken> {
        let Some(known) = self.agents.get(&hello.agent_id) else { return Ok(()) };
        let Link::Up { heard, .. } = known.link else { return Ok(()) };
        let heard = now.since(heard);
        if known.is_process(&hello.instance) || heard >= self.liveness.takeover_after {
            return Ok(());
        }
        Err(NameTaken { agent: hello.agent_id.clone(), host: known.hostname.clone(), heard })
    }

    /// Registers an agent that is new or returns. Its devices keep their holders.
    pub fn register(&mut self, hello: &v1::AgentRegister, connection: u64, now: Now) -> Registered {
        let running: BTreeSet<&String> = hello.session_ids.iter().collect();
        let known = self.agents.remove(&hello.agent_id);
        let same = known.as_ref().is_some_and(|known| known.is_process(&hello.instance));
        let since = known.as_ref().map_or(now.mono, |known| known.since);
        let (mut before, trust) = known.map(|known| (known.devices, known.trust)).unwrap_or_default();
        // A restarted process may have been repaired.
        let trust = if same { trust } else { Trust::default() };
        let mut registered = Registered::default();
        for holder in before.iter_mut().filter_map(|device| device.holder.as_mut()) {
            let sessions = if running.contains(holder) { &mut registered.kept } else { &mut registered.lost };
            sessions.push(holder.clone());
        }
        let held: BTreeSet<&String> = before.iter().filter_map(|device| device.holder.as_ref()).collect();
        registered.orphans = running.difference(&held).map(|session| (*session).clone()).collect();
        let known = |id: &str| before.iter().find(|known| known.device.id == id);
        let devices = hello.devices.iter().map(|device| {
            let (holder, since) =
                known(&device.id).map_or((None, now.mono), |known| (known.holder.clone(), known.since));
            Device { device: device.clone(), holder, since }
        });
        let devices = devices.collect();
        let orphans = registered.orphans.iter().map(|session| (session.clone(), now.mono)).collect();
        let link = Link::Up { connection, heard: now.mono };
        let agent = Agent {
            link,
            instance: hello.instance.clone(),
            hostname: hello.hostname.clone(),
            release: Some(Release::from(hello)),
            since: if same { since } else { now.mono },
            trust,
            leaving: false,
            devices,
            orphans,
        };
        self.agents.insert(hello.agent_id.clone(), agent);
        registered
    }

    /// Records a process that a previous leader started on the device. Its agent is awaited for as long as
    /// the process can live without a leader.
    pub fn expect(&mut self, placement: &Placement, kind: &str, session: &str, now: Now) {
        let agent = self.agents.entry(placement.agent.clone()).or_insert_with(|| Agent {
            link: Link::Expected { since: now.mono },
            instance: String::new(),
            hostname: String::new(),
            release: None,
            since: now.mono,
            trust: Trust::default(),
            leaving: false,
            devices: Vec::new(),
            orphans: BTreeMap::new(),
        });
        let device = v1::Device { id: placement.device.clone(), kind: kind.to_owned(), ..Default::default() };
        agent.devices.push(Device { device, holder: Some(session.to_owned()), since: now.mono });
    }

    /// Records a message on an agent's stream. False if a newer stream has replaced the stream.
    pub fn heard(&mut self, agent: &str, connection: u64, now: Now) -> bool {
        match self.agents.get_mut(agent).map(|agent| &mut agent.link) {
            Some(Link::Up { connection: current, heard }) if *current == connection => {
                *heard = now.mono;
                true
            }
            _ => false,
        }
    }

    /// Marks an agent that is shutting down: its devices take no more ranks. Returns the sessions on them.
    pub fn leaving(&mut self, agent: &str, connection: u64, now: Now) -> Vec<String> {
        if !self.heard(agent, connection, now) {
            return Vec::new();
        }
        let Some(agent) = self.agents.get_mut(agent) else { return Vec::new() };
        agent.leaving = true;
        agent.devices.iter().filter_map(|device| device.holder.clone()).collect()
    }

    /// Records that the stream is closed; the agent may reconnect.
    pub fn disconnected(&mut self, agent: &str, connection: u64, now: Now) {
        if let Some(agent) = self.agents.get_mut(agent)
            && matches!(agent.link, Link::Up { connection: current, .. } if current == connection)
        {
            agent.link = Link::Down { since: now.mono };
        }
    }

    /// Restarts the timeouts of disconnected agents, because none can register at present.
    pub fn restart_reconnect_timeouts(&mut self, now: Now) {
        for agent in self.agents.values_mut() {
            match &mut agent.link {
                Link::Down { since } | Link::Expected { since } => *since = now.mono,
                Link::Up { .. } => {}
            }
        }
    }

    /// Records that a process is dead, whichever leader started it.
    pub fn exited(&mut self, agent: &str, session: &str) {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.orphans.remove(session);
        }
    }

    /// Removes the agents whose timeouts have passed; returns them with the sessions on their devices.
    pub fn expire(&mut self, now: Now) -> Vec<(String, Vec<String>)> {
        let liveness = self.liveness;
        for agent in self.agents.values_mut() {
            agent.orphans.retain(|_, since| now.since(*since) < liveness.stop_timeout);
            agent.trust.lift(now);
        }
        let lost: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, agent)| match agent.link {
                // The exits of its ranks have been reported, so there is nothing left to wait for.
                Link::Down { .. }
                    if agent.leaving && agent.devices.iter().all(|device| device.holder.is_none()) =>
                {
                    true
                }
                Link::Up { heard, .. } => now.since(heard) >= liveness.heartbeat_timeout,
                Link::Down { since } => now.since(since) >= liveness.reconnect_timeout,
                Link::Expected { since } => now.since(since) >= liveness.heartbeat_timeout,
            })
            .map(|(id, _)| id.clone())
            .collect();
        lost.into_iter()
            .filter_map(|id| {
                let agent = self.agents.remove(&id)?;
                Some((id, agent.devices.into_iter().filter_map(|device| device.holder).collect()))
            })
            .collect()
    }

    /// Records a fault of the agent. Returns the length of its exclusion if one starts now.
    pub fn strike(&mut self, agent: &str, fault: AgentFault, now: Now) -> Option<Duration> {
        let probation = self.liveness.probation;
        self.agents.get_mut(agent)?.trust.strike(fault, probation, now)
    }

    /// Records that a rank of the agent has connected.
    pub fn record_connection(&mut self, agent: &str) {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.trust.record_connection();
        }
    }

    /// True if another trusted agent has devices of the kind.
    pub fn has_alternative(&self, agent: &str, kind: &str) -> bool {
        self.agents.iter().any(|(id, other)| id != agent && other.is_trusted(kind))
    }

    /// Number of excluded agents, which get no ranks while there are others.
    pub fn excluded(&self) -> usize {
        self.agents.values().filter(|agent| agent.trust.is_excluded()).count()
    }

    pub fn assign(&mut self, placement: &Placement, session: &str, now: Now) {
        if let Some(device) = self.device(placement) {
            (device.holder, device.since) = (Some(session.to_owned()), now.mono);
        }
    }

    /// Frees a device, if the session still holds it.
    pub fn release(&mut self, placement: &Placement, session: &str) {
        if let Some(device) = self.device(placement)
            && device.holder.as_deref() == Some(session)
        {
            device.holder = None;
        }
    }

    /// Number of agents and devices in each state.
    pub fn counts(&self) -> ClusterCounts {
        const STATES: [&str; 3] = ["held", "free", "unreachable"];
        let mut counts = ClusterCounts::default();
        let mut devices: BTreeMap<&str, [usize; STATES.len()]> = BTreeMap::new();
        for agent in self.agents.values() {
            let (state, reachable) = match agent.link {
                Link::Up { .. } => ("connected", true),
                Link::Down { .. } => ("disconnected", false),
                Link::Expected { .. } => ("expected", false),
            };
            *counts.agents.entry(state).or_default() += 1;
            for device in &agent.devices {
                let state = match (&device.holder, reachable) {
                    (Some(_), _) => 0,
                    (None, true) => 1,
                    (None, false) => 2,
                };
                devices.entry(&device.device.kind).or_default()[state] += 1;
            }
        }
        // States without devices are reported too, so that their curves drop to 0 instead of ending.
        for (kind, numbers) in devices {
            for (state, number) in STATES.into_iter().zip(numbers) {
                counts.devices.insert((kind.to_owned(), state), number);
            }
        }
        counts
    }

    /// Each agent with the time since it was last heard.
    pub fn ages(&self, now: Now) -> impl Iterator<Item = (&str, Duration)> {
        self.agents.iter().map(move |(id, agent)| {
            let (Link::Up { heard: since, .. } | Link::Down { since } | Link::Expected { since }) =
                agent.link;
            (id.as_str(), now.since(since))
        })
    }

    fn device(&mut self, placement: &Placement) -> Option<&mut Device> {
        let agent = self.agents.get_mut(&placement.agent)?;
        agent.devices.iter_mut().find(|device| device.device.id == placement.device)
    }
}

impl Agent {
    fn is_process(&self, instance: &str) -> bool {
        // Hashes are compared in constant time.
        !instance.is_empty() && blake3::hash(self.instance.as_bytes()) == blake3::hash(instance.as_bytes())
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    fn takes_ranks(&self) -> bool {
        self.is_up() && !self.leaving && self.orphans.is_empty()
    }

    fn is_trusted(&self, kind: &str) -> bool {
        self.is_up() && !self.leaving && !self.trust.is_excluded() && self.devices(kind).next().is_some()
    }

    fn devices<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Device> {
        self.devices.iter().filter(move |device| device.device.kind == kind)
    }
}

#[cfg(test)]
mod tests;

//! Agents and their devices: who is there, and which rank process holds which device. Pure: time is passed in.

mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_proto::v1;

pub use self::trust::Fault;
use self::trust::Trust;
use crate::clock::Now;
use crate::queue::Supply;

/// How long the coordinator goes on believing in an agent it does not hear.
#[derive(Debug, Clone, Copy)]
pub struct Liveness {
    /// Without a heartbeat on an open stream, or without a word since this coordinator leads: the agent's own fence and some slack, so that its ranks are dead before
    /// their work is given to others.
    pub silence: Duration,
    /// Without a stream.
    pub reconnect: Duration,
    /// For the death of processes that an agent was told to stop.
    pub reaping: Duration,
    /// Unheard for so long, some heartbeats, an agent may be replaced by another process of its name.
    pub doubt: Duration,
    /// For which an agent that starts no ranks is set aside, the first time.
    pub probation: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(65),
            reconnect: Duration::from_secs(10),
            reaping: Duration::from_secs(10),
            doubt: Duration::from_secs(6),
            probation: Duration::from_secs(30),
        }
    }
}

/// One device of one agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub agent: String,
    pub device: String,
}

/// All agents that are believed in.
#[derive(Debug)]
pub struct Cluster {
    liveness: Liveness,
    agents: BTreeMap<String, Agent>,
}

/// Another process of an agent's name is there.
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
pub struct Census {
    /// connected, disconnected, or expected: known to a coordinator before this one.
    pub agents: BTreeMap<&'static str, usize>,
    /// held by a rank, free, or unreachable as their agents are.
    pub devices: BTreeMap<(String, &'static str), usize>,
}

#[derive(Debug)]
struct Agent {
    link: Link,
    /// Drawn by its process; empty where it is not known.
    instance: String,
    hostname: String,
    trust: Trust,
    /// It was asked to end, and starts no more ranks.
    leaving: bool,
    devices: Vec<Device>,
    /// Told to stop, not yet reported dead: what a coordinator before this one had started.
    strays: BTreeMap<String, Duration>,
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
    /// A coordinator before this one knew it; nothing was heard of it yet.
    Expected {
        since: Duration,
    },
}

#[derive(Debug)]
struct Device {
    device: v1::Device,
    /// The session of the rank process on it. One at most: NCCL refuses two ranks on one device.
    holder: Option<String>,
}

/// What a registration tells about processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Sessions believed to run there that do not.
    pub gone: Vec<String>,
    /// Sessions that run there and should not: to be stopped.
    pub strays: Vec<String>,
    /// Sessions that run there as believed.
    pub kept: Vec<String>,
}

impl Cluster {
    pub fn new(liveness: Liveness) -> Self {
        Self { liveness, agents: BTreeMap::new() }
    }

    /// Whether an agent may come in under its name: while a process of that name is connected and heard, only that one may,
    /// with another stream.
    pub fn admits(&self, hello: &v1::AgentRegister, now: Now) -> Result<(), NameTaken> {
        let Some(known) = self.agents.get(&hello.agent_id) else { return Ok(()) };
        let Link::Up { heard, .. } = known.link else { return Ok(()) };
        let heard = now.since(heard);
        if known.is_process(&hello.instance) || heard >= self.liveness.doubt {
            return Ok(());
        }
        Err(NameTaken { agent: hello.agent_id.clone(), host: known.hostname.clone(), heard })
    }

    /// An agent came, or came back. Its devices keep their holders.
    pub fn register(&mut self, hello: &v1::AgentRegister, connection: u64, now: Now) -> Registered {
        let running: BTreeSet<&String> = hello.session_ids.iter().collect();
        let known = self.agents.remove(&hello.agent_id);
        let same = known.as_ref().is_some_and(|known| known.is_process(&hello.instance));
        let (mut before, trust) = known.map(|known| (known.devices, known.trust)).unwrap_or_default();
        // A process that was started anew may have been mended.
        let trust = if same { trust } else { Trust::default() };
        let mut registered = Registered::default();
        for holder in before.iter_mut().filter_map(|device| device.holder.as_mut()) {
            let told = if running.contains(holder) { &mut registered.kept } else { &mut registered.gone };
            told.push(holder.clone());
        }
        let held: BTreeSet<&String> = before.iter().filter_map(|device| device.holder.as_ref()).collect();
        registered.strays = running.difference(&held).map(|session| (*session).clone()).collect();
        let devices = hello
            .devices
            .iter()
            .map(|device| Device {
                device: device.clone(),
                holder: before
                    .iter()
                    .find(|known| known.device.id == device.id)
                    .and_then(|known| known.holder.clone()),
            })
            .collect();
        let strays = registered.strays.iter().map(|session| (session.clone(), now.mono)).collect();
        let link = Link::Up { connection, heard: now.mono };
        let (instance, hostname) = (hello.instance.clone(), hello.hostname.clone());
        let agent = Agent { link, instance, hostname, trust, leaving: false, devices, strays };
        self.agents.insert(hello.agent_id.clone(), agent);
        registered
    }

    /// A coordinator before this one put a process on the device; its agent is waited for as long as the process can
    /// live without one.
    pub fn expect(&mut self, place: &Place, kind: &str, session: &str, now: Now) {
        let agent = self.agents.entry(place.agent.clone()).or_insert_with(|| Agent {
            link: Link::Expected { since: now.mono },
            instance: String::new(),
            hostname: String::new(),
            trust: Trust::default(),
            leaving: false,
            devices: Vec::new(),
            strays: BTreeMap::new(),
        });
        let device = v1::Device { id: place.device.clone(), kind: kind.to_owned(), ..Default::default() };
        agent.devices.push(Device { device, holder: Some(session.to_owned()) });
    }

    /// Anything heard on an agent's stream. False where another stream has taken its place.
    pub fn heard(&mut self, agent: &str, connection: u64, now: Now) -> bool {
        match self.agents.get_mut(agent).map(|agent| &mut agent.link) {
            Some(Link::Up { connection: current, heard }) if *current == connection => {
                *heard = now.mono;
                true
            }
            _ => false,
        }
    }

    /// The agent was asked to end: its devices take no more ranks. Answers with the sessions on them.
    pub fn leaving(&mut self, agent: &str, connection: u64, now: Now) -> Vec<String> {
        if !self.heard(agent, connection, now) {
            return Vec::new();
        }
        let Some(agent) = self.agents.get_mut(agent) else { return Vec::new() };
        agent.leaving = true;
        agent.devices.iter().filter_map(|device| device.holder.clone()).collect()
    }

    /// The stream is closed; the agent may come back.
    pub fn disconnected(&mut self, agent: &str, connection: u64, now: Now) {
        if let Some(agent) = self.agents.get_mut(agent)
            && matches!(agent.link, Link::Up { connection: current, .. } if current == connection)
        {
            agent.link = Link::Down { since: now.mono };
        }
    }

    /// A process is dead, whoever started it.
    pub fn exited(&mut self, agent: &str, session: &str) {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.strays.remove(session);
        }
    }

    /// Forgets the agents that were silent for too long; answers with them and the sessions on their devices.
    pub fn expire(&mut self, now: Now) -> Vec<(String, Vec<String>)> {
        let liveness = self.liveness;
        for agent in self.agents.values_mut() {
            agent.strays.retain(|_, since| now.since(*since) < liveness.reaping);
            agent.trust.lift(now);
        }
        let lost: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, agent)| match agent.link {
                // How its ranks ended was reported before, so nothing is left to wait for.
                Link::Down { .. }
                    if agent.leaving && agent.devices.iter().all(|device| device.holder.is_none()) =>
                {
                    true
                }
                Link::Up { heard, .. } => now.since(heard) >= liveness.silence,
                Link::Down { since } => now.since(since) >= liveness.reconnect,
                Link::Expected { since } => now.since(since) >= liveness.silence,
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

    /// `count` free devices of a kind, in a stable order, those of agents that gave no cause for complaint first; none
    /// where there are not so many.
    pub fn find(&self, kind: &str, count: usize) -> Option<Vec<Place>> {
        let mut agents: Vec<(&String, &Agent)> =
            self.in_use(kind).filter(|(_, agent)| agent.takes_ranks()).collect();
        agents.sort_by_key(|(_, agent)| agent.trust.strikes());
        let places: Vec<Place> = agents
            .into_iter()
            .flat_map(|(id, agent)| agent.devices.iter().map(move |device| (id, device)))
            .filter(|(_, device)| device.device.kind == kind && device.holder.is_none())
            .map(|(id, device)| Place { agent: id.clone(), device: device.device.id.clone() })
            .take(count)
            .collect();
        (places.len() == count).then_some(places)
    }

    /// What there is of a kind.
    pub fn supply(&self, kind: &str) -> Supply {
        let mut supply = Supply::default();
        for (_, agent) in self.in_use(kind) {
            supply.connected += agent.devices(kind).count();
            if agent.takes_ranks() {
                supply.free += agent.devices(kind).filter(|device| device.holder.is_none()).count();
            }
        }
        let all: usize = self.agents.values().map(|agent| agent.devices(kind).count()).sum();
        supply.set_aside = all - supply.connected;
        supply
    }

    /// The agents to be given ranks: not those set aside, unless there is no other with devices of the kind.
    fn in_use(&self, kind: &str) -> impl Iterator<Item = (&String, &Agent)> {
        let others = self.agents.values().any(|agent| agent.is_trusted(kind));
        self.agents
            .iter()
            .filter(move |(_, agent)| !agent.leaving && (!others || !agent.trust.is_set_aside()))
    }

    /// Something went wrong through the agent's fault. Gives for how long it is set aside, where that begins now.
    pub fn strike(&mut self, agent: &str, fault: Fault, now: Now) -> Option<Duration> {
        let probation = self.liveness.probation;
        self.agents.get_mut(agent)?.trust.strike(fault, probation, now)
    }

    /// A rank of the agent's connected.
    pub fn vouch(&mut self, agent: &str) {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.trust.vouch();
        }
    }

    /// Whether another agent, in good standing, has devices of the kind.
    pub fn has_stand_in(&self, agent: &str, kind: &str) -> bool {
        self.agents.iter().any(|(id, other)| id != agent && other.is_trusted(kind))
    }

    /// Agents that get no ranks while there are others.
    pub fn set_aside(&self) -> usize {
        self.agents.values().filter(|agent| agent.trust.is_set_aside()).count()
    }

    pub fn hold(&mut self, place: &Place, session: &str) {
        if let Some(device) = self.device(place) {
            device.holder = Some(session.to_owned());
        }
    }

    /// Frees a device, if that session still holds it.
    pub fn release(&mut self, place: &Place, session: &str) {
        if let Some(device) = self.device(place)
            && device.holder.as_deref() == Some(session)
        {
            device.holder = None;
        }
    }

    /// How many agents and devices are in which state.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for agent in self.agents.values() {
            let (state, reachable) = match agent.link {
                Link::Up { .. } => ("connected", true),
                Link::Down { .. } => ("disconnected", false),
                Link::Expected { .. } => ("expected", false),
            };
            *census.agents.entry(state).or_default() += 1;
            for device in &agent.devices {
                let state = match (&device.holder, reachable) {
                    (Some(_), _) => "held",
                    (None, true) => "free",
                    (None, false) => "unreachable",
                };
                *census.devices.entry((device.device.kind.clone(), state)).or_default() += 1;
            }
        }
        census
    }

    /// Each agent and the time since it was last heard.
    pub fn ages(&self, now: Now) -> impl Iterator<Item = (&str, Duration)> {
        self.agents.iter().map(move |(id, agent)| {
            let (Link::Up { heard: since, .. } | Link::Down { since } | Link::Expected { since }) =
                agent.link;
            (id.as_str(), now.since(since))
        })
    }

    fn device(&mut self, place: &Place) -> Option<&mut Device> {
        let agent = self.agents.get_mut(&place.agent)?;
        agent.devices.iter_mut().find(|device| device.device.id == place.device)
    }
}

impl Agent {
    fn is_process(&self, instance: &str) -> bool {
        // By their hashes, which are compared in constant time.
        !instance.is_empty() && blake3::hash(self.instance.as_bytes()) == blake3::hash(instance.as_bytes())
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    fn takes_ranks(&self) -> bool {
        self.is_up() && !self.leaving && self.strays.is_empty()
    }

    fn is_trusted(&self, kind: &str) -> bool {
        self.is_up() && !self.leaving && !self.trust.is_set_aside() && self.devices(kind).next().is_some()
    }

    fn devices<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Device> {
        self.devices.iter().filter(move |device| device.device.kind == kind)
    }
}

#[cfg(test)]
mod tests;

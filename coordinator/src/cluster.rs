//! Agents and their devices: who is there, and which rank process holds which device. Pure: time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foil_proto::v1;

use crate::clock::Now;

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
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(65),
            reconnect: Duration::from_secs(10),
            reaping: Duration::from_secs(10),
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

#[derive(Debug)]
struct Agent {
    link: Link,
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

    /// An agent came, or came back. Its devices keep their holders.
    pub fn register(&mut self, hello: &v1::AgentRegister, connection: u64, now: Now) -> Registered {
        let running: BTreeSet<&String> = hello.session_ids.iter().collect();
        let mut before = self.agents.remove(&hello.agent_id).map(|agent| agent.devices).unwrap_or_default();
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
        self.agents.insert(hello.agent_id.clone(), Agent { link, devices, strays });
        registered
    }

    /// A coordinator before this one put a process on the device; its agent is waited for as long as the process can
    /// live without one.
    pub fn expect(&mut self, place: &Place, kind: &str, session: &str, now: Now) {
        let agent = self.agents.entry(place.agent.clone()).or_insert_with(|| Agent {
            link: Link::Expected { since: now.mono },
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
        }
        let lost: Vec<String> = self
            .agents
            .iter()
            .filter(|(_, agent)| match agent.link {
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

    /// `count` free devices of a kind, in a stable order; none where there are not so many.
    pub fn find(&self, kind: &str, count: usize) -> Option<Vec<Place>> {
        let places: Vec<Place> = self
            .agents
            .iter()
            .filter(|(_, agent)| matches!(agent.link, Link::Up { .. }) && agent.strays.is_empty())
            .flat_map(|(id, agent)| agent.devices.iter().map(move |device| (id, device)))
            .filter(|(_, device)| device.device.kind == kind && device.holder.is_none())
            .map(|(id, device)| Place { agent: id.clone(), device: device.device.id.clone() })
            .take(count)
            .collect();
        (places.len() == count).then_some(places)
    }

    /// Devices of a kind, held or free.
    pub fn devices(&self, kind: &str) -> usize {
        let of_kind = |device: &&Device| device.device.kind == kind;
        self.agents.values().map(|agent| agent.devices.iter().filter(of_kind).count()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Duration::from_secs(seconds), wall: seconds * 1000 }
    }

    fn agent(id: &str, devices: usize, sessions: &[&str]) -> v1::AgentRegister {
        let device =
            |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
        v1::AgentRegister {
            agent_id: id.into(),
            devices: (0..devices).map(device).collect(),
            session_ids: sessions.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::new(Liveness::default());
        cluster.register(&agent("a", 2, &[]), 1, at(0));
        cluster.register(&agent("b", 1, &[]), 2, at(0));
        cluster
    }

    #[test]
    fn a_device_holds_one_session() {
        let mut cluster = cluster();
        let places = cluster.find("cpu", 3).unwrap();
        assert!(cluster.find("cpu", 4).is_none() && cluster.find("cuda", 1).is_none());
        places.iter().enumerate().for_each(|(index, place)| cluster.hold(place, &format!("s{index}")));
        assert!(cluster.find("cpu", 1).is_none());
        cluster.release(&places[1], "another");
        assert!(cluster.find("cpu", 1).is_none());
        cluster.release(&places[1], "s1");
        assert_eq!(cluster.find("cpu", 1).unwrap(), [places[1].clone()]);
    }

    #[test]
    fn a_closed_stream_has_a_short_grace_and_a_silent_one_the_fence() {
        let mut cluster = cluster();
        let place = cluster.find("cpu", 1).unwrap().remove(0);
        cluster.hold(&place, "s");
        cluster.disconnected("a", 1, at(5));
        assert!(cluster.expire(at(14)).is_empty());
        assert_eq!(cluster.find("cpu", 2), None, "a disconnected agent gets no new work");
        assert_eq!(cluster.expire(at(15)), [("a".to_owned(), vec!["s".to_owned()])]);
        assert!(cluster.heard("b", 2, at(30)));
        assert!(!cluster.heard("b", 1, at(60)), "an older connection says nothing");
        assert!(cluster.expire(at(94)).is_empty());
        assert_eq!(cluster.expire(at(95)).len(), 1);
    }

    #[test]
    fn an_expected_agent_has_the_whole_fence_period_to_come() {
        let mut cluster = Cluster::new(Liveness::default());
        let place = Place { agent: "a".into(), device: "cpu:1".into() };
        cluster.expect(&place, "cpu", "kept", at(100));
        assert!(cluster.expire(at(164)).is_empty() && cluster.find("cpu", 1).is_none());
        let registered = cluster.register(&agent("a", 2, &["kept"]), 1, at(164));
        assert_eq!((registered.kept, registered.strays.len()), (vec!["kept".to_owned()], 0));
        assert_eq!(cluster.find("cpu", 1).unwrap()[0].device, "cpu:0");
        let mut alone = Cluster::new(Liveness::default());
        alone.expect(&place, "cpu", "kept", at(100));
        assert_eq!(alone.expire(at(165)), [("a".to_owned(), vec!["kept".to_owned()])]);
    }

    #[test]
    fn an_agent_that_comes_back_keeps_what_still_runs() {
        let mut cluster = cluster();
        let places = cluster.find("cpu", 2).unwrap();
        cluster.hold(&places[0], "kept");
        cluster.hold(&places[1], "died");
        cluster.disconnected("a", 1, at(1));
        let registered = cluster.register(&agent("a", 2, &["kept", "stray"]), 3, at(2));
        let expected =
            Registered { gone: vec!["died".into()], strays: vec!["stray".into()], kept: vec!["kept".into()] };
        assert_eq!(registered, expected);
        cluster.release(&places[1], "died");
        assert_eq!(cluster.find("cpu", 2), None, "a device may still be the stray's");
        cluster.exited("a", "stray");
        assert!(cluster.find("cpu", 2).is_some());
        cluster.disconnected("a", 1, at(3));
        assert!(cluster.expire(at(40)).is_empty(), "the end of the older stream is no news");
    }
}

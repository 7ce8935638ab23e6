//! The environment of two coordinators: time, network, machines, a client, and faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, agent_command, rank_command, rank_message::Message};
use object_store::memory::InMemory;

use super::checker::Checker;
use super::machines::{Agent, GangRendezvous, Rank, Stream};
use super::node::Node;
use super::rng::SimRng;
use super::store::{Delivery, Direction, Network, StoreMessage};
use super::{PlantedBug, URGENT};
use crate::clock::Now;
use crate::job::fixture::JOB;
use crate::lease::LeadershipTimeouts;

pub(super) const MILLI: Duration = Duration::from_millis(1);
/// Time at which faults stop, so that the job must end.
pub(super) const FAULTS_END: Duration = Duration::from_secs(40);
const LIMIT: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(500);
/// Number of times that the journals' tasks may run after each event.
const TURNS: usize = 4;

/// A scheduled event.
#[expect(clippy::large_enum_variant, reason = "few, and each moved once")]
#[derive(Debug)]
pub(super) enum SimEvent {
    StoreMessage(StoreMessage),
    /// A tick of a coordinator's clock.
    Tick {
        node: usize,
        process: u64,
    },
    Poll {
        node: usize,
        process: u64,
    },
    Heartbeat {
        node: usize,
        process: u64,
    },
    ToNode {
        stream: Stream,
        message: NodeMessage,
    },
    ToAgent {
        agent: String,
        stream: Stream,
        term: u64,
        command: agent_command::Command,
    },
    ToRank {
        session: String,
        stream: Stream,
        term: u64,
        command: rank_command::Command,
    },
    /// An agent notices that its stream has ended or was rejected.
    AgentDisconnected {
        agent: String,
        stream: u64,
    },
    RankDisconnected {
        session: String,
        stream: u64,
        rejection: Rejection,
    },
    AgentHeartbeat {
        agent: String,
    },
    RankConnect {
        session: String,
    },
    RankDone {
        session: String,
        task: u64,
    },
    Submit {
        job: &'static str,
    },
    Restart {
        node: usize,
    },
    Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejection {
    None,
    NotLeading,
    Stale,
}

/// A message from a machine or a client to a coordinator.
#[derive(Debug, Clone)]
pub(super) enum NodeMessage {
    Register(v1::AgentRegister),
    Heartbeat { agent: String, number: u64 },
    Exited { agent: String, session: String },
    AgentGone { agent: String },
    Hello(v1::RankHello),
    Report { session: String, message: Message },
    RankGone { session: String },
    StepsWritten { job: String, phase: String, key: String },
    Submit { job: &'static str },
}

pub(super) struct Simulator {
    pub(super) now: Duration,
    pub(super) rng: SimRng,
    queue: BTreeMap<(Duration, u64), SimEvent>,
    sequence: u64,
    pub(super) inner: Arc<InMemory>,
    network: Network,
    bug: Option<PlantedBug>,
    pub(super) nodes: Vec<Node>,
    pub(super) processes: u64,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) ranks: BTreeMap<String, Rank>,
    pub(super) rendezvous: GangRendezvous,
    streams: u64,
    /// Arrival time of a stream's last message, by direction: later messages do not overtake it.
    last: BTreeMap<(u64, bool), Duration>,
    pub(super) checker: Checker,
    pub(super) ended: BTreeSet<String>,
    /// Number of jobs.
    jobs: usize,
    /// The first violated invariant.
    pub(super) violation: Option<String>,
    /// Whether to print every event.
    pub(super) verbose: bool,
    pub(super) deaths: usize,
    pub(super) elections: u64,
    pub(super) leaderless_since: Option<Duration>,
    /// Durations without a leader during which no other fault occurred.
    pub(super) gaps: Vec<Duration>,
}

impl Simulator {
    pub(super) fn new(seed: u64, bug: Option<PlantedBug>, faults: bool) -> Self {
        let mut simulator = Self {
            now: Duration::from_secs(1),
            rng: SimRng(seed),
            queue: BTreeMap::new(),
            sequence: 0,
            inner: Arc::default(),
            network: Network::default(),
            bug,
            nodes: Vec::new(),
            processes: 0,
            agents: BTreeMap::new(),
            ranks: BTreeMap::new(),
            rendezvous: GangRendezvous::default(),
            streams: 0,
            last: BTreeMap::new(),
            checker: Checker::default(),
            ended: BTreeSet::new(),
            jobs: 1,
            violation: None,
            verbose: std::env::var_os(super::SEED).is_some(),
            deaths: 0,
            elections: 0,
            leaderless_since: None,
            gaps: Vec::new(),
        };
        for node in 0..2 {
            let started = simulator.start();
            simulator.nodes.push(started);
            simulator.set_clocks(node);
        }
        for agent in ["a", "b"] {
            let last_leader_contact = simulator.now;
            simulator.agents.insert(agent.to_owned(), Agent { last_leader_contact, ..Agent::default() });
            simulator.schedule_soon(SimEvent::AgentHeartbeat { agent: agent.to_owned() });
        }
        simulator.schedule_soon(SimEvent::Submit { job: JOB });
        if faults {
            simulator.schedule_after(2000, SimEvent::Fault);
        }
        if faults && seed.is_multiple_of(4) {
            simulator.jobs = 2;
            let pause = 1000 + simulator.rng.next() % 15_000;
            simulator.schedule_after(pause, SimEvent::Submit { job: URGENT });
        }
        simulator
    }

    /// Runs until shortly after the job's end, or until an invariant is violated.
    pub(super) async fn run(&mut self) {
        let mut until = LIMIT;
        while self.violation.is_none() {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            self.pass_messages();
            self.poll_nodes();
            if self.have_ended() && until == LIMIT {
                until = self.now + Duration::from_secs(20);
            }
            let Some(((at, _), event)) = self.queue.pop_first() else { return };
            self.now = self.now.max(at);
            if self.now > until {
                if !self.have_ended() {
                    self.violation = Some("a job never ended".to_owned());
                }
                return;
            }
            if let Some(woken) = self.wake_time(&event) {
                self.schedule_at(woken, event);
                continue;
            }
            if self.verbose && !matches!(event, SimEvent::StoreMessage(_)) {
                println!("{:9.3} {event:?}", self.now.as_secs_f64());
            }
            self.process_event(event);
        }
    }

    fn have_ended(&self) -> bool {
        self.ended.len() == self.jobs
    }

    pub(super) fn clock(&self) -> Now {
        Now { mono: self.now, wall: u64::try_from(self.now.as_millis()).unwrap() }
    }

    pub(super) fn start(&mut self) -> Node {
        self.processes += 1;
        Node::start(self.processes, &self.inner, &self.network, self.bug)
    }

    fn set_clocks(&mut self, node: usize) {
        let process = self.nodes[node].process;
        self.schedule_soon(SimEvent::Tick { node, process });
        self.schedule_soon(SimEvent::Poll { node, process });
        self.schedule_soon(SimEvent::Heartbeat { node, process });
    }

    // ---- time ----

    pub(super) fn schedule_at(&mut self, time: Duration, event: SimEvent) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), event);
    }

    pub(super) fn schedule_after(&mut self, millis: u64, event: SimEvent) {
        self.schedule_at(self.now + Duration::from_millis(millis), event);
    }

    pub(super) fn schedule_soon(&mut self, event: SimEvent) {
        let delay = self.rng.between(MILLI, 30 * MILLI);
        self.schedule_at(self.now + delay, event);
    }

    /// When a paused process handles an event; none if it is not paused.
    fn wake_time(&self, event: &SimEvent) -> Option<Duration> {
        let process = match event {
            SimEvent::Tick { process, .. }
            | SimEvent::Poll { process, .. }
            | SimEvent::Heartbeat { process, .. } => *process,
            SimEvent::ToNode { stream, .. } => stream.process,
            SimEvent::StoreMessage(StoreMessage { process, direction: Direction::Reply, .. }) => *process,
            _ => return None,
        };
        let node = self.nodes.iter().find(|node| node.process == process)?;
        // One nanosecond later, so that nothing else happens at the same time.
        (node.paused_until > self.now).then(|| node.paused_until + Duration::from_nanos(1))
    }

    // ---- the network ----

    pub(super) fn open(&mut self, node: usize) -> Stream {
        self.streams += 1;
        Stream { id: self.streams, node, process: self.nodes[node].process }
    }

    pub(super) fn send_on_stream(&mut self, stream: u64, upwards: bool, event: SimEvent) {
        let arrival = self.now + self.rng.between(MILLI, 30 * MILLI);
        let last = self.last.entry((stream, upwards)).or_default();
        *last = arrival.max(*last);
        let at = *last;
        self.schedule_at(at, event);
    }

    pub(super) fn send(&mut self, stream: Stream, message: NodeMessage) {
        // Clients repeat messages that were not answered.
        if self.rng.one_in(12)
            && matches!(
                message,
                NodeMessage::Report { message: Message::Chunk(_), .. } | NodeMessage::Exited { .. }
            )
        {
            self.send_on_stream(stream.id, true, SimEvent::ToNode { stream, message: message.clone() });
        }
        self.send_on_stream(stream.id, true, SimEvent::ToNode { stream, message });
    }

    /// Schedules the delivery of the store's requests and replies.
    fn pass_messages(&mut self) {
        for message in self.network.take() {
            let delay = match self.rng.below(40) {
                0 => {
                    self.leaderless_since = None;
                    self.rng.between(100 * MILLI, 3000 * MILLI)
                }
                _ => self.rng.between(MILLI, 15 * MILLI),
            };
            self.schedule_at(self.now + delay, SimEvent::StoreMessage(message));
        }
    }

    fn pass(&mut self, message: StoreMessage) {
        let alive = self.nodes.iter().any(|node| node.process == message.process);
        let lost = self.now < FAULTS_END && self.rng.one_in(60);
        self.leaderless_since.take_if(|_| lost);
        if !alive && (message.direction == Direction::Reply || self.rng.one_in(2)) {
            return;
        }
        // A process that has died in the meantime does not receive it.
        let _ = message.go.send(if lost { Delivery::Lost } else { Delivery::Delivered });
    }

    fn process_event(&mut self, event: SimEvent) {
        match event {
            SimEvent::StoreMessage(message) => self.pass(message),
            SimEvent::Tick { node, process } if self.nodes[node].process == process => {
                let now = self.clock();
                if let Some(leading) = self.nodes[node].leading() {
                    leading.core.tick(now);
                    leading.flush(None);
                }
                self.read_at(node);
                self.schedule_at(self.now + TICK, SimEvent::Tick { node, process });
            }
            SimEvent::Poll { node, process } if self.nodes[node].process == process => {
                self.nodes[node].start_poll();
                self.schedule_at(
                    self.now + LeadershipTimeouts::default().poll_interval,
                    SimEvent::Poll { node, process },
                );
            }
            SimEvent::Heartbeat { node, process } if self.nodes[node].process == process => {
                let now = self.now;
                self.nodes[node].heartbeat(now);
                self.schedule_at(
                    self.now + LeadershipTimeouts::default().heartbeat_interval,
                    SimEvent::Heartbeat { node, process },
                );
            }
            // The process has died.
            SimEvent::Tick { .. } | SimEvent::Poll { .. } | SimEvent::Heartbeat { .. } => {}
            SimEvent::ToNode { stream, message } => self.receive(stream, message),
            SimEvent::Submit { job } => self.submit(job),
            SimEvent::Restart { node } => {
                self.nodes[node] = self.start();
                self.set_clocks(node);
            }
            SimEvent::Fault => self.inject_fault(),
            worker_event => self.worker_event(worker_event),
        }
    }

    pub(super) fn finish_task(&mut self, session: &str) {
        let Some(rank) = self.ranks.get(session) else { return };
        let (task, delay) = (rank.tasks, self.rng.between(50 * MILLI, 700 * MILLI));
        self.schedule_at(self.now + delay, SimEvent::RankDone { session: session.to_owned(), task });
    }
}

//! The world around two coordinators: time, the network, machines, a client, and misfortune.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, agent_command, rank_command, rank_message::Message};
use object_store::memory::InMemory;

use super::Bug;
use super::dice::Dice;
use super::disk::{Fate, Leg, Network, Passage};
use super::ledger::Ledger;
use super::machines::{Agent, Meetings, Rank, Stream};
use super::node::Node;
use crate::clock::Now;
use crate::lease::Times;

pub(super) const MILLI: Duration = Duration::from_millis(1);
/// Misfortune ends here, so that the job must end.
pub(super) const CALM_FROM: Duration = Duration::from_secs(40);
const LIMIT: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(500);
/// Turns for the tasks of the journals after each event.
const TURNS: usize = 4;

/// What is to happen at a time.
#[expect(clippy::large_enum_variant, reason = "few, and each moved once")]
#[derive(Debug)]
pub(super) enum Happening {
    Passage(Passage),
    /// Of a coordinator's own clock.
    Tick {
        node: usize,
        process: u64,
    },
    Look {
        node: usize,
        process: u64,
    },
    Beat {
        node: usize,
        process: u64,
    },
    ToNode {
        stream: Stream,
        word: Word,
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
    /// A stream's end is noticed, or its beginning refused.
    AgentCut {
        agent: String,
        stream: u64,
    },
    RankCut {
        session: String,
        stream: u64,
        refused: Refused,
    },
    AgentBeat {
        agent: String,
    },
    RankTry {
        session: String,
    },
    RankDone {
        session: String,
        task: u64,
    },
    Submit,
    Restart {
        node: usize,
    },
    Misfortune,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    No,
    NotLeading,
    Stale,
}

/// What a machine or a client says to a coordinator.
#[derive(Debug, Clone)]
pub(super) enum Word {
    Register(v1::AgentRegister),
    Heartbeat { agent: String, number: u64 },
    Exited { agent: String, session: String },
    AgentGone { agent: String },
    Hello(v1::RankHello),
    Said { session: String, message: Message },
    RankGone { session: String },
    StepsWritten { phase: String, key: String },
    Submit,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) dice: Dice,
    queue: BTreeMap<(Duration, u64), Happening>,
    numbered: u64,
    pub(super) inner: Arc<InMemory>,
    network: Network,
    bug: Option<Bug>,
    pub(super) nodes: Vec<Node>,
    pub(super) processes: u64,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) ranks: BTreeMap<String, Rank>,
    pub(super) meetings: Meetings,
    streams: u64,
    /// When the last message of a stream arrives, by direction: the next one is not faster.
    last: BTreeMap<(u64, bool), Duration>,
    pub(super) ledger: Ledger,
    pub(super) ended: bool,
    /// What went wrong.
    pub(super) violation: Option<String>,
    /// For who plays one seed again.
    pub(super) told_aloud: bool,
    pub(super) deaths: usize,
    pub(super) elections: u64,
    pub(super) leaderless_since: Option<Duration>,
    /// How long the store had no leader, each time that nothing else went wrong meanwhile.
    pub(super) gaps: Vec<Duration>,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>, misfortune: bool) -> Self {
        let mut world = Self {
            now: Duration::from_secs(1),
            dice: Dice(seed),
            queue: BTreeMap::new(),
            numbered: 0,
            inner: Arc::default(),
            network: Network::default(),
            bug,
            nodes: Vec::new(),
            processes: 0,
            agents: BTreeMap::new(),
            ranks: BTreeMap::new(),
            meetings: Meetings::default(),
            streams: 0,
            last: BTreeMap::new(),
            ledger: Ledger::default(),
            ended: false,
            violation: None,
            told_aloud: std::env::var_os(super::SEED).is_some(),
            deaths: 0,
            elections: 0,
            leaderless_since: None,
            gaps: Vec::new(),
        };
        for node in 0..2 {
            let started = world.start();
            world.nodes.push(started);
            world.set_clocks(node);
        }
        for agent in ["a", "b"] {
            let led = world.now;
            world.agents.insert(agent.to_owned(), Agent { led, ..Agent::default() });
            world.soon(Happening::AgentBeat { agent: agent.to_owned() });
        }
        world.soon(Happening::Submit);
        if misfortune {
            world.later(2000, Happening::Misfortune);
        }
        world
    }

    /// Until the job has ended and a little more, or something is wrong.
    pub(super) async fn run(&mut self) {
        let mut until = LIMIT;
        while self.violation.is_none() {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            self.pass_messages();
            self.poll_nodes();
            if self.ended && until == LIMIT {
                until = self.now + Duration::from_secs(20);
            }
            let Some(((at, _), happening)) = self.queue.pop_first() else { return };
            self.now = self.now.max(at);
            if self.now > until {
                if !self.ended {
                    self.violation = Some("the job never ended".to_owned());
                }
                return;
            }
            if let Some(woken) = self.asleep(&happening) {
                self.at(woken, happening);
                continue;
            }
            if self.told_aloud && !matches!(happening, Happening::Passage(_)) {
                println!("{:9.3} {happening:?}", self.now.as_secs_f64());
            }
            self.happen(happening);
        }
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
        self.soon(Happening::Tick { node, process });
        self.soon(Happening::Look { node, process });
        self.soon(Happening::Beat { node, process });
    }

    // ---- time ----

    pub(super) fn at(&mut self, time: Duration, happening: Happening) {
        self.numbered += 1;
        self.queue.insert((time, self.numbered), happening);
    }

    pub(super) fn later(&mut self, millis: u64, happening: Happening) {
        self.at(self.now + Duration::from_millis(millis), happening);
    }

    pub(super) fn soon(&mut self, happening: Happening) {
        let delay = self.dice.between(MILLI, 30 * MILLI);
        self.at(self.now + delay, happening);
    }

    /// When a process that sleeps wakes up to this.
    fn asleep(&self, happening: &Happening) -> Option<Duration> {
        let process = match happening {
            Happening::Tick { process, .. }
            | Happening::Look { process, .. }
            | Happening::Beat { process, .. } => *process,
            Happening::ToNode { stream, .. } => stream.process,
            Happening::Passage(Passage { process, leg: Leg::Reply, .. }) => *process,
            _ => return None,
        };
        let node = self.nodes.iter().find(|node| node.process == process)?;
        // An odd moment, so that nothing else happens just then.
        (node.paused_until > self.now).then(|| node.paused_until + Duration::from_nanos(1))
    }

    // ---- the network ----

    pub(super) fn open(&mut self, node: usize) -> Stream {
        self.streams += 1;
        Stream { id: self.streams, node, process: self.nodes[node].process }
    }

    pub(super) fn along(&mut self, stream: u64, upwards: bool, happening: Happening) {
        let arrival = self.now + self.dice.between(MILLI, 30 * MILLI);
        let last = self.last.entry((stream, upwards)).or_default();
        *last = arrival.max(*last);
        let at = *last;
        self.at(at, happening);
    }

    pub(super) fn say(&mut self, stream: Stream, word: Word) {
        // A client that saw no answer says it again.
        if self.dice.one_in(12)
            && matches!(word, Word::Said { message: Message::Chunk(_), .. } | Word::Exited { .. })
        {
            self.along(stream.id, true, Happening::ToNode { stream, word: word.clone() });
        }
        self.along(stream.id, true, Happening::ToNode { stream, word });
    }

    /// Requests and replies of the store go on their way, or are lost.
    fn pass_messages(&mut self) {
        for passage in self.network.take() {
            let delay = match self.dice.below(40) {
                0 => {
                    self.leaderless_since = None;
                    self.dice.between(100 * MILLI, 3000 * MILLI)
                }
                _ => self.dice.between(MILLI, 15 * MILLI),
            };
            self.at(self.now + delay, Happening::Passage(passage));
        }
    }

    fn pass(&mut self, passage: Passage) {
        let alive = self.nodes.iter().any(|node| node.process == passage.process);
        let lost = self.now < CALM_FROM && self.dice.one_in(60);
        self.leaderless_since.take_if(|_| lost);
        if !alive && (passage.leg == Leg::Reply || self.dice.one_in(2)) {
            return;
        }
        // A process that died meanwhile does not hear it.
        let _ = passage.go.send(if lost { Fate::Lost } else { Fate::Passes });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Passage(passage) => self.pass(passage),
            Happening::Tick { node, process } if self.nodes[node].process == process => {
                let now = self.clock();
                if let Some(leading) = self.nodes[node].leading() {
                    leading.core.tick(now);
                    leading.flush(false);
                }
                self.read_at(node);
                self.at(self.now + TICK, Happening::Tick { node, process });
            }
            Happening::Look { node, process } if self.nodes[node].process == process => {
                self.nodes[node].look();
                self.at(self.now + Times::default().look, Happening::Look { node, process });
            }
            Happening::Beat { node, process } if self.nodes[node].process == process => {
                let now = self.now;
                self.nodes[node].beat(now);
                self.at(self.now + Times::default().beat, Happening::Beat { node, process });
            }
            // Of a process that is dead.
            Happening::Tick { .. } | Happening::Look { .. } | Happening::Beat { .. } => {}
            Happening::ToNode { stream, word } => self.hear(stream, word),
            Happening::Submit => self.submit(),
            Happening::Restart { node } => {
                self.nodes[node] = self.start();
                self.set_clocks(node);
            }
            Happening::Misfortune => self.misfortune(),
            of_machines => self.machines(of_machines),
        }
    }

    pub(super) fn finish_task(&mut self, session: &str) {
        let Some(rank) = self.ranks.get(session) else { return };
        let (task, delay) = (rank.tasks, self.dice.between(50 * MILLI, 700 * MILLI));
        self.at(self.now + delay, Happening::RankDone { session: session.to_owned(), task });
    }
}

//! Ranks, agents and a coordinator whose events happen in a random order.

use super::*;

/// A live rank process.
pub(super) struct Rank {
    pub(super) agent: String,
    pub(super) start: v1::StartRank,
    pub(super) connected: bool,
    pub(super) work: VecDeque<Command>,
    /// The last task and what was reported about it, to be repeated to a new coordinator.
    pub(super) task: Option<v1::RankTask>,
    pub(super) reported: Option<Message>,
    /// It was asked to save a checkpoint and exit.
    pub(super) terminated: bool,
}

/// Facts that the coordinator does not know yet.
pub(super) enum Pending {
    Exit { agent: String, session: String },
    StreamEnd { session: String },
    Steps { job: String, phase: String, key: String },
}

pub(super) struct Simulator {
    pub(super) core: Core,
    pub(super) log: Vec<Event>,
    pub(super) now: Now,
    pub(super) rng: SimRng,
    pub(super) agents: BTreeMap<String, Option<u64>>,
    /// Versions of agents; empty for agents not listed here.
    pub(super) versions: BTreeMap<String, String>,
    pub(super) connections: u64,
    pub(super) ranks: BTreeMap<String, Rank>,
    pub(super) pending: Vec<Pending>,
    pub(super) faults: bool,
    /// An agent that starts no ranks.
    pub(super) black_hole: Option<&'static str>,
    /// An agent whose ranks make false reports.
    pub(super) byzantine: Option<&'static str>,
    pub(super) restarts: usize,
    pub(super) deaths: usize,
    pub(super) policy: Policy,
}

pub(super) fn issuer() -> SecretIssuer {
    SecretIssuer::new([1; 32])
}

impl Simulator {
    pub(super) fn new(seed: u64) -> Self {
        let mut simulator = Self {
            core: Core::replay([], 1, Liveness::default(), Deadlines::default(), issuer()).unwrap(),
            log: Vec::new(),
            now: Now { mono: Duration::from_secs(1), wall: 1 },
            rng: SimRng(seed),
            agents: BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), None)]),
            versions: BTreeMap::new(),
            connections: 0,
            ranks: BTreeMap::new(),
            pending: Vec::new(),
            faults: false,
            black_hole: None,
            byzantine: None,
            restarts: 0,
            deaths: 0,
            policy: Policy::default(),
        };
        simulator.core.submit(JOB, submitted(&[]), simulator.now);
        simulator.flush();
        simulator
    }

    /// Does what the shell does: first append events to the log, then take actions. A coordinator may die
    /// before either.
    pub(super) fn flush(&mut self) {
        let outbox = self.core.drain().expect("no impossible event");
        let dies = self.faults && !outbox.events.is_empty() && self.rng.one_in(60);
        if dies && self.rng.one_in(2) {
            return self.restart();
        }
        self.log.extend(outbox.events);
        if dies {
            return self.restart();
        }
        for action in outbox.actions {
            self.act(action);
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Agent { agent, command: agent_command::Command::StartRank(start) } => {
                let starts = self.black_hole.is_none_or(|black_hole| black_hole != agent);
                if starts && self.agents.get(&agent).is_some_and(Option::is_some) {
                    let session = start.session_id.clone();
                    let rank = Rank {
                        agent,
                        start,
                        connected: false,
                        work: VecDeque::new(),
                        task: None,
                        reported: None,
                        terminated: false,
                    };
                    assert!(self.ranks.insert(session, rank).is_none(), "a session is never used twice");
                }
            }
            Action::Agent { command: agent_command::Command::StopRank(stop), .. } if stop.graceful => {
                self.ranks.get_mut(&stop.session_id).into_iter().for_each(|rank| rank.terminated = true);
            }
            Action::Agent { command: agent_command::Command::StopRank(stop), .. } => {
                self.kill(&stop.session_id);
            }
            Action::Rank { session, command } => {
                if let Some(rank) = self.ranks.get_mut(&session) {
                    let task = match &command {
                        Command::Chunk(run) => Some(rank_task::Task::Chunk(run.clone())),
                        Command::Gang(run) => Some(rank_task::Task::Gang(run.clone())),
                        _ => None,
                    };
                    if task.is_some() {
                        rank.task = Some(v1::RankTask { task });
                        rank.reported = None;
                    }
                    rank.work.push_back(command);
                }
            }
            Action::WriteSteps { job, phase, key, .. } => {
                self.pending.push(Pending::Steps { job, phase, key });
            }
            Action::Agent { .. } | Action::Publish { .. } | Action::CollectGarbage(_) => {}
            Action::Transition { .. }
            | Action::Count(_)
            | Action::Step { .. }
            | Action::Usage(_)
            | Action::Shard(_) => {}
            Action::Erase { .. } => {}
        }
    }

    pub(super) fn kill(&mut self, session: &str) {
        if let Some(rank) = self.ranks.remove(session) {
            self.pending.push(Pending::Exit { agent: rank.agent, session: session.to_owned() });
            if rank.connected {
                self.pending.push(Pending::StreamEnd { session: session.to_owned() });
            }
        }
    }

    pub(super) fn restart(&mut self) {
        self.restarts += 1;
        let term = 1 + self.restarts as u64;
        self.core = Core::replay(self.log.clone(), term, Liveness::default(), Deadlines::default(), issuer())
            .unwrap();
        self.agents.values_mut().for_each(|connection| *connection = None);
        // Ranks continue and reconnect; agents tell the new coordinator what is running and what has ended.
        self.pending.retain(|pending| matches!(pending, Pending::Exit { .. }));
        for rank in self.ranks.values_mut() {
            rank.connected = false;
        }
        self.core.set_policy(self.policy);
        self.core.recover(self.now);
        let events = self.core.drain().unwrap().events;
        self.log.extend(events);
    }

    pub(super) fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(20));
        match self.rng.below(12) {
            0 => self.core.tick(self.now),
            1 => self.now = self.now.after(Duration::from_millis(500)),
            2 => self.reconnect(),
            3..=5 if !self.pending.is_empty() => self.deliver_pending(),
            _ => self.work(),
        }
        self.flush();
        if self.faults && self.rng.one_in(90) {
            self.fault();
            self.flush();
        }
    }

    pub(super) fn fault(&mut self) {
        let sessions: Vec<String> = self.ranks.keys().cloned().collect();
        if !self.rng.one_in(4) {
            if let Some(session) = sessions.get(self.rng.below(sessions.len())) {
                self.deaths += 1;
                self.kill(&session.clone());
            }
            return;
        }
        let agent = if self.rng.one_in(2) { "a" } else { "b" };
        if let Some(Some(connection)) = self.agents.get(agent).copied() {
            self.agents.insert(agent.to_owned(), None);
            self.core.agent_disconnected(agent, connection, self.now);
            if self.rng.one_in(2) {
                let here = sessions.iter().filter(|session| self.ranks[*session].agent == agent);
                here.cloned().collect::<Vec<_>>().iter().for_each(|session| self.kill(session));
            }
        }
    }

    pub(super) fn reconnect(&mut self) {
        for agent in
            ["a", "b"].into_iter().filter(|agent| self.agents.contains_key(*agent)).collect::<Vec<_>>()
        {
            if self.agents[agent].is_some() || self.rng.one_in(3) {
                if let Some(connection) = self.agents[agent] {
                    self.core.agent_heard(agent, connection, self.now);
                }
                continue;
            }
            self.connections += 1;
            self.agents.insert(agent.to_owned(), Some(self.connections));
            let device =
                |index| v1::Device { id: format!("cpu:{index}"), kind: "cpu".into(), ..Default::default() };
            let here = |(session, rank): (&String, &Rank)| (rank.agent == agent).then(|| session.clone());
            let hello = v1::AgentRegister {
                agent_id: agent.into(),
                devices: (0..2).map(device).collect(),
                session_ids: self.ranks.iter().filter_map(here).collect(),
                instance: format!("process of {agent} {:?}", self.versions.get(agent)),
                version: self.versions.get(agent).cloned().unwrap_or_default(),
                ..Default::default()
            };
            self.core.agent_registered(&hello, self.connections, self.now);
            return;
        }
    }

    pub(super) fn deliver_pending(&mut self) {
        let pending = self.pending.swap_remove(self.rng.below(self.pending.len()));
        match pending {
            Pending::Exit { agent, session } => match self.agents[&agent] {
                Some(_) => {
                    let exit = v1::RankExited { session_id: session, signal: Some(9), ..Default::default() };
                    self.core.rank_exited(&agent, exit, self.now);
                }
                None => self.pending.push(Pending::Exit { agent, session }),
            },
            Pending::StreamEnd { session } => self.core.rank_gone(&session, self.now),
            Pending::Steps { job, phase, key } => {
                self.core.steps_written(&job, &phase, Ok(object(&key)), self.now);
            }
        }
    }

    /// One rank takes one step.
    pub(super) fn work(&mut self) {
        let sessions: Vec<String> = self.ranks.keys().cloned().collect();
        let Some(session) = sessions.get(self.rng.below(sessions.len())).cloned() else { return };
        if self.ranks[&session].terminated {
            return self.keep_checkpoint(&session);
        }
        if !self.ranks[&session].connected {
            return self.connect(&session);
        }
        let Some(command) = self.ranks.get_mut(&session).and_then(|rank| rank.work.pop_front()) else {
            return;
        };
        let message = match command {
            Command::Chunk(run) => Message::Chunk(chunk_result(&run)),
            Command::Gang(run) => {
                let job = self.ranks[&session].start.job_id.clone();
                let alive = |rank: &&Rank| {
                    rank.connected && rank.start.attempt == run.attempt && rank.start.job_id == job
                };
                if (self.ranks.values().filter(alive).count() as u32) < run.world {
                    // Its collective waits for a rank that has exited.
                    return;
                }
                Message::Gang(gang_result(&run))
            }
            Command::Exit(_) => return self.kill(&session),
            Command::Welcome(_) | Command::Rendezvous(_) => return,
        };
        if let Some(rank) = self.ranks.get_mut(&session) {
            rank.reported = Some(message.clone());
        }
        let lies = self
            .byzantine
            .is_some_and(|byzantine| self.ranks.get(&session).is_some_and(|rank| rank.agent == byzantine));
        let flaw = lies.then(|| "it is not in the store".to_owned());
        // A rank whose message is rejected is stale and exits.
        if self.core.rank_report(&session, message.try_into(), flaw, self.now).is_err() {
            self.kill(&session);
        }
    }

    /// A rank that was asked to exit first saves a checkpoint of its step, if it is training.
    pub(super) fn keep_checkpoint(&mut self, session: &str) {
        let rank = &self.ranks[session];
        let task = rank.task.as_ref().and_then(|task| task.task.clone());
        if let Some(rank_task::Task::Gang(run)) = task.filter(|_| rank.connected && rank.reported.is_none()) {
            let phase = run.task.as_ref().map(|task| task.phase.clone()).unwrap_or_default();
            let step = run.resume.map_or(0, |resume| resume.step) + 1;
            let key = format!("{}checkpoints/{step:012}/rank-{}.safetensors", run.key_prefix, run.rank);
            let object = Some(object(&key));
            let shard =
                v1::CheckpointShard { phase, attempt: run.attempt, step, object, ..Default::default() };
            // A stale rank exits anyway.
            let _ = self.core.rank_report(session, Message::Checkpoint(shard).try_into(), None, self.now);
        }
        self.kill(session);
    }

    pub(super) fn connect(&mut self, session: &str) {
        let rank = &self.ranks[session];
        let (start, task, reported) = (rank.start.clone(), rank.task.clone(), rank.reported.clone());
        let hello = v1::RankHello {
            session_id: start.session_id,
            job_id: start.job_id,
            attempt: start.attempt,
            rank: start.rank,
            task,
            secret: start.secret,
            ..Default::default()
        };
        match Hello::try_from(hello).and_then(|hello| self.core.rank_hello(hello, self.now)) {
            Ok(()) => self.ranks.get_mut(session).unwrap().connected = true,
            Err(_) => return self.kill(session),
        }
        let rejected = reported.is_some_and(|reported| {
            self.core.rank_report(session, reported.try_into(), None, self.now).is_err()
        });
        if rejected {
            self.kill(session);
        }
    }

    pub(super) fn state(&self) -> &JobState {
        self.core.state(JOB).unwrap()
    }
}

//! A seeded simulation of the production core: random orders of everything that can happen, with ranks and agents dying
//! and the coordinator restarting anywhere, must end in the same committed artifacts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use foil_proto::v1::{self, rank_command::Command, rank_message::Message, rank_task};

use super::*;
use crate::job::fixture::{JOB, object, submitted};
use crate::job::{Outcome, fold};
use crate::simulation::dice::Dice;
use crate::simulation::machines::{chunk_result, gang_result};

mod store;
mod trust;

/// A rank process, alive.
struct Rank {
    agent: String,
    start: v1::StartRank,
    connected: bool,
    work: VecDeque<Command>,
    /// The last task, and what was told of it: a new coordinator is told again.
    task: Option<v1::RankTask>,
    told: Option<Message>,
}

/// What has happened and is not told yet.
enum News {
    Exit { agent: String, session: String },
    StreamEnd { session: String },
    Steps { job: String, phase: String, key: String },
}

struct World {
    core: Core,
    log: Vec<Event>,
    now: Now,
    dice: Dice,
    agents: BTreeMap<String, Option<u64>>,
    connections: u64,
    ranks: BTreeMap<String, Rank>,
    news: Vec<News>,
    faults: bool,
    /// An agent that starts no rank it is told to.
    hole: Option<&'static str>,
    /// An agent whose ranks report what the store does not bear out.
    liar: Option<&'static str>,
    restarts: usize,
    deaths: usize,
}

fn mint() -> Mint {
    Mint::new([1; 32])
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            core: Core::replay([], 1, Liveness::default(), Deadlines::default(), mint()).unwrap(),
            log: Vec::new(),
            now: Now { mono: Duration::from_secs(1), wall: 1 },
            dice: Dice(seed),
            agents: BTreeMap::from([("a".to_owned(), None), ("b".to_owned(), None)]),
            connections: 0,
            ranks: BTreeMap::new(),
            news: Vec::new(),
            faults: false,
            hole: None,
            liar: None,
            restarts: 0,
            deaths: 0,
        };
        world.core.submit(JOB, submitted(&[]), world.now);
        world.flush();
        world
    }

    /// The shell's part: events to the log, then actions. A coordinator may die between the two, or before both.
    fn flush(&mut self) {
        let outbox = self.core.drain().expect("no impossible event");
        let dies = self.faults && !outbox.events.is_empty() && self.dice.one_in(60);
        if dies && self.dice.one_in(2) {
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

    fn act(&mut self, action: Action) {
        match action {
            Action::Agent { agent, command: agent_command::Command::StartRank(start) } => {
                let starts = self.hole.is_none_or(|hole| hole != agent);
                if starts && self.agents.get(&agent).is_some_and(Option::is_some) {
                    let session = start.session_id.clone();
                    let rank = Rank {
                        agent,
                        start,
                        connected: false,
                        work: VecDeque::new(),
                        task: None,
                        told: None,
                    };
                    assert!(self.ranks.insert(session, rank).is_none(), "a session is never used twice");
                }
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
                        rank.told = None;
                    }
                    rank.work.push_back(command);
                }
            }
            Action::WriteSteps { job, phase, key, .. } => self.news.push(News::Steps { job, phase, key }),
            Action::Agent { .. } | Action::Publish { .. } | Action::Sweep(_) => {}
            Action::Transition { .. } | Action::Count(_) => {}
        }
    }

    fn kill(&mut self, session: &str) {
        if let Some(rank) = self.ranks.remove(session) {
            self.news.push(News::Exit { agent: rank.agent, session: session.to_owned() });
            if rank.connected {
                self.news.push(News::StreamEnd { session: session.to_owned() });
            }
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        let term = 1 + self.restarts as u64;
        self.core =
            Core::replay(self.log.clone(), term, Liveness::default(), Deadlines::default(), mint()).unwrap();
        self.agents.values_mut().for_each(|connection| *connection = None);
        // Ranks go on and say hello; an agent tells the new coordinator what still runs, or that it ended.
        self.news.retain(|news| matches!(news, News::Exit { .. }));
        for rank in self.ranks.values_mut() {
            rank.connected = false;
        }
        self.core.recover(self.now);
        let events = self.core.drain().unwrap().events;
        self.log.extend(events);
    }

    fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(20));
        match self.dice.below(12) {
            0 => self.core.tick(self.now),
            1 => self.now = self.now.after(Duration::from_millis(500)),
            2 => self.reconnect(),
            3..=5 if !self.news.is_empty() => self.tell(),
            _ => self.work(),
        }
        self.flush();
        if self.faults && self.dice.one_in(90) {
            self.fault();
            self.flush();
        }
    }

    fn fault(&mut self) {
        let sessions: Vec<String> = self.ranks.keys().cloned().collect();
        if !self.dice.one_in(4) {
            if let Some(session) = sessions.get(self.dice.below(sessions.len())) {
                self.deaths += 1;
                self.kill(&session.clone());
            }
            return;
        }
        let agent = if self.dice.one_in(2) { "a" } else { "b" };
        if let Some(Some(connection)) = self.agents.get(agent).copied() {
            self.agents.insert(agent.to_owned(), None);
            self.core.agent_disconnected(agent, connection, self.now);
            if self.dice.one_in(2) {
                let here = sessions.iter().filter(|session| self.ranks[*session].agent == agent);
                here.cloned().collect::<Vec<_>>().iter().for_each(|session| self.kill(session));
            }
        }
    }

    fn reconnect(&mut self) {
        for agent in
            ["a", "b"].into_iter().filter(|agent| self.agents.contains_key(*agent)).collect::<Vec<_>>()
        {
            if self.agents[agent].is_some() || self.dice.one_in(3) {
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
                instance: format!("process of {agent}"),
                ..Default::default()
            };
            self.core.agent_registered(&hello, self.connections, self.now);
            return;
        }
    }

    fn tell(&mut self) {
        let news = self.news.swap_remove(self.dice.below(self.news.len()));
        match news {
            News::Exit { agent, session } => match self.agents[&agent] {
                Some(_) => {
                    let exit = v1::RankExited { session_id: session, signal: Some(9), ..Default::default() };
                    self.core.rank_exited(&agent, exit, self.now);
                }
                None => self.news.push(News::Exit { agent, session }),
            },
            News::StreamEnd { session } => self.core.rank_gone(&session, self.now),
            News::Steps { job, phase, key } => {
                self.core.steps_written(&job, &phase, Ok(object(&key)), self.now);
            }
        }
    }

    /// One rank does one thing.
    fn work(&mut self) {
        let sessions: Vec<String> = self.ranks.keys().cloned().collect();
        let Some(session) = sessions.get(self.dice.below(sessions.len())).cloned() else { return };
        if !self.ranks[&session].connected {
            return self.connect(&session);
        }
        let Some(command) = self.ranks.get_mut(&session).and_then(|rank| rank.work.pop_front()) else {
            return;
        };
        let message = match command {
            Command::Chunk(run) => Message::Chunk(chunk_result(&run)),
            Command::Gang(run) => {
                let alive = |rank: &&Rank| rank.connected && rank.start.attempt == run.attempt;
                if (self.ranks.values().filter(alive).count() as u32) < run.world {
                    // Its collective waits for a rank that is gone.
                    return;
                }
                Message::Gang(gang_result(&run))
            }
            Command::Exit(_) => return self.kill(&session),
            Command::Welcome(_) | Command::Rendezvous(_) => return,
        };
        if let Some(rank) = self.ranks.get_mut(&session) {
            rank.told = Some(message.clone());
        }
        let lies =
            self.liar.is_some_and(|liar| self.ranks.get(&session).is_some_and(|rank| rank.agent == liar));
        let flaw = lies.then(|| "it is not in the store".to_owned());
        // A rank whose word is refused is stale and ends.
        if self.core.rank_said(&session, message, flaw, self.now).is_err() {
            self.kill(&session);
        }
    }

    fn connect(&mut self, session: &str) {
        let rank = &self.ranks[session];
        let (start, task, told) = (rank.start.clone(), rank.task.clone(), rank.told.clone());
        let hello = v1::RankHello {
            session_id: start.session_id,
            job_id: start.job_id,
            attempt: start.attempt,
            rank: start.rank,
            task,
            secret: start.secret,
            ..Default::default()
        };
        match self.core.rank_hello(hello, self.now) {
            Ok(()) => self.ranks.get_mut(session).unwrap().connected = true,
            Err(_) => return self.kill(session),
        }
        let refused = told.is_some_and(|told| self.core.rank_said(session, told, None, self.now).is_err());
        if refused {
            self.kill(session);
        }
    }

    fn state(&self) -> &JobState {
        self.core.state(JOB).unwrap()
    }
}

/// What must not depend on what went wrong: each phase's hashes and figures.
fn outcome(state: &JobState) -> Vec<(String, Vec<String>, Vec<v1::Metric>)> {
    let of = |done: &crate::job::Committed| {
        let own = done.artifact.objects.iter().filter(|object| object.path != "tokenizer.json");
        (done.phase.clone(), own.map(|object| object.blake3.clone()).collect(), done.metrics.clone())
    };
    state.committed.iter().map(of).collect()
}

fn play(seed: u64, faults: bool) -> World {
    let mut world = World::new(seed);
    world.faults = faults;
    for turn in 0..60_000 {
        if world.state().is_ended() && world.ranks.is_empty() {
            return world;
        }
        // Faults stop, so that the job must end: three attempts in a row lost to them are bad luck, not a bug.
        world.faults = faults && turn < 3_000;
        world.step();
    }
    panic!("seed {seed}: the job never ended: {:?}", world.state().life);
}

/// A snapshot at any place, and the log behind it, add up to what the whole log adds up to.
fn folding_changes_nothing(log: &[Event], seed: u64) {
    let add_up = |events: Vec<Event>| {
        Core::replay(events, 1, Liveness::default(), Deadlines::default(), mint()).unwrap()
    };
    let whole = add_up(log.to_vec());
    let at = usize::try_from(seed).unwrap() * 7 % log.len();
    let (before, behind) = log.split_at(at);
    let snapshot = fold(before.to_vec());
    assert_eq!(add_up(snapshot.clone()).state(JOB), add_up(before.to_vec()).state(JOB), "seed {seed}");
    // Of the rest a second snapshot is made.
    let folded = fold([snapshot, behind.to_vec()].concat());
    let again = add_up(folded.clone());
    assert_eq!(again.state(JOB), whole.state(JOB), "seed {seed}");
    assert_eq!(again.history(JOB, 0), whole.history(JOB, 0), "seed {seed}");
    let ended = whole.state(JOB).is_some_and(|state| state.life.name() == "succeeded");
    assert!(!ended || folded.len() < log.len() / 2, "{} of {} events are kept", folded.len(), log.len());
}

#[test]
fn whatever_dies_the_same_artifacts_are_committed() {
    let calm = play(0, false);
    assert_eq!(calm.state().life.name(), "succeeded");
    let expected = outcome(calm.state());
    let (mut deaths, mut restarts, mut failed, mut attempts) = (0, 0, 0, BTreeSet::new());
    for seed in 1..=120 {
        let world = play(seed, true);
        let state = world.state();
        deaths += world.deaths;
        restarts += world.restarts;
        attempts.insert(state.attempt);
        match &state.life {
            Life::Ended { outcome: Outcome::Succeeded, .. } => {
                assert_eq!(outcome(state), expected, "seed {seed}");
            }
            Life::Ended { outcome: Outcome::Failed(failure), .. } => {
                assert_eq!(failure.class, "no_progress", "seed {seed}: {failure:?}");
                failed += 1;
            }
            life => panic!("seed {seed}: {life:?}"),
        }
        let replayed =
            Core::replay(world.log.clone(), 1, Liveness::default(), Deadlines::default(), mint()).unwrap();
        assert_eq!(replayed.state(JOB), Some(state), "seed {seed}: the log adds up to the live state");
        assert_eq!(replayed.history(JOB, 0).len(), world.core.history(JOB, 0).len());
        assert_eq!(world.log.len() as u64, state.revision);
        folding_changes_nothing(&world.log, seed);
    }
    assert!(
        deaths > 100 && restarts > 50 && attempts.len() > 2,
        "{deaths} deaths, {restarts} restarts: too calm"
    );
    assert!(failed < 40, "{failed} of 120 jobs were given up");
}

#[test]
fn a_request_has_one_job_and_cancelling_ends_it() {
    let mut world = World::new(7);
    world.faults = false;
    assert_eq!(
        world.core.find_request("r1").map(|(state, hash)| (state.id.as_str(), hash)),
        Some((JOB, "h"))
    );
    while world.state().committed.len() < 3 {
        world.step();
    }
    assert_eq!(world.core.attempts().get(JOB), Some(&1));
    assert!(world.core.cancel(JOB, world.now) && !world.core.cancel("none", world.now));
    world.flush();
    for _ in 0..2_000 {
        world.step();
    }
    assert_eq!(world.state().life.name(), "cancelled");
    assert!(world.ranks.is_empty() && world.core.attempts().is_empty());
    let revision = world.state().revision;
    assert!(world.core.cancel(JOB, world.now));
    assert_eq!(world.state().revision, revision, "a job that has ended stays as it is");
}

#[test]
fn jobs_of_one_kind_wait_their_turn() {
    let mut world = World::new(9);
    world.faults = false;
    let second = Submitted {
        request_id: "r2".into(),
        ..submitted(&[|spec| {
            spec.resources.get_or_insert_default().ranks = Some(4);
        }])
    };
    let third = Submitted { request_id: "r3".into(), ..submitted(&[]) };
    world.core.submit("j2", second, world.now);
    world.core.submit("j3", third, world.now);
    for _ in 0..60 {
        world.step();
    }
    let life = |world: &World, id: &str| world.core.state(id).unwrap().life.name();
    assert_eq!((life(&world, JOB), life(&world, "j2"), life(&world, "j3")), ("running", "queued", "queued"));
    for _ in 0..60_000 {
        world.step();
    }
    let ends = world.log.iter().filter(|event| matches!(event.change, Change::Ended(_)));
    let order: Vec<&str> = ends.map(|event| event.job.as_str()).collect();
    assert_eq!(order, [JOB, "j2", "j3"]);
}

//! What machines do, and what coordinators hear of it.

use foil_proto::v1::{self, agent_command, rank_command, rank_message::Message, rank_task};

use super::machines::{self, Rank, Stream};
use super::node::FENCE;
use super::world::{Happening, Refused, Word, World};
use crate::job::fixture::{JOB, object};

/// An agent's own clock.
const BEAT: u64 = 1000;
/// A coordinator that leaves so much unanswered is left.
const SILENCE: u64 = 4;
const RETRY: u64 = 300;

impl World {
    pub(super) fn hear(&mut self, stream: Stream, word: Word) {
        let now = self.clock();
        if !self.node_hears(stream) {
            return self.refuse(stream, word);
        }
        let Some(leading) = self.nodes[stream.node].leading() else { return };
        let (core, holds) = (&mut leading.core, now.mono < leading.lease_until);
        match word {
            Word::Register(hello) if !holds => return self.refuse(stream, Word::Register(hello)),
            Word::Register(hello) if core.admits(&hello, now).is_err() => {
                return self.refuse(stream, Word::Register(hello));
            }
            Word::Register(hello) => {
                leading.heard.insert(hello.agent_id.clone());
                leading.agents.insert(hello.agent_id.clone(), stream.id);
                core.agent_registered(&hello, stream.id, now);
                leading.flush(false);
                let (agent, term) = (hello.agent_id, leading.term);
                let command = agent_command::Command::Welcome(v1::AgentWelcome::default());
                self.later(1, Happening::ToAgent { agent, stream, term, command });
                return;
            }
            Word::Heartbeat { agent, number } => {
                if core.agent_heard(&agent, stream.id, now) && holds {
                    let command = agent_command::Command::Heard(v1::AgentHeard { number });
                    let term = leading.term;
                    self.soon(Happening::ToAgent { agent, stream, term, command });
                }
                return;
            }
            Word::Exited { agent, session } => {
                let exit = v1::RankExited { session_id: session, signal: Some(9), ..Default::default() };
                core.rank_exited(&agent, exit, now);
            }
            Word::AgentGone { agent } => {
                if leading.agents.get(&agent) == Some(&stream.id) {
                    leading.agents.remove(&agent);
                }
                core.agent_disconnected(&agent, stream.id, now);
            }
            Word::Hello(hello) if !holds => return self.refuse(stream, Word::Hello(hello)),
            Word::Hello(hello) => {
                let session = hello.session_id.clone();
                match core.rank_hello(hello, now) {
                    Ok(()) => drop(leading.ranks.insert(session, stream.id)),
                    Err(_) => {
                        let (stream, refused) = (stream.id, Refused::Stale);
                        self.soon(Happening::RankCut { session, stream, refused });
                        return;
                    }
                }
            }
            Word::Said { session, message } => {
                if leading.ranks.get(&session) != Some(&stream.id) {
                    return;
                }
                if core.rank_said(&session, message, None, now).is_err() {
                    leading.ranks.remove(&session);
                    core.rank_gone(&session, now);
                    let (stream, refused) = (stream.id, Refused::Stale);
                    self.soon(Happening::RankCut { session, stream, refused });
                }
            }
            Word::RankGone { session } => {
                if leading.ranks.get(&session) == Some(&stream.id) {
                    leading.ranks.remove(&session);
                    core.rank_gone(&session, now);
                }
            }
            Word::StepsWritten { phase, key } => core.steps_written(JOB, &phase, Ok(object(&key)), now),
            Word::Submit => return self.submitted_job(stream.node),
        }
        if let Some(leading) = self.nodes[stream.node].leading() {
            leading.flush(false);
        }
    }

    /// Nobody who leads is there.
    fn refuse(&mut self, stream: Stream, word: Word) {
        let id = stream.id;
        match word {
            Word::Register(hello) => {
                self.soon(Happening::AgentCut { agent: hello.agent_id, stream: id });
            }
            Word::Hello(hello) => {
                let refused = Refused::NotLeading;
                self.soon(Happening::RankCut { session: hello.session_id, stream: id, refused });
            }
            _ => {}
        }
    }

    pub(super) fn machines(&mut self, happening: Happening) {
        match happening {
            Happening::ToAgent { agent, stream, term, command } => self.obey(&agent, stream, term, command),
            Happening::ToRank { session, stream, term, command } => {
                self.order(&session, stream, term, command);
            }
            Happening::AgentCut { agent, stream } => {
                let Some(there) = self.agents.get_mut(&agent) else { return };
                if there.stream.is_some_and(|open| open.id == stream) {
                    there.stream = None;
                    there.next = 1 - there.next;
                }
            }
            Happening::RankCut { session, stream, refused } => self.rank_cut(&session, stream, refused),
            Happening::AgentBeat { agent } => self.agent_beat(&agent),
            Happening::RankTry { session } => self.rank_try(&session),
            Happening::RankDone { session, task } => self.rank_done(&session, task),
            _ => {}
        }
    }

    /// Connects where there is no stream, asks whether the leader lives, and fences.
    fn agent_beat(&mut self, id: &str) {
        let now = self.now;
        let sessions: Vec<String> = self.running_on(id);
        let Some(agent) = self.agents.get_mut(id) else { return };
        if now - agent.led >= FENCE {
            agent.led = now;
            sessions.iter().for_each(|session| self.kill(session));
            return self.later(BEAT, Happening::AgentBeat { agent: id.to_owned() });
        }
        let oldest = agent.asked.values().next().copied();
        if agent.stream.is_some() && oldest.is_some_and(|asked| (now - asked).as_secs() >= SILENCE) {
            self.lose_stream(id);
        }
        let Some(agent) = self.agents.get_mut(id) else { return };
        match agent.stream {
            Some(stream) => {
                agent.beats += 1;
                let number = agent.beats;
                agent.asked.insert(number, now);
                self.say(stream, Word::Heartbeat { agent: id.to_owned(), number });
            }
            None => {
                let node = agent.next;
                agent.asked = [(0, now)].into();
                agent.untold.clear();
                let stream = self.open(node);
                if let Some(agent) = self.agents.get_mut(id) {
                    agent.stream = Some(stream);
                }
                let device = |index| v1::Device {
                    id: format!("cpu:{index}"),
                    kind: "cpu".into(),
                    ..Default::default()
                };
                let hello = v1::AgentRegister {
                    agent_id: id.to_owned(),
                    devices: (0..2).map(device).collect(),
                    session_ids: sessions,
                    instance: format!("process of {id}"),
                    ..Default::default()
                };
                self.say(stream, Word::Register(hello));
            }
        }
        self.later(BEAT, Happening::AgentBeat { agent: id.to_owned() });
    }

    fn running_on(&self, agent: &str) -> Vec<String> {
        let here = self.ranks.iter().filter(|(_, rank)| rank.agent == agent);
        here.map(|(session, _)| session.clone()).collect()
    }

    /// A stream breaks; its coordinator notices too, some time.
    pub(super) fn lose_stream(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(stream) = agent.stream.take() else { return };
        agent.next = 1 - agent.next;
        self.say(stream, Word::AgentGone { agent: id.to_owned() });
    }

    fn obey(&mut self, id: &str, stream: Stream, term: u64, command: agent_command::Command) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        if agent.stream != Some(stream) || term < agent.term {
            return;
        }
        agent.term = term;
        match command {
            agent_command::Command::Welcome(_) => {
                let asked = agent.asked.remove(&0);
                agent.led = agent.led.max(asked.unwrap_or_default());
            }
            agent_command::Command::Heard(heard) => {
                let later = agent.asked.split_off(&(heard.number + 1));
                let answered = std::mem::replace(&mut agent.asked, later);
                agent.led = agent.led.max(answered.values().max().copied().unwrap_or_default());
            }
            agent_command::Command::StartRank(start) => {
                let (session, node) = (start.session_id.clone(), stream.node);
                let rank = Rank {
                    agent: id.to_owned(),
                    start,
                    stream: None,
                    next: node,
                    lost_at: self.now,
                    task: None,
                    tasks: 0,
                    told: Vec::new(),
                    term,
                };
                if self.ranks.insert(session.clone(), rank).is_some() {
                    self.violation = Some(format!("session {session} was started twice"));
                }
                self.later(40, Happening::RankTry { session });
            }
            agent_command::Command::StopRank(stop) => self.kill(&stop.session_id),
        }
    }

    /// A process ends: its agent tells, and its stream breaks.
    pub(super) fn kill(&mut self, session: &str) {
        let Some(rank) = self.ranks.remove(session) else { return };
        if let Some(stream) = rank.stream {
            self.say(stream, Word::RankGone { session: session.to_owned() });
        }
        let Some(agent) = self.agents.get_mut(&rank.agent) else { return };
        match agent.stream {
            Some(stream) => {
                self.say(stream, Word::Exited { agent: rank.agent.clone(), session: session.to_owned() });
            }
            // Its next registration tells.
            None => agent.untold.push(session.to_owned()),
        }
    }

    fn rank_try(&mut self, session: &str) {
        let now = self.now;
        let Some(rank) = self.ranks.get(session) else { return };
        if rank.stream.is_some() {
            return;
        }
        if now - rank.lost_at >= FENCE {
            return self.kill(session);
        }
        let (node, hello, told) = (rank.next, machines::hello(rank), rank.told.clone());
        let stream = self.open(node);
        if let Some(rank) = self.ranks.get_mut(session) {
            rank.stream = Some(stream);
        }
        self.say(stream, Word::Hello(hello));
        for message in told {
            self.say(stream, Word::Said { session: session.to_owned(), message });
        }
    }

    fn rank_cut(&mut self, session: &str, stream: u64, refused: Refused) {
        let now = self.now;
        let Some(rank) = self.ranks.get_mut(session) else { return };
        if rank.stream.is_none_or(|open| open.id != stream) {
            return;
        }
        match refused {
            Refused::Stale => return self.kill(session),
            Refused::No => rank.lost_at = now,
            Refused::NotLeading => {}
        }
        rank.stream = None;
        rank.next = 1 - rank.next;
        self.later(RETRY, Happening::RankTry { session: session.to_owned() });
    }

    fn order(&mut self, session: &str, stream: Stream, term: u64, command: rank_command::Command) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        if rank.stream != Some(stream) || term < rank.term {
            return;
        }
        rank.term = term;
        match command {
            rank_command::Command::Chunk(run) => self.begin(session, rank_task::Task::Chunk(run)),
            rank_command::Command::Gang(run) => self.begin(session, rank_task::Task::Gang(run)),
            rank_command::Command::Rendezvous(meeting) => {
                let Some(rank_task::Task::Gang(run)) = rank.task.clone() else { return };
                let phase = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
                if phase == meeting.phase && run.attempt == meeting.attempt {
                    self.meet(&run, session);
                }
            }
            rank_command::Command::Exit(_) => self.kill(session),
            rank_command::Command::Welcome(_) => {}
        }
    }

    fn begin(&mut self, session: &str, task: rank_task::Task) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        rank.tasks += 1;
        rank.told.clear();
        rank.task = Some(task.clone());
        let rank_task::Task::Gang(run) = task else { return self.finish_task(session) };
        if run.rank == 0 {
            let phase = run.task.as_ref().map(|task| task.phase.clone()).unwrap_or_default();
            let offer = v1::RendezvousOffer { phase, attempt: run.attempt, host: "h".into(), port: 9 };
            self.tell(session, Message::Rendezvous(offer));
            self.meet(&run, session);
        }
    }

    fn meet(&mut self, run: &v1::RunGang, session: &str) {
        let Some(all) = self.meetings.join(run, session) else { return };
        // A collective that one has left for good waits for ever.
        if all.iter().all(|session| self.ranks.contains_key(session)) {
            all.iter().for_each(|session| self.finish_task(session));
        }
    }

    fn rank_done(&mut self, session: &str, task: u64) {
        let Some(rank) = self.ranks.get(session).filter(|rank| rank.tasks == task) else { return };
        let Some(done) = rank.task.clone() else { return };
        let told = rank.told.iter().any(|told| matches!(told, Message::Chunk(_) | Message::Gang(_)));
        if !told {
            machines::results(&done).into_iter().for_each(|message| self.tell(session, message));
        }
    }

    /// Kept until the next task, and sent where there is a stream.
    fn tell(&mut self, session: &str, message: Message) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        rank.told.push(message.clone());
        if let Some(stream) = rank.stream {
            self.say(stream, Word::Said { session: session.to_owned(), message });
        }
    }
}

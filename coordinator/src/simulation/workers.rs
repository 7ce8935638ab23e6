//! The behavior of agents and ranks, and their messages to the coordinators.

use foil_proto::v1::{self, agent_command, rank_command, rank_message::Message, rank_task};

use super::machines::{self, Rank, Stream};
use super::node::FENCE;
use super::simulator::{NodeMessage, Rejection, SimEvent, Simulator};
use crate::job::fixture::object;
use crate::schedule::Hello;

/// Interval of an agent's heartbeats, in milliseconds.
const HEARTBEAT: u64 = 1000;
/// Seconds without an answer after which an agent leaves a coordinator.
const ACK_TIMEOUT: u64 = 4;
const RETRY: u64 = 300;

impl Simulator {
    pub(super) fn receive(&mut self, stream: Stream, message: NodeMessage) {
        let now = self.clock();
        if !self.is_connected(stream) {
            return self.reject(stream, message);
        }
        let Some(leading) = self.nodes[stream.node].leading() else { return };
        let (core, lease_valid) = (&mut leading.core, now.mono < leading.lease_until);
        match message {
            NodeMessage::Register(hello) if !lease_valid => {
                return self.reject(stream, NodeMessage::Register(hello));
            }
            NodeMessage::Register(hello) if core.admits(&hello, now).is_err() => {
                return self.reject(stream, NodeMessage::Register(hello));
            }
            NodeMessage::Register(hello) => {
                leading.heard.insert(hello.agent_id.clone());
                leading.agents.insert(hello.agent_id.clone(), stream.id);
                core.agent_registered(&hello, stream.id, now);
                leading.flush(None);
                let (agent, term) = (hello.agent_id, leading.term);
                let command = agent_command::Command::Welcome(v1::AgentWelcome::default());
                self.schedule_after(1, SimEvent::ToAgent { agent, stream, term, command });
                return;
            }
            NodeMessage::Heartbeat { agent, number } => {
                if core.agent_heard(&agent, stream.id, now) && lease_valid {
                    let command = agent_command::Command::Heard(v1::AgentHeard { number });
                    let term = leading.term;
                    self.schedule_soon(SimEvent::ToAgent { agent, stream, term, command });
                }
                return;
            }
            NodeMessage::Exited { agent, session } => {
                let exit = v1::RankExited { session_id: session, signal: Some(9), ..Default::default() };
                core.rank_exited(&agent, exit, now);
            }
            NodeMessage::AgentGone { agent } => {
                if leading.agents.get(&agent) == Some(&stream.id) {
                    leading.agents.remove(&agent);
                }
                core.agent_disconnected(&agent, stream.id, now);
            }
            NodeMessage::Hello(hello) if !lease_valid => {
                return self.reject(stream, NodeMessage::Hello(hello));
            }
            NodeMessage::Hello(hello) => {
                let session = hello.session_id.clone();
                match Hello::try_from(hello).and_then(|hello| core.rank_hello(hello, now)) {
                    Ok(()) => drop(leading.ranks.insert(session, stream.id)),
                    Err(_) => {
                        let (stream, rejection) = (stream.id, Rejection::Stale);
                        self.schedule_soon(SimEvent::RankDisconnected { session, stream, rejection });
                        return;
                    }
                }
            }
            NodeMessage::Report { session, message } => {
                if leading.ranks.get(&session) != Some(&stream.id) {
                    return;
                }
                if core.rank_report(&session, message.try_into(), None, now).is_err() {
                    leading.ranks.remove(&session);
                    core.rank_gone(&session, now);
                    let (stream, rejection) = (stream.id, Rejection::Stale);
                    self.schedule_soon(SimEvent::RankDisconnected { session, stream, rejection });
                }
            }
            NodeMessage::RankGone { session } => {
                if leading.ranks.get(&session) == Some(&stream.id) {
                    leading.ranks.remove(&session);
                    core.rank_gone(&session, now);
                }
            }
            NodeMessage::StepsWritten { job, phase, key } => {
                core.steps_written(&job, &phase, Ok(object(&key)), now);
            }
            NodeMessage::Submit { job } => return self.submit_job(stream.node, job),
        }
        if let Some(leading) = self.nodes[stream.node].leading() {
            leading.flush(None);
        }
    }

    /// Rejects a message to a coordinator that is not leading.
    fn reject(&mut self, stream: Stream, message: NodeMessage) {
        let id = stream.id;
        match message {
            NodeMessage::Register(hello) => {
                self.schedule_soon(SimEvent::AgentDisconnected { agent: hello.agent_id, stream: id });
            }
            NodeMessage::Hello(hello) => {
                let rejection = Rejection::NotLeading;
                self.schedule_soon(SimEvent::RankDisconnected {
                    session: hello.session_id,
                    stream: id,
                    rejection,
                });
            }
            _ => {}
        }
    }

    pub(super) fn worker_event(&mut self, event: SimEvent) {
        match event {
            SimEvent::ToAgent { agent, stream, term, command } => {
                self.handle_agent_command(&agent, stream, term, command);
            }
            SimEvent::ToRank { session, stream, term, command } => {
                self.handle_rank_command(&session, stream, term, command);
            }
            SimEvent::AgentDisconnected { agent, stream } => {
                let Some(known) = self.agents.get_mut(&agent) else { return };
                if known.stream.is_some_and(|open| open.id == stream) {
                    known.stream = None;
                    known.next = 1 - known.next;
                }
            }
            SimEvent::RankDisconnected { session, stream, rejection } => {
                self.rank_disconnected(&session, stream, rejection);
            }
            SimEvent::AgentHeartbeat { agent } => self.agent_heartbeat(&agent),
            SimEvent::RankConnect { session } => self.connect_rank(&session),
            SimEvent::RankDone { session, task } => self.rank_done(&session, task),
            _ => {}
        }
    }

    /// Connects if there is no stream, or else sends a heartbeat; kills its ranks after the fence period.
    fn agent_heartbeat(&mut self, id: &str) {
        let now = self.now;
        let sessions: Vec<String> = self.running_on(id);
        let Some(agent) = self.agents.get_mut(id) else { return };
        if now - agent.last_leader_contact >= FENCE {
            agent.last_leader_contact = now;
            sessions.iter().for_each(|session| self.kill(session));
            return self.schedule_after(HEARTBEAT, SimEvent::AgentHeartbeat { agent: id.to_owned() });
        }
        let oldest = agent.unacknowledged.values().next().copied();
        if agent.stream.is_some()
            && oldest.is_some_and(|unacknowledged| (now - unacknowledged).as_secs() >= ACK_TIMEOUT)
        {
            self.lose_stream(id);
        }
        let Some(agent) = self.agents.get_mut(id) else { return };
        match agent.stream {
            Some(stream) => {
                agent.heartbeats += 1;
                let number = agent.heartbeats;
                agent.unacknowledged.insert(number, now);
                self.send(stream, NodeMessage::Heartbeat { agent: id.to_owned(), number });
            }
            None => {
                let node = agent.next;
                agent.unacknowledged = [(0, now)].into();
                agent.unreported.clear();
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
                self.send(stream, NodeMessage::Register(hello));
            }
        }
        self.schedule_after(HEARTBEAT, SimEvent::AgentHeartbeat { agent: id.to_owned() });
    }

    fn running_on(&self, agent: &str) -> Vec<String> {
        let here = self.ranks.iter().filter(|(_, rank)| rank.agent == agent);
        here.map(|(session, _)| session.clone()).collect()
    }

    /// Breaks an agent's stream; its coordinator notices later.
    pub(super) fn lose_stream(&mut self, id: &str) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        let Some(stream) = agent.stream.take() else { return };
        agent.next = 1 - agent.next;
        self.send(stream, NodeMessage::AgentGone { agent: id.to_owned() });
    }

    fn handle_agent_command(&mut self, id: &str, stream: Stream, term: u64, command: agent_command::Command) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        if agent.stream != Some(stream) || term < agent.term {
            return;
        }
        agent.term = term;
        match command {
            agent_command::Command::Welcome(_) => {
                let unacknowledged = agent.unacknowledged.remove(&0);
                agent.last_leader_contact = agent.last_leader_contact.max(unacknowledged.unwrap_or_default());
            }
            agent_command::Command::Heard(heard) => {
                let later = agent.unacknowledged.split_off(&(heard.number + 1));
                let answered = std::mem::replace(&mut agent.unacknowledged, later);
                agent.last_leader_contact =
                    agent.last_leader_contact.max(answered.values().max().copied().unwrap_or_default());
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
                    reported: Vec::new(),
                    term,
                };
                if self.ranks.insert(session.clone(), rank).is_some() {
                    self.violation = Some(format!("session {session} was started twice"));
                }
                self.schedule_after(40, SimEvent::RankConnect { session });
            }
            agent_command::Command::StopRank(stop) => self.kill(&stop.session_id),
        }
    }

    /// Kills a process: its agent reports the exit, and its stream breaks.
    pub(super) fn kill(&mut self, session: &str) {
        let Some(rank) = self.ranks.remove(session) else { return };
        if let Some(stream) = rank.stream {
            self.send(stream, NodeMessage::RankGone { session: session.to_owned() });
        }
        let Some(agent) = self.agents.get_mut(&rank.agent) else { return };
        match agent.stream {
            Some(stream) => {
                self.send(
                    stream,
                    NodeMessage::Exited { agent: rank.agent.clone(), session: session.to_owned() },
                );
            }
            // Its next registration reports it.
            None => agent.unreported.push(session.to_owned()),
        }
    }

    fn connect_rank(&mut self, session: &str) {
        let now = self.now;
        let Some(rank) = self.ranks.get(session) else { return };
        if rank.stream.is_some() {
            return;
        }
        if now - rank.lost_at >= FENCE {
            return self.kill(session);
        }
        let (node, hello, reported) = (rank.next, machines::hello(rank), rank.reported.clone());
        let stream = self.open(node);
        if let Some(rank) = self.ranks.get_mut(session) {
            rank.stream = Some(stream);
        }
        self.send(stream, NodeMessage::Hello(hello));
        for message in reported {
            self.send(stream, NodeMessage::Report { session: session.to_owned(), message });
        }
    }

    fn rank_disconnected(&mut self, session: &str, stream: u64, rejection: Rejection) {
        let now = self.now;
        let Some(rank) = self.ranks.get_mut(session) else { return };
        if rank.stream.is_none_or(|open| open.id != stream) {
            return;
        }
        match rejection {
            Rejection::Stale => return self.kill(session),
            Rejection::None => rank.lost_at = now,
            Rejection::NotLeading => {}
        }
        rank.stream = None;
        rank.next = 1 - rank.next;
        self.schedule_after(RETRY, SimEvent::RankConnect { session: session.to_owned() });
    }

    fn handle_rank_command(
        &mut self,
        session: &str,
        stream: Stream,
        term: u64,
        command: rank_command::Command,
    ) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        if rank.stream != Some(stream) || term < rank.term {
            return;
        }
        rank.term = term;
        match command {
            rank_command::Command::Chunk(run) => self.start_task(session, rank_task::Task::Chunk(run)),
            rank_command::Command::Gang(run) => self.start_task(session, rank_task::Task::Gang(run)),
            rank_command::Command::Rendezvous(rendezvous) => {
                let Some(rank_task::Task::Gang(run)) = rank.task.clone() else { return };
                let phase = run.task.as_ref().map(|task| task.phase.as_str()).unwrap_or_default();
                if phase == rendezvous.phase && run.attempt == rendezvous.attempt {
                    self.join_rendezvous(&run, session);
                }
            }
            rank_command::Command::Exit(_) => self.kill(session),
            rank_command::Command::Welcome(_) => {}
        }
    }

    fn start_task(&mut self, session: &str, task: rank_task::Task) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        rank.tasks += 1;
        rank.reported.clear();
        rank.task = Some(task.clone());
        let rank_task::Task::Gang(run) = task else { return self.finish_task(session) };
        if run.rank == 0 {
            let phase = run.task.as_ref().map(|task| task.phase.clone()).unwrap_or_default();
            let offer = v1::RendezvousOffer { phase, attempt: run.attempt, host: "h".into(), port: 9 };
            self.report(session, Message::Rendezvous(offer));
            self.join_rendezvous(&run, session);
        }
    }

    fn join_rendezvous(&mut self, run: &v1::RunGang, session: &str) {
        let Some(job) = self.ranks.get(session).map(|rank| rank.start.job_id.clone()) else { return };
        let Some(all) = self.rendezvous.join(&job, run, session) else { return };
        // A collective that a rank has left never completes.
        if all.iter().all(|session| self.ranks.contains_key(session)) {
            all.iter().for_each(|session| self.finish_task(session));
        }
    }

    fn rank_done(&mut self, session: &str, task: u64) {
        let Some(rank) = self.ranks.get(session).filter(|rank| rank.tasks == task) else { return };
        let Some(done) = rank.task.clone() else { return };
        let reported =
            rank.reported.iter().any(|message| matches!(message, Message::Chunk(_) | Message::Gang(_)));
        if !reported {
            machines::results(&done).into_iter().for_each(|message| self.report(session, message));
        }
    }

    /// Keeps a message until the next task, and sends it if there is a stream.
    fn report(&mut self, session: &str, message: Message) {
        let Some(rank) = self.ranks.get_mut(session) else { return };
        rank.reported.push(message.clone());
        if let Some(stream) = rank.stream {
            self.send(stream, NodeMessage::Report { session: session.to_owned(), message });
        }
    }
}

use foil_proto::v1::rank_task::Task;

use super::*;
use crate::job::RankStarted;

/// A new coordinator finds two processes in the log and adopts the attempt.
fn adopted(phase: usize) -> Bench {
    let mut state = after(&[], phase);
    for rank in 0..2 {
        let started = RankStarted {
            attempt: 1,
            rank,
            session: format!("s{rank}"),
            agent: "a".into(),
            device: format!("cpu:{rank}"),
            proof: crate::secret::fingerprint(&format!("secret of {rank}")),
        };
        state.apply(&event(3, Change::RankStarted(started))).unwrap();
    }
    let now = Now { mono: Duration::from_secs(100), wall: 0 };
    let run = Run::adopt(&state, 2, Deadlines::default(), now);
    assert!(run.vacancies().is_empty());
    Bench { state, run, now, effects: Vec::new(), ended: None, alone: true }
}

impl Bench {
    fn hello(&mut self, rank: u32, task: Option<Task>) -> Result<(), Refusal> {
        let session = format!("s{rank}");
        let task = task.map(|task| v1::RankTask { task: Some(task) });
        let hello = v1::RankHello {
            session_id: session.clone(),
            job_id: JOB.into(),
            attempt: 1,
            rank,
            task,
            secret: format!("secret of {rank}"),
            ..Default::default()
        };
        self.feed(Input::Hello { session, hello })
    }

    fn gang_of(&self, rank: u32) -> v1::RunGang {
        let phase = self.state.phase().unwrap();
        let task = task::gang_task(&self.state, phase).unwrap();
        let key_prefix = format!("jobs/{JOB}/phases/{}/a1/", phase.id);
        v1::RunGang { task: Some(task), attempt: 1, rank, world: 2, key_prefix, resume: None }
    }

    fn told<'a>(&'a self, session: &str) -> Vec<&'a Command> {
        let told = |effect: &'a Effect| match effect {
            Effect::Tell { session: to, command } if to == session => Some(command),
            _ => None,
        };
        self.effects.iter().filter_map(told).collect()
    }
}

#[test]
fn a_gang_goes_on_with_those_who_were_told_and_those_who_were_not() {
    let mut bench = adopted(0);
    assert!(bench.state.phase().unwrap().work.is_gang());
    let gang = bench.gang_of(0);
    bench.hello(0, Some(Task::Gang(gang.clone()))).unwrap();
    let phase = bench.state.phase().unwrap().id.clone();
    let offer = v1::RendezvousOffer { phase, attempt: 1, host: "h".into(), port: 9 };
    bench.say(0, Message::Rendezvous(offer)).unwrap();
    bench.hello(1, None).unwrap();
    assert!(matches!(bench.told("s1").last(), Some(Command::Gang(run)) if run.key_prefix == gang.key_prefix));
    assert!(!bench.told("s0").iter().any(|command| matches!(command, Command::Gang(_))), "it has its task");
    // Its stream breaks under a second leader: both are in the gang, and the meeting is told to who comes later.
    let mut bench = adopted(0);
    bench.hello(0, Some(Task::Gang(bench.gang_of(0)))).unwrap();
    let phase = bench.state.phase().unwrap().id.clone();
    let offer = v1::RendezvousOffer { phase, attempt: 1, host: "h".into(), port: 9 };
    bench.say(0, Message::Rendezvous(offer)).unwrap();
    bench.hello(1, Some(Task::Gang(bench.gang_of(1)))).unwrap();
    assert!(matches!(bench.told("s1").last(), Some(Command::Rendezvous(meeting)) if meeting.port == 9));
    assert!(bench.ended.is_none());
}

#[test]
fn a_lost_rank_ends_an_adopted_gang_and_history_is_no_offence() {
    let mut bench = adopted(1);
    let before = bench.state.phases[0].id.clone();
    bench.hello(0, None).unwrap();
    let report = v1::StepReport { phase: before, attempt: 1, step: 1, steps: 1, figures: vec![] };
    bench.say(0, Message::Step(report)).unwrap();

    let mut bench = adopted(0);
    bench.hello(0, Some(Task::Gang(bench.gang_of(0)))).unwrap();
    bench.exit(1, v1::RankExited { signal: Some(9), ..Default::default() });
    bench.pass(1.0);
    bench.exit(0, v1::RankExited { signal: Some(9), ..Default::default() });
    assert_eq!(bench.ended.unwrap().rank, Some(1));
}

#[test]
fn a_process_whose_agent_was_not_heard_is_not_taken_for_dead() {
    let mut bench = adopted(0);
    bench.exit(1, v1::RankExited { signal: Some(9), ..Default::default() });
    bench.pass(60.0);
    assert!(bench.ended.is_none(), "rank 0 may live");
    // Its agent comes, and is told again to stop it.
    bench.feed(Input::AgentBack { session: "s0".into() }).unwrap();
    assert!(matches!(bench.effects.last(), Some(Effect::Stop { session, .. }) if session == "s0"));
    bench.exit(0, v1::RankExited { signal: Some(9), ..Default::default() });
    assert!(bench.ended.is_some());
}

#[test]
fn a_lease_of_the_leader_before_counts() {
    let first = after(&[], 0);
    let map = (0..first.phases.len()).find(|at| !first.phases[*at].work.is_gang()).unwrap();
    let mut bench = adopted(map);
    let phase = bench.state.phase().unwrap().clone();
    let lease = task::lease(&bench.state, &phase, 0).unwrap();
    let key = format!("jobs/{JOB}/phases/{}/00000/1-1-7", phase.id);
    let run = v1::RunChunk {
        lease: 7,
        task: Some(lease.task),
        chunk: 0,
        first: lease.first,
        count: lease.count,
        key,
    };
    bench.hello(0, Some(Task::Chunk(run.clone()))).unwrap();
    bench.hello(1, None).unwrap();
    assert_eq!(bench.held()[0], Some(0));
    assert_ne!(bench.held()[1], Some(0), "rank 0 is at it");
    let result = crate::simulation::machines::chunk_result(&run);
    bench.say(0, Message::Chunk(result)).unwrap();
    assert!(bench.state.chunks.contains_key(&0) || bench.state.committed.len() > map);
}

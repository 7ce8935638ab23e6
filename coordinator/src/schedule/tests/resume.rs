use foil_proto::v1::rank_task::Task;

use super::*;
use crate::job::RankStarted;

/// An attempt adopted by a new coordinator, with two processes known from the log.
fn adopted(phase: usize) -> Harness {
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
    let attempt = Attempt::adopt(&state, 2, Deadlines::default(), now);
    assert!(attempt.vacancies().is_empty());
    Harness { state, attempt, now, effects: Vec::new(), ended: None, no_alternative: true }
}

impl Harness {
    fn hello(&mut self, rank: u32, task: Option<Task>) -> Result<(), ProtocolError> {
        let task = task.map(|task| v1::RankTask { task: Some(task) });
        let hello = v1::RankHello {
            session_id: format!("s{rank}"),
            job_id: JOB.into(),
            attempt: 1,
            rank,
            task,
            secret: format!("secret of {rank}"),
            ..Default::default()
        };
        self.handle(Input::Hello(hello.try_into()?))
    }

    fn gang_of(&self, rank: u32) -> v1::RunGang {
        let phase = self.state.phase().unwrap();
        let task = task::gang_task(&self.state, phase).unwrap();
        let key_prefix = format!("jobs/{JOB}/phases/{}/a1/", phase.id);
        v1::RunGang { task: Some(task), attempt: 1, rank, world: 2, key_prefix, ..Default::default() }
    }

    fn commands_to<'a>(&'a self, session: &str) -> Vec<&'a Command> {
        let leased = |effect: &'a Effect| match effect {
            Effect::Send { session: to, command } if to == session => Some(command),
            _ => None,
        };
        self.effects.iter().filter_map(leased).collect()
    }
}

#[test]
fn a_gang_goes_on_whether_or_not_its_ranks_were_launched_before_the_failover() {
    let mut harness = adopted(0);
    assert!(harness.state.phase().unwrap().work.is_gang());
    let gang = harness.gang_of(0);
    harness.hello(0, Some(Task::Gang(gang.clone()))).unwrap();
    let phase = harness.state.phase().unwrap().id.to_string();
    let offer = v1::RendezvousOffer { phase, attempt: 1, host: "h".into(), port: 9 };
    harness.report(0, Message::Rendezvous(offer)).unwrap();
    harness.hello(1, None).unwrap();
    assert!(
        matches!(harness.commands_to("s1").last(), Some(Command::Gang(run)) if run.key_prefix == gang.key_prefix)
    );
    assert!(
        !harness.commands_to("s0").iter().any(|command| matches!(command, Command::Gang(_))),
        "it has its task"
    );
    // Under a second leader, both ranks are already in the gang; the rendezvous is relayed to the rank that
    // reconnects later.
    let mut harness = adopted(0);
    harness.hello(0, Some(Task::Gang(harness.gang_of(0)))).unwrap();
    let phase = harness.state.phase().unwrap().id.to_string();
    let offer = v1::RendezvousOffer { phase, attempt: 1, host: "h".into(), port: 9 };
    harness.report(0, Message::Rendezvous(offer)).unwrap();
    harness.hello(1, Some(Task::Gang(harness.gang_of(1)))).unwrap();
    assert!(
        matches!(harness.commands_to("s1").last(), Some(Command::Rendezvous(rendezvous)) if rendezvous.port == 9)
    );
    assert!(harness.ended.is_none());
}

#[test]
fn a_lost_rank_ends_an_adopted_gang_and_repeated_reports_are_accepted() {
    let mut harness = adopted(1);
    let before = harness.state.phases[0].id.to_string();
    harness.hello(0, None).unwrap();
    let report = v1::StepReport {
        phase: before,
        attempt: 1,
        step: 1,
        steps: 1,
        metrics: vec![],
        ..Default::default()
    };
    harness.report(0, Message::Step(report)).unwrap();

    let mut harness = adopted(0);
    harness.hello(0, Some(Task::Gang(harness.gang_of(0)))).unwrap();
    harness.exit(1, v1::RankExited { signal: Some(9), ..Default::default() });
    harness.elapse(1.0);
    harness.exit(0, v1::RankExited { signal: Some(9), ..Default::default() });
    assert_eq!(harness.ended.unwrap().rank, Some(1));
}

#[test]
fn a_process_whose_agent_was_not_heard_is_not_assumed_dead() {
    let mut harness = adopted(0);
    harness.exit(1, v1::RankExited { signal: Some(9), ..Default::default() });
    harness.elapse(60.0);
    assert!(harness.ended.is_none(), "rank 0 may live");
    // Its agent registers and gets the stop command again.
    harness.handle(Input::AgentBack { session: "s0".into() }).unwrap();
    assert!(matches!(harness.effects.last(), Some(Effect::Stop { session, .. }) if session == "s0"));
    harness.exit(0, v1::RankExited { signal: Some(9), ..Default::default() });
    assert!(harness.ended.is_some());
}

#[test]
fn a_lease_from_the_previous_leader_is_valid() {
    let first = after(&[], 0);
    let map = (0..first.phases.len()).find(|at| !first.phases[*at].work.is_gang()).unwrap();
    let mut harness = adopted(map);
    let phase = harness.state.phase().unwrap().clone();
    let lease = task::lease(&harness.state, &phase, 0).unwrap();
    let key = format!("jobs/{JOB}/phases/{}/00000/1-1-7", phase.id);
    let run = v1::RunChunk {
        lease: 7,
        task: Some(lease.task),
        chunk: 0,
        first: lease.first,
        count: lease.count,
        key,
        ..Default::default()
    };
    harness.hello(0, Some(Task::Chunk(run.clone()))).unwrap();
    harness.hello(1, None).unwrap();
    assert_eq!(harness.held()[0], Some(0));
    assert_ne!(harness.held()[1], Some(0), "rank 0 is working on it");
    let result = crate::simulation::machines::chunk_result(&run);
    harness.report(0, Message::Chunk(result)).unwrap();
    assert!(harness.state.chunks.contains_key(&0) || harness.state.committed.len() > map);
}

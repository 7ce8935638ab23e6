//! A job can be canceled at any time: its ranks exit and its devices are freed.

use super::releases::free;
use super::*;

/// Steps until `there` holds.
fn until(simulator: &mut Simulator, what: &str, there: impl Fn(&Simulator) -> bool) {
    for _ in 0..100_000 {
        if there(simulator) {
            return;
        }
        simulator.step();
    }
    panic!("never {what}");
}

/// Cancels the job and checks the outcome; `what` describes what it was doing.
fn cancel(simulator: &mut Simulator, what: &str) {
    assert!(simulator.core.cancel(JOB, simulator.now));
    simulator.flush();
    until(simulator, "canceled", |simulator| simulator.state().is_ended() && simulator.ranks.is_empty());
    let is_free = |simulator: &Simulator| free(simulator) == 4;
    until(simulator, "free", is_free);
    assert_eq!(simulator.state().status.name(), "cancelled", "{what}");
    assert!(simulator.core.attempts().is_empty() && simulator.core.rank_writers().is_empty(), "{what}");
    let ends = simulator.log.iter().filter(|event| matches!(event.change, Change::Ended(_)));
    assert_eq!(ends.count(), 1, "{what}");
    let failed = simulator
        .log
        .iter()
        .any(|event| matches!(&event.change, Change::AttemptEnded { cause, .. } if cause.class.counts()));
    assert!(!failed, "{what}: no attempt has failed");
}

fn phase_is_gang(simulator: &Simulator) -> bool {
    simulator.state().phase().is_some_and(|phase| phase.work.is_gang())
}

/// Number of tasks of the current phase that ranks work on.
fn tasks(simulator: &Simulator) -> usize {
    let phase = simulator.state().phase().map(|phase| phase.id.to_string()).unwrap_or_default();
    let of = |task: &v1::RankTask| match &task.task {
        Some(rank_task::Task::Gang(run)) => run.task.as_ref().is_some_and(|task| task.phase == phase),
        Some(rank_task::Task::Chunk(run)) => run.task.as_ref().is_some_and(|task| task.phase == phase),
        None => false,
    };
    simulator
        .ranks
        .values()
        .filter(|rank| rank.reported.is_none() && rank.task.as_ref().is_some_and(of))
        .count()
}

#[test]
fn before_it_has_devices() {
    let mut simulator = Simulator::new(3);
    assert!(simulator.core.cancel(JOB, simulator.now));
    assert_eq!(simulator.state().status.name(), "cancelled", "canceled immediately");
    simulator.flush();
    until(&mut simulator, "connected", |simulator| simulator.agents.values().all(Option::is_some));
    for _ in 0..200 {
        simulator.step();
    }
    assert_eq!((simulator.state().attempt, free(&simulator)), (0, 4));
}

#[test]
fn while_its_ranks_start() {
    for hellos in 0..2 {
        let mut simulator = Simulator::new(4 + hellos);
        until(&mut simulator, "starting", |simulator| {
            let connected = simulator.ranks.values().filter(|rank| rank.connected).count() as u64;
            simulator.ranks.len() == 2 && connected == hellos
        });
        cancel(&mut simulator, "starting");
    }
}

#[test]
fn in_the_middle_of_a_rendezvous() {
    let mut simulator = Simulator::new(5);
    until(&mut simulator, "in a gang", |simulator| phase_is_gang(simulator) && tasks(simulator) == 2);
    // Rank 0 has offered its address, and the other rank has not connected yet.
    let (session, run) = simulator
        .ranks
        .iter()
        .find_map(|(session, rank)| match rank.task.as_ref()?.task.as_ref()? {
            rank_task::Task::Gang(run) if run.rank == 0 => Some((session.clone(), run.clone())),
            _ => None,
        })
        .unwrap();
    let phase = run.task.unwrap().phase;
    let offer = v1::RendezvousOffer { phase, attempt: run.attempt, host: "h".into(), port: 9 };
    simulator.core.rank_report(&session, Message::Rendezvous(offer).try_into(), None, simulator.now).unwrap();
    cancel(&mut simulator, "in a rendezvous");
}

#[test]
fn in_a_map_phase_and_in_a_gang_phase() {
    for seed in 1..10 {
        for gang in [false, true] {
            let mut simulator = Simulator::new(seed);
            until(&mut simulator, "working", |simulator| {
                phase_is_gang(simulator) == gang
                    && simulator.state().committed.len() as u64 >= seed
                    && tasks(simulator) > 0
            });
            cancel(&mut simulator, if gang { "in a gang phase" } else { "in a map phase" });
        }
    }
}

#[test]
fn while_it_recovers_and_after_a_failover() {
    for seed in 1..10 {
        let mut simulator = Simulator::new(seed);
        until(&mut simulator, "working", |simulator| simulator.state().committed.len() as u64 >= seed);
        simulator.restart();
        assert_eq!(simulator.core.attempts().len(), 1, "its ranks continue");
        // Before any agent has reconnected.
        cancel(&mut simulator, "right after a failover");
    }
    for seed in 1..10 {
        let mut simulator = Simulator::new(seed);
        until(&mut simulator, "working", |simulator| tasks(simulator) > 0);
        assert!(simulator.core.cancel(JOB, simulator.now));
        simulator.flush();
        // The cancellation is in the log, and the leader dies before the ranks are dead.
        simulator.restart();
        assert_eq!(simulator.state().status.name(), "cancelling");
        cancel(&mut simulator, "with a failover in between");
    }
}

#[test]
fn while_it_waits_for_devices_again() {
    let mut simulator = Simulator::new(8);
    until(&mut simulator, "working", |simulator| simulator.state().committed.len() >= 2);
    let attempt = simulator.state().attempt;
    let cause = crate::job::Cause::new(crate::job::CauseClass::Preempted, "its machine shuts down");
    let ended = Change::AttemptEnded { attempt, cause };
    let sessions: Vec<String> = simulator.ranks.keys().cloned().collect();
    sessions.iter().for_each(|session| simulator.kill(session));
    simulator.log.push(Event::new(JOB, simulator.now.wall, ended));
    simulator.restart();
    assert_eq!(simulator.state().status.name(), "recovering");
    assert!(simulator.core.cancel(JOB, simulator.now));
    assert_eq!(simulator.state().status.name(), "cancelled", "canceled immediately");
}

use super::*;

/// Runs until the job has ended.
pub(super) fn to_the_end(simulator: &mut Simulator) {
    for _ in 0..200_000 {
        if simulator.state().is_ended() && simulator.ranks.is_empty() {
            return;
        }
        simulator.step();
    }
    panic!("the job never ended: {:?}", simulator.state().status);
}

/// A simulator in which both agents have registered.
pub(super) fn connected(seed: u64) -> Simulator {
    let mut simulator = Simulator::new(seed);
    while simulator.agents.values().any(Option::is_none) {
        simulator.step();
    }
    simulator
}

fn with_ranks(request_id: &str, ranks: u32) -> Submitted {
    let mut submitted = Submitted { request_id: request_id.into(), ..submitted(&[]) };
    submitted.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(ranks);
    submitted
}

#[test]
fn an_agent_that_starts_nothing_costs_a_job_no_attempt() {
    let expected = outcome(simulate(0, false).state());
    for seed in 1..=10 {
        let mut simulator = connected(seed);
        simulator.black_hole = Some("a");
        to_the_end(&mut simulator);
        assert_eq!(simulator.state().status.name(), "succeeded", "seed {seed}");
        assert_eq!(outcome(simulator.state()), expected, "seed {seed}");
        assert_eq!(simulator.state().attempt, 1, "seed {seed}: nothing counted against it");
    }
}

#[test]
fn an_agent_with_false_reports_commits_nothing_and_harms_nobody() {
    let expected = outcome(simulate(0, false).state());
    for seed in 1..=10 {
        let mut simulator = connected(seed);
        simulator.byzantine = Some("a");
        to_the_end(&mut simulator);
        assert_eq!(simulator.state().status.name(), "succeeded", "seed {seed}");
        assert_eq!(outcome(simulator.state()), expected, "seed {seed}");
    }
}

#[test]
fn without_another_agent_a_job_gives_up_eventually() {
    for (black_hole, byzantine) in [(Some("a"), None), (None, Some("a"))] {
        let mut simulator = Simulator::new(5);
        simulator.agents.remove("b");
        (simulator.black_hole, simulator.byzantine) = (black_hole, byzantine);
        to_the_end(&mut simulator);
        let JobStatus::Ended { outcome: Outcome::Failed(failure), .. } = &simulator.state().status else {
            panic!()
        };
        assert_eq!(failure.class, "no_progress", "{failure:?}");
    }
}

#[test]
fn an_agent_speaks_for_its_own_ranks_only() {
    let mut simulator = Simulator::new(3);
    while simulator.state().committed.is_empty() {
        simulator.step();
    }
    let process = simulator.state().ranks[&0].clone();
    let other = if process.agent == "a" { "b" } else { "a" };
    let exit = v1::RankExited { session_id: process.session.clone(), signal: Some(9), ..Default::default() };
    simulator.core.rank_exited(other, exit.clone(), simulator.now);
    assert_eq!(simulator.state().ranks[&0], process, "the false report had no effect");
    assert!(simulator.core.drain().unwrap().events.is_empty());
    simulator.core.rank_exited(&process.agent, exit, simulator.now);
    assert!(!simulator.core.drain().unwrap().events.is_empty(), "another process takes its slot");
}

#[test]
fn an_attempt_that_cannot_get_all_its_ranks_releases_its_devices() {
    let mut simulator = connected(4);
    to_the_end(&mut simulator);
    simulator.core.submit("wide", with_ranks("r2", 4), simulator.now);
    let maps = |simulator: &Simulator| {
        let state = simulator.core.state("wide").unwrap();
        state.ranks.len() == 4 && state.phase().is_some_and(|phase| !phase.work.is_gang())
    };
    while !maps(&simulator) {
        simulator.step();
    }
    // An agent and its ranks are lost for good; the others finish the map phase and wait before the next gang
    // phase.
    let connection = simulator.agents.remove("b").flatten().unwrap();
    simulator.core.agent_disconnected("b", connection, simulator.now);
    simulator.ranks.retain(|_, rank| rank.agent != "b");
    simulator.pending.retain(|pending| !matches!(pending, Pending::Exit { agent, .. } if agent == "b"));
    simulator.core.submit("small", with_ranks("r3", 1), simulator.now);
    for _ in 0..30_000 {
        simulator.step();
    }
    let state = |id: &str| simulator.core.state(id).unwrap();
    assert_eq!(state("small").status.name(), "succeeded");
    assert_eq!((state("wide").status.name(), state("wide").failures.len()), ("recovering", 0));
    assert!(
        simulator.core.job_view("wide").unwrap().waiting.unwrap().reason.contains("connected now have 2")
    );
}

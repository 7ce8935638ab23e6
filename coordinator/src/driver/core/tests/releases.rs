//! An upgrade of agents: an attempt never has ranks of two versions, and nothing else changes.

use super::trust::connected;
use super::*;

const WIDE: &str = "wide";

/// Number of devices that can be given to a job.
pub(super) fn free(simulator: &Simulator) -> usize {
    simulator.core.cluster().supplies("cpu").values().map(|supply| supply.free).sum()
}

/// Two agents of version 1 with two devices each, a job that needs both agents, and a job that needs one.
fn upgraded(seed: u64) -> Simulator {
    let mut simulator = Simulator::new(seed);
    simulator.versions = ["a", "b"].map(|agent| (agent.to_owned(), "1".to_owned())).into();
    let mut wide = Submitted { request_id: "r2".into(), ..submitted(&[]) };
    wide.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(3);
    simulator.core.submit(WIDE, wide, simulator.now);
    simulator.flush();
    simulator
}

/// Kills an agent with its ranks; the next process of that name has the given version.
fn replace(simulator: &mut Simulator, agent: &str, version: &str) {
    if let Some(connection) = simulator.agents.insert(agent.to_owned(), None).flatten() {
        simulator.core.agent_disconnected(agent, connection, simulator.now);
    }
    simulator.ranks.retain(|_, rank| rank.agent != agent);
    simulator.pending.retain(|pending| !matches!(pending, Pending::Exit { agent: of, .. } if of == agent));
    simulator.versions.insert(agent.to_owned(), version.to_owned());
    simulator.flush();
}

/// Asks an agent to shut down; its ranks save checkpoints and exit.
fn drain(simulator: &mut Simulator, agent: &str) {
    let Some(Some(connection)) = simulator.agents.get(agent).copied() else { return };
    simulator.core.agent_leaving(agent, connection, simulator.now);
    let here = simulator.ranks.values_mut().filter(|rank| rank.agent == agent);
    here.for_each(|rank| rank.terminated = true);
    simulator.flush();
}

fn is_drained(simulator: &Simulator, agent: &str) -> bool {
    let ends = |pending: &Pending| matches!(pending, Pending::Exit { agent: of, .. } if of == agent);
    simulator.ranks.values().all(|rank| rank.agent != agent) && !simulator.pending.iter().any(ends)
}

/// The attempts with ranks on agents of several versions.
fn mixed(simulator: &Simulator) -> Vec<(String, u32)> {
    let mut versions: BTreeMap<(String, u32), BTreeSet<&String>> = BTreeMap::new();
    for rank in simulator.ranks.values() {
        let attempt = (rank.start.job_id.clone(), rank.start.attempt);
        versions.entry(attempt).or_default().insert(&simulator.versions[&rank.agent]);
    }
    versions.into_iter().filter(|(_, versions)| versions.len() > 1).map(|(attempt, _)| attempt).collect()
}

/// The artifacts of a job: each one's name, hashes and metrics.
type Made = Vec<(String, Vec<String>, Vec<v1::Metric>)>;

fn outcomes(simulator: &Simulator) -> Vec<Made> {
    [JOB, WIDE].iter().map(|id| outcome(simulator.core.state(id).unwrap())).collect()
}

/// Runs a history in which agents change their version now and then, in the end to 2.
fn history(seed: u64, faults: bool) -> Simulator {
    const CHANGES: usize = 6_000;
    let mut simulator = upgraded(seed);
    let mut draining: Option<&str> = None;
    for turn in 0..200_000 {
        let ended = [JOB, WIDE].iter().all(|id| simulator.core.state(id).unwrap().is_ended());
        if ended && turn > CHANGES && simulator.ranks.is_empty() {
            return simulator;
        }
        simulator.faults = faults && turn < CHANGES / 2;
        let changes = turn < CHANGES && simulator.rng.one_in(300);
        let agent = if simulator.rng.one_in(2) { "a" } else { "b" };
        let next = |simulator: &Simulator, agent: &str| match simulator.versions[agent].as_str() {
            "1" => "2",
            _ => "1",
        };
        if turn == CHANGES {
            draining = None;
            ["a", "b"].into_iter().for_each(|agent| replace(&mut simulator, agent, "2"));
        } else if let Some(drained) = draining.filter(|agent| is_drained(&simulator, agent)) {
            draining = None;
            let version = next(&simulator, drained);
            replace(&mut simulator, drained, version);
        } else if changes && draining.is_none() && simulator.rng.one_in(2) {
            drain(&mut simulator, agent);
            draining = Some(agent);
        } else if changes && draining.is_none() {
            let version = next(&simulator, agent);
            replace(&mut simulator, agent, version);
        }
        simulator.step();
        assert_eq!(mixed(&simulator), [], "seed {seed}, turn {turn}: ranks of two versions");
    }
    panic!("seed {seed}: the jobs never ended: {:?}", simulator.state().status);
}

#[test]
fn no_attempt_has_ranks_of_two_versions_whatever_fails() {
    let mut calm = upgraded(0);
    while [JOB, WIDE].iter().any(|id| !calm.core.state(id).unwrap().is_ended()) {
        calm.step();
    }
    let expected = outcomes(&calm);
    let (mut failed, mut attempts) = (0, 0);
    for seed in 1..=60 {
        let simulator = history(seed, seed % 2 == 0);
        for (id, expected) in [JOB, WIDE].into_iter().zip(&expected) {
            let state = simulator.core.state(id).unwrap();
            attempts += state.attempt;
            match &state.status {
                JobStatus::Ended { outcome: Outcome::Succeeded, .. } => {
                    assert_eq!(outcome(state), *expected, "seed {seed}");
                }
                JobStatus::Ended { outcome: Outcome::Failed(failure), .. } => {
                    assert_eq!(failure.class, "no_progress", "seed {seed}: {failure:?}");
                    failed += 1;
                }
                status => panic!("seed {seed}: {status:?}"),
            }
        }
    }
    println!("{attempts} attempts, {failed} of 120 jobs given up");
    assert!(attempts > 150, "only {attempts} attempts");
    assert!(failed < 30, "{failed} of 120 jobs were given up");
}

#[test]
fn a_job_waits_for_agents_of_one_version_and_says_so() {
    let mut simulator = connected(4);
    simulator.core.cancel(JOB, simulator.now);
    for agent in ["a", "b"] {
        replace(&mut simulator, agent, "1");
    }
    let mut wide = Submitted { request_id: "r2".into(), ..submitted(&[]) };
    wide.spec.get_or_insert_default().resources.get_or_insert_default().ranks = Some(4);
    simulator.core.submit(WIDE, wide, simulator.now);
    while simulator.core.state(WIDE).unwrap().committed.len() < 2 {
        simulator.step();
    }
    replace(&mut simulator, "b", "2");
    for _ in 0..3_000 {
        simulator.step();
    }
    let view = simulator.core.job_view(WIDE).unwrap();
    let reason = view.waiting.unwrap().reason;
    assert!(reason.contains("(and 2 on workers of another version or build)"), "{reason}");
    replace(&mut simulator, "a", "2");
    while !simulator.core.state(WIDE).unwrap().is_ended() {
        simulator.step();
    }
    assert_eq!(simulator.core.state(WIDE).unwrap().status.name(), "succeeded");
}

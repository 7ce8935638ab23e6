//! A seeded simulation of the production core: random orders of all possible events, with ranks and agents
//! dying and the coordinator restarting at any point, must end in the same committed artifacts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use foil_proto::v1::{self, rank_command::Command, rank_message::Message, rank_task};

use super::*;
use crate::job::fixture::{JOB, object, submitted};
use crate::job::{JobState, Outcome, compact_events};
use crate::simulation::machines::{chunk_result, gang_result};
use crate::simulation::rng::SimRng;
use crate::tenant::DEFAULT_TENANT;

mod cancel;
mod deletion;
mod faults;
mod queue;
mod releases;
mod simulator;
mod store;
mod tenants;
mod trust;

use self::simulator::*;

/// The result that must not depend on faults: each phase's hashes and metrics.
fn outcome(state: &JobState) -> Vec<(String, Vec<String>, Vec<v1::Metric>)> {
    let of = |done: &crate::job::Committed| {
        let own = done.artifact.objects.iter().filter(|object| object.path != "tokenizer.json");
        (done.phase.clone(), own.map(|object| object.blake3.clone()).collect(), done.metrics.clone())
    };
    state.committed.iter().map(of).collect()
}

fn simulate(seed: u64, faults: bool) -> Simulator {
    let mut simulator = Simulator::new(seed);
    simulator.faults = faults;
    for turn in 0..60_000 {
        if simulator.state().is_ended() && simulator.ranks.is_empty() {
            return simulator;
        }
        // Faults stop eventually, so that the job must end: losing three attempts in a row to them is bad
        // luck, not a bug.
        simulator.faults = faults && turn < 3_000;
        simulator.step();
    }
    panic!("seed {seed}: the job never ended: {:?}", simulator.state().status);
}

#[test]
fn a_request_has_one_job_and_cancelling_ends_it() {
    let mut simulator = Simulator::new(7);
    simulator.faults = false;
    assert_eq!(
        simulator.core.find_request(DEFAULT_TENANT, "r1").map(|(state, hash)| (state.id.as_str(), hash)),
        Some((JOB, "h"))
    );
    while simulator.state().committed.len() < 3 {
        simulator.step();
    }
    assert_eq!(simulator.core.attempts().get(JOB), Some(&1));
    assert!(simulator.core.cancel(JOB, simulator.now) && !simulator.core.cancel("none", simulator.now));
    simulator.flush();
    for _ in 0..2_000 {
        simulator.step();
    }
    assert_eq!(simulator.state().status.name(), "cancelled");
    assert!(simulator.ranks.is_empty() && simulator.core.attempts().is_empty());
    let revision = simulator.state().revision;
    assert!(simulator.core.cancel(JOB, simulator.now));
    assert_eq!(simulator.state().revision, revision, "a job that has ended does not change");
}

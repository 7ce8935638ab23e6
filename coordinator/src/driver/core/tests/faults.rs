//! Faults affect neither what is committed nor what a compacted log replays to.

use super::*;

/// A snapshot of any prefix, followed by the rest of the log, replays to the same state as the whole log.
fn check_compaction(log: &[Event], seed: u64) {
    let replay = |events: Vec<Event>| {
        Core::replay(events, 1, Liveness::default(), Deadlines::default(), issuer()).unwrap()
    };
    let whole = replay(log.to_vec());
    let at = usize::try_from(seed).unwrap() * 7 % log.len();
    let (before, rest) = log.split_at(at);
    let snapshot = compact_events(before.to_vec());
    assert_eq!(replay(snapshot.clone()).state(JOB), replay(before.to_vec()).state(JOB), "seed {seed}");
    // A second snapshot covers the rest.
    let compacted = compact_events([snapshot, rest.to_vec()].concat());
    let again = replay(compacted.clone());
    assert_eq!(again.state(JOB), whole.state(JOB), "seed {seed}");
    assert_eq!(again.history(JOB, 0), whole.history(JOB, 0), "seed {seed}");
    let ended = whole.state(JOB).is_some_and(|state| state.status.name() == "succeeded");
    assert!(
        !ended || compacted.len() < log.len() / 2,
        "{} of {} events are kept",
        compacted.len(),
        log.len()
    );
}

#[test]
fn the_same_artifacts_are_committed_whatever_fails() {
    let calm = simulate(0, false);
    assert_eq!(calm.state().status.name(), "succeeded");
    let expected = outcome(calm.state());
    let (mut deaths, mut restarts, mut failed, mut attempts) = (0, 0, 0, BTreeSet::new());
    for seed in 1..=120 {
        let simulator = simulate(seed, true);
        let state = simulator.state();
        deaths += simulator.deaths;
        restarts += simulator.restarts;
        attempts.insert(state.attempt);
        match &state.status {
            JobStatus::Ended { outcome: Outcome::Succeeded, .. } => {
                assert_eq!(outcome(state), expected, "seed {seed}");
            }
            JobStatus::Ended { outcome: Outcome::Failed(failure), .. } => {
                assert_eq!(failure.class, "no_progress", "seed {seed}: {failure:?}");
                failed += 1;
            }
            status => panic!("seed {seed}: {status:?}"),
        }
        let replayed =
            Core::replay(simulator.log.clone(), 1, Liveness::default(), Deadlines::default(), issuer())
                .unwrap();
        assert_eq!(replayed.state(JOB), Some(state), "seed {seed}: the log adds up to the live state");
        assert_eq!(replayed.history(JOB, 0).len(), simulator.core.history(JOB, 0).len());
        assert_eq!(simulator.log.len() as u64, state.revision);
        check_compaction(&simulator.log, seed);
    }
    assert!(
        deaths > 100 && restarts > 50 && attempts.len() > 2,
        "only {deaths} deaths and {restarts} restarts"
    );
    assert!(failed < 40, "{failed} of 120 jobs were given up");
}

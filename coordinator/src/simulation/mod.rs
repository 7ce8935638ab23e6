//! A seeded simulation of two coordinators: the production core and journal, with clock, store and network
//! passed in.
//!
//! Messages are delayed, lost with their streams, and duplicated; store requests are delayed, rejected, or
//! executed with the reply lost; coordinators pause (and resume after another was elected), die with requests
//! in flight, and compact their log; ranks and agents die and lose their streams. A seed determines the whole
//! history, so every run can be repeated.
//!
//! Invariants: everything that was released is in the log, once and in order; a leader with a valid lease
//! shows nothing older than what was released; no attempt is declared failed while one of its processes is
//! alive and unreachable; no job preempts one of the same or a higher priority; every job ends with the same
//! artifacts as without faults. Planted bugs show that each of these checks can fail.

mod checker;
mod coordinators;
pub(crate) mod machines;
mod node;
pub(crate) mod rng;
mod simulator;
mod store;
mod workers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use foil_common::storage::Store;
use foil_proto::v1;

use self::simulator::Simulator;
use crate::driver::core::Core;
use crate::job::fixture::{Edit, JOB};
use crate::job::{Event, JobState, JobStatus, Outcome};
use crate::journal::Journal;

/// A job of higher priority that needs the whole cluster; submitted in every fourth history.
const URGENT: &str = "urgent";
/// A job of one round.
const SMALL: &[Edit] = &[|spec| {
    spec.rounds = Some(1);
    spec.resources.get_or_insert_default().hang_timeout_seconds = Some(15);
}];
const SEEDS: u64 = 10_000;
/// Environment variable with a single seed to simulate, printing every event.
const SEED: &str = "FOIL_SIMULATION_SEED";

/// Bugs that the simulation must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// A name already taken in the log is mistaken for the process's own append.
    NoNonceCheck,
    /// Compaction removes records instead of emptying them.
    FreedNames,
    /// A new leader immediately gives up on agents that have not registered yet.
    NoFenceWait,
}

/// Result of one simulated history.
struct History {
    violation: Option<String>,
    outcome: Outcomes,
    /// The result of the urgent job, if there was one and it succeeded.
    urgent: Option<Outcomes>,
    preemptions: usize,
    deaths: usize,
    elections: u64,
    gaps: Vec<Duration>,
    given_up: bool,
}

type Outcomes = Vec<(String, Vec<String>, Vec<v1::Metric>)>;

/// The result that must not depend on faults: each phase's hashes and metrics.
fn outcome(state: &JobState) -> Outcomes {
    let of = |done: &crate::job::Committed| {
        let own = done.artifact.objects.iter().filter(|object| object.path != "tokenizer.json");
        (done.phase.clone(), own.map(|object| object.blake3.clone()).collect(), done.metrics.clone())
    };
    state.committed.iter().map(of).collect()
}

fn simulate(seed: u64, bug: Option<PlantedBug>, faults: bool) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // Jitter also depends on the seed.
        fastrand::seed(seed);
        let mut simulator = Simulator::new(seed, bug, faults);
        simulator.run().await;
        let mut history = History {
            violation: simulator.violation.take(),
            outcome: Vec::new(),
            urgent: None,
            preemptions: simulator.checker.preemptions,
            deaths: simulator.deaths,
            elections: simulator.elections,
            gaps: std::mem::take(&mut simulator.gaps),
            given_up: false,
        };
        if history.violation.is_none() {
            match audit(&simulator).await {
                Ok(core) => {
                    let failed = |state: &&JobState| {
                        matches!(state.status, JobStatus::Ended { outcome: Outcome::Failed(_), .. })
                    };
                    history.given_up = core.state(JOB).is_some_and(|state| failed(&state));
                    history.outcome = core.state(JOB).map(outcome).unwrap_or_default();
                    history.urgent = core.state(URGENT).filter(|state| !failed(state)).map(outcome);
                }
                Err(violation) => history.violation = Some(violation),
            }
        }
        history
    })
}

/// Reads the log as the next coordinator would, and checks it against everything that was released.
async fn audit(simulator: &Simulator) -> Result<Core, String> {
    let store = Store::over(simulator.inner.clone(), "sound", |_| Box::pin(tokio::task::yield_now()));
    let (_, events): (_, Vec<Event>) = Journal::open(store, "auditor", node::SNAPSHOT_POLICY)
        .await
        .map_err(|error| format!("the log cannot be read: {error}"))?;
    let core = Core::replay(
        events.clone(),
        99,
        crate::cluster::Liveness::default(),
        crate::schedule::Deadlines::default(),
        node::issuer(),
    )
    .map_err(|error| format!("the log cannot be replayed: {error}"))?;
    simulator.checker.check_log(&events, &core)?;
    core.state(JOB).is_some().then_some(core).ok_or_else(|| "there is no job".to_owned())
}

/// Simulates seeds on all processors; returns what `keep` extracts from each history.
fn simulate_all<T: Send>(
    seeds: std::ops::Range<u64>,
    bug: Option<PlantedBug>,
    keep: impl Fn(u64, History) -> T + Sync,
) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (keep, first) = (&keep, seeds.start);
    std::thread::scope(|scope| {
        let shard = |at: u64| {
            let mine = (first + at..seeds.end).step_by(threads as usize);
            scope.spawn(move || mine.map(|seed| keep(seed, simulate(seed, bug, true))).collect::<Vec<T>>())
        };
        let running: Vec<_> = (0..threads).map(shard).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("no seed panics")).collect()
    })
}

#[test]
fn ten_thousand_histories_keep_every_invariant() {
    let baseline = simulate(0, None, false);
    assert_eq!(baseline.violation, None);
    assert!(!baseline.outcome.is_empty());
    if let Some(seed) = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        let history = simulate(seed, None, true);
        println!("seed {seed}: {:?}, {} deaths", history.violation, history.deaths);
        assert!(
            history.given_up || history.outcome == baseline.outcome,
            "other artifacts: {:#?}",
            history.outcome
        );
        return;
    }
    let started = std::time::Instant::now();
    let preemptions = AtomicUsize::new(0);
    let histories = simulate_all(1..SEEDS + 1, None, |seed, history| {
        assert_eq!(history.violation, None, "seed {seed}; {SEED}={seed} simulates it alone");
        if !history.given_up {
            assert_eq!(history.outcome, baseline.outcome, "seed {seed}: other artifacts");
        }
        if let Some(urgent) = history.urgent {
            assert_eq!(urgent, baseline.outcome, "seed {seed}: other artifacts of the urgent job");
        }
        preemptions.fetch_add(history.preemptions, Ordering::Relaxed);
        (history.deaths, history.elections, history.gaps, history.given_up)
    });
    let preemptions = preemptions.into_inner();
    let seconds = started.elapsed().as_secs_f64();
    let deaths: usize = histories.iter().map(|(deaths, ..)| deaths).sum();
    let elections: u64 = histories.iter().map(|(_, elections, ..)| elections).sum();
    let given_up = histories.iter().filter(|(.., given_up)| *given_up).count();
    let mut gaps: Vec<Duration> = histories.into_iter().flat_map(|(_, _, gaps, _)| gaps).collect();
    gaps.sort();
    let p99 = gaps[gaps.len() * 99 / 100];
    println!(
        "{SEEDS} seeds in {seconds:.1} s ({:.0} a second): {deaths} deaths, {elections} elections, {preemptions} preemptions, {given_up} jobs \
         given up; {} takeovers, median {:.1} s, p99 {:.1} s",
        SEEDS as f64 / seconds,
        gaps.len(),
        gaps[gaps.len() / 2].as_secs_f64(),
        p99.as_secs_f64()
    );
    assert!(preemptions as u64 > SEEDS / 50, "too few preemptions");
    assert!(deaths as u64 > SEEDS && elections > 2 * SEEDS, "too few faults");
    assert!(given_up < SEEDS as usize / 20, "{given_up} jobs were given up");
    assert!(p99 < Duration::from_secs(10), "failover takes too long: {p99:?}");
}

#[test]
fn a_seed_is_a_history() {
    for seed in [3, 4] {
        let (first, again) = (simulate(seed, None, true), simulate(seed, None, true));
        assert_eq!((first.deaths, first.elections, first.gaps), (again.deaths, again.elections, again.gaps));
        assert!(first.outcome == again.outcome);
    }
}

#[test]
fn planted_bugs_are_caught() {
    for (bug, message) in [
        (PlantedBug::NoNonceCheck, "log"),
        (PlantedBug::FreedNames, "log"),
        (PlantedBug::NoFenceWait, "declared dead"),
    ] {
        let found = simulate_all(1..600, Some(bug), |_, history| history.violation);
        let found: Vec<String> = found.into_iter().flatten().collect();
        println!(
            "{bug:?}: caught by {} of 599 seeds, for example: {}",
            found.len(),
            found.first().map_or("", String::as_str)
        );
        assert!(
            found.iter().any(|violation| violation.contains(message)),
            "{bug:?} went unnoticed: {found:?}"
        );
    }
}

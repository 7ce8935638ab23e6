//! A seeded simulation of two coordinators: the production core and journal, with clock, store and network passed in.
//!
//! Messages are late, lost with their streams, and sent twice; store requests are late, refused, or done with the reply
//! lost; coordinators sleep (and wake up to a world with another leader), die with requests under way, and compact their
//! log; ranks and agents die and lose their streams. A seed is a history: it can be played again.
//!
//! Held against: what anybody was told is in the log, once and in order; a leader whose lease holds shows nothing older
//! than what was told; no attempt is declared dead while a process of it lives out of reach; the job ends with the
//! artifacts it has in a calm world. Planted bugs show that each of these can fail.

mod coordinators;
pub(crate) mod dice;
mod disk;
mod ledger;
pub(crate) mod machines;
mod node;
mod play;
mod world;

use std::time::Duration;

use foil_common::storage::Store;
use foil_proto::v1;

use self::world::World;
use crate::driver::core::Core;
use crate::job::fixture::{Edit, JOB};
use crate::job::{Event, JobState, Life, Outcome};
use crate::journal::Journal;

/// A game of one round.
const SMALL: &[Edit] = &[|spec| {
    spec.rounds = Some(1);
    spec.resources.get_or_insert_default().hang_timeout_seconds = Some(15);
}];
const SEEDS: u64 = 10_000;
/// Names a seed to be played alone, with every message told.
const SEED: &str = "FOIL_SIMULATION_SEED";

/// What the simulation must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A taken name of the log is taken for one's own.
    NoNonceCheck,
    /// Compaction removes records instead of emptying them.
    FreedNames,
    /// A new leader gives up at once whom it did not hear.
    NoFenceWait,
}

/// How a history went.
struct History {
    violation: Option<String>,
    outcome: Outcomes,
    deaths: usize,
    elections: u64,
    gaps: Vec<Duration>,
    given_up: bool,
}

type Outcomes = Vec<(String, Vec<String>, Vec<v1::Metric>)>;

/// What must not depend on what went wrong: each phase's hashes and figures.
fn outcome(state: &JobState) -> Outcomes {
    let of = |done: &crate::job::Committed| {
        let own = done.artifact.objects.iter().filter(|object| object.path != "tokenizer.json");
        (done.phase.clone(), own.map(|object| object.blake3.clone()).collect(), done.metrics.clone())
    };
    state.committed.iter().map(of).collect()
}

fn play(seed: u64, bug: Option<Bug>, misfortune: bool) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        // Jitter follows the seed too.
        fastrand::seed(seed);
        let mut world = World::new(seed, bug, misfortune);
        world.run().await;
        let mut history = History {
            violation: world.violation.take(),
            outcome: Vec::new(),
            deaths: world.deaths,
            elections: world.elections,
            gaps: std::mem::take(&mut world.gaps),
            given_up: false,
        };
        if history.violation.is_none() {
            match audit(&world).await {
                Ok(state) => {
                    history.given_up = matches!(state.life, Life::Ended { outcome: Outcome::Failed(_), .. });
                    history.outcome = outcome(&state);
                }
                Err(violation) => history.violation = Some(violation),
            }
        }
        history
    })
}

/// Reads the log as the next coordinator would, and holds it against what was told.
async fn audit(world: &World) -> Result<JobState, String> {
    let store = Store::over(world.inner.clone(), "sound", |_| Box::pin(tokio::task::yield_now()));
    let (_, events): (_, Vec<Event>) = Journal::open(store, "auditor", node::KEEPING)
        .await
        .map_err(|error| format!("the log cannot be read: {error}"))?;
    let core = Core::replay(
        events.clone(),
        99,
        crate::cluster::Liveness::default(),
        crate::schedule::Deadlines::default(),
        node::mint(),
    )
    .map_err(|error| format!("the log does not add up: {error}"))?;
    world.ledger.settle(&events, core.state(JOB))?;
    core.state(JOB).cloned().ok_or_else(|| "there is no job".to_owned())
}

/// Plays seeds `from..to` on all processors; gives the histories that were asked for.
fn play_all<T: Send>(
    seeds: std::ops::Range<u64>,
    bug: Option<Bug>,
    keep: impl Fn(u64, History) -> T + Sync,
) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (keep, first) = (&keep, seeds.start);
    std::thread::scope(|scope| {
        let share = |at: u64| {
            let mine = (first + at..seeds.end).step_by(threads as usize);
            scope.spawn(move || mine.map(|seed| keep(seed, play(seed, bug, true))).collect::<Vec<T>>())
        };
        let running: Vec<_> = (0..threads).map(share).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("no seed panics")).collect()
    })
}

#[test]
fn ten_thousand_histories_keep_every_promise() {
    let calm = play(0, None, false);
    assert_eq!(calm.violation, None);
    assert!(!calm.outcome.is_empty());
    if let Some(seed) = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        let history = play(seed, None, true);
        println!("seed {seed}: {:?}, {} deaths", history.violation, history.deaths);
        assert!(
            history.given_up || history.outcome == calm.outcome,
            "other artifacts: {:#?}",
            history.outcome
        );
        return;
    }
    let started = std::time::Instant::now();
    let histories = play_all(1..SEEDS + 1, None, |seed, history| {
        assert_eq!(history.violation, None, "seed {seed}; {SEED}={seed} plays it alone");
        if !history.given_up {
            assert_eq!(history.outcome, calm.outcome, "seed {seed}: other artifacts");
        }
        (history.deaths, history.elections, history.gaps, history.given_up)
    });
    let seconds = started.elapsed().as_secs_f64();
    let deaths: usize = histories.iter().map(|(deaths, ..)| deaths).sum();
    let elections: u64 = histories.iter().map(|(_, elections, ..)| elections).sum();
    let given_up = histories.iter().filter(|(.., given_up)| *given_up).count();
    let mut gaps: Vec<Duration> = histories.into_iter().flat_map(|(_, _, gaps, _)| gaps).collect();
    gaps.sort();
    let p99 = gaps[gaps.len() * 99 / 100];
    println!(
        "{SEEDS} seeds in {seconds:.1} s ({:.0} a second): {deaths} deaths, {elections} elections, {given_up} jobs given \
         up; {} takeovers, median {:.1} s, p99 {:.1} s",
        SEEDS as f64 / seconds,
        gaps.len(),
        gaps[gaps.len() / 2].as_secs_f64(),
        p99.as_secs_f64()
    );
    assert!(deaths as u64 > SEEDS && elections > 2 * SEEDS, "too calm");
    assert!(given_up < SEEDS as usize / 20, "{given_up} jobs were given up");
    assert!(p99 < Duration::from_secs(10), "a dead leader is replaced too late: {p99:?}");
}

#[test]
fn a_seed_is_a_history() {
    for seed in [3, 4] {
        let (first, again) = (play(seed, None, true), play(seed, None, true));
        assert_eq!((first.deaths, first.elections, first.gaps), (again.deaths, again.elections, again.gaps));
        assert!(first.outcome == again.outcome);
    }
}

#[test]
fn planted_bugs_are_caught() {
    for (bug, word) in
        [(Bug::NoNonceCheck, "log"), (Bug::FreedNames, "log"), (Bug::NoFenceWait, "declared dead")]
    {
        let found = play_all(1..600, Some(bug), |_, history| history.violation);
        let found: Vec<String> = found.into_iter().flatten().collect();
        println!(
            "{bug:?}: caught by {} of 599 seeds, for example: {}",
            found.len(),
            found.first().map_or("", String::as_str)
        );
        assert!(found.iter().any(|violation| violation.contains(word)), "{bug:?} went unnoticed: {found:?}");
    }
}

//! The deliveries of a leader: every job is delivered to every tracker that it names, until the job has ended
//! and the tracker has received all of it.
//!
//! Nothing waits for a tracker. Undelivered data stays in the log, and a delivery holds no more than one
//! batch of it in memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foil_common::spec::Tracker;
use foil_common::storage::StoreError;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::Sources;
use super::board::{Board, Receipt, State};
use super::delivery::{Context, Session, Target};
use super::health::{Health, Pause};
use super::http::{Failure, FailureKind};
use super::kubeflow::{self, TrainJob};
use super::source::{Cursor, Mark};
use crate::clock::{Clock, Now};
use crate::job::JobState;

/// Interval between two checks of the jobs.
const TICK: Duration = Duration::from_millis(500);
/// Number of jobs delivered to one tracker at the same time.
const PARALLEL: usize = 4;
/// Time between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a job's end its delivery is still retried.
const GIVE_UP: Duration = Duration::from_secs(7 * 24 * 3600);

type Key = (String, Tracker);

/// A job that names trackers.
struct Candidate {
    id: String,
    trackers: Vec<Tracker>,
    mark: Mark,
}

/// The delivery of one job to one tracker.
#[derive(Debug, Default)]
struct Delivery {
    stage: Stage,
    /// Pause after the tracker refused the job's data.
    pause: Pause,
    /// When undelivered data first appeared, on the monotonic clock.
    behind_since: Option<Duration>,
    state: State,
}

#[derive(Debug, Default)]
enum Stage {
    /// It is unknown what has arrived.
    #[default]
    Unknown,
    Idle(Box<Session>),
    /// Time of the last progress report.
    Reported(Duration),
    AtWork,
    Complete,
}

/// The outcome of a delivery task.
enum Done {
    Delivered {
        session: Box<Session>,
        is_complete: bool,
    },
    Reported {
        is_last: bool,
    },
    /// An earlier leader has completed the delivery.
    WasComplete,
}

/// Destination of deliveries.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    Points(Target),
    Progress(TrainJob),
}

impl Destination {
    pub(super) fn tracker(&self) -> Tracker {
        match self {
            Self::Points(target) => target.tracker(),
            Self::Progress(_) => Tracker::Kubeflow,
        }
    }
}

/// A leader's deliveries during one term.
pub(super) struct Leader {
    destinations: Vec<Destination>,
    cx: Context,
    clock: Clock,
    board: Board,
    deliveries: HashMap<Key, Delivery>,
    health: HashMap<Tracker, Health>,
    /// Jobs that have been delivered to all of their trackers.
    complete: Arc<HashSet<String>>,
    tasks: JoinSet<(Key, Result<Done, Failure>)>,
}

impl Leader {
    pub(super) fn new(sources: &Sources, cx: Context, destinations: Vec<Destination>) -> Self {
        let health = destinations.iter().map(|destination| {
            let tracker = destination.tracker();
            (tracker, Health::new(tracker))
        });
        Self {
            health: health.collect(),
            destinations,
            cx,
            clock: sources.clock,
            board: sources.board.clone(),
            deliveries: HashMap::new(),
            complete: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Delivers until the driver has stopped.
    pub(super) async fn run(mut self) {
        let driver = self.cx.driver.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = driver.ended() => break,
                _ = ticks.tick() => {}
                Some(ended) = self.tasks.join_next() => {
                    if let Ok((key, result)) = ended {
                        self.ended(&key, result, self.clock.now());
                    }
                    continue;
                }
            }
            let Ok(candidates) = self.candidates().await else { break };
            let now = self.clock.now();
            self.forget(&candidates);
            for candidate in &candidates {
                self.candidate(candidate, now);
            }
            self.show(now);
        }
        self.tasks.shutdown().await;
        self.board.clear();
        self.deliveries.clear();
        self.show(self.clock.now());
    }

    /// The jobs that have not been delivered completely.
    async fn candidates(&self) -> Result<Vec<Candidate>, crate::driver::Stopped> {
        let complete = Arc::clone(&self.complete);
        let oldest = self.clock.now().wall.saturating_sub(GIVE_UP.as_millis() as u64);
        let candidate = move |state: &JobState| {
            let trackers = &state.spec.trackers;
            if trackers.is_none() || complete.contains(&state.id) {
                return None;
            }
            let mark = Mark::of(state);
            if mark.ended_at.is_some_and(|ended| ended < oldest) {
                return None;
            }
            let trackers =
                Tracker::ALL.iter().copied().filter(|tracker| trackers.include(*tracker)).collect();
            Some(Candidate { id: state.id.clone(), trackers, mark })
        };
        self.cx.driver.survey(move |core| core.states().filter_map(candidate).collect()).await
    }

    /// Removes deliveries of jobs that no longer exist or have been given up.
    fn forget(&mut self, candidates: &[Candidate]) {
        let known: HashSet<&str> = candidates.iter().map(|candidate| candidate.id.as_str()).collect();
        let board = &self.board;
        self.deliveries.retain(|(job, tracker), delivery| {
            let stays = known.contains(job.as_str()) || matches!(delivery.stage, Stage::AtWork);
            if !stays {
                board.remove(job, *tracker);
            }
            stays
        });
    }

    fn candidate(&mut self, candidate: &Candidate, now: Now) {
        let mut is_complete = true;
        for tracker in &candidate.trackers {
            let destination = self.destinations.iter().find(|found| found.tracker() == *tracker).cloned();
            // The job says `all`, or another coordinator accepted it.
            let Some(destination) = destination else { continue };
            is_complete &= self.destination(candidate, &destination, now);
        }
        if is_complete && candidate.mark.ended_at.is_some() {
            Arc::make_mut(&mut self.complete).insert(candidate.id.clone());
        }
    }

    /// Starts a task if there is data to deliver. True if the delivery is complete.
    fn destination(&mut self, candidate: &Candidate, destination: &Destination, now: Now) -> bool {
        let key = (candidate.id.clone(), destination.tracker());
        let at_work = self.at_work(destination.tracker());
        let delivery = self.deliveries.entry(key.clone()).or_default();
        let is_due = match &delivery.stage {
            Stage::Complete => return true,
            Stage::AtWork => false,
            Stage::Unknown => true,
            Stage::Idle(session) => candidate.mark.is_after(session.cursor()),
            Stage::Reported(at) => now.since(*at) >= PROGRESS_INTERVAL,
        };
        if !is_due {
            return false;
        }
        if candidate.mark.is_after(delivery.cursor()) {
            delivery.behind_since.get_or_insert(now.mono);
        }
        let is_open = self.health.get(&key.1).is_none_or(|health| health.is_open(now.mono));
        if at_work >= PARALLEL || !is_open || !delivery.pause.is_over(now.mono) {
            return false;
        }
        let stage = std::mem::replace(&mut delivery.stage, Stage::AtWork);
        let (cx, destination, has_ended) =
            (self.cx.clone(), destination.clone(), candidate.mark.ended_at.is_some());
        self.tasks.spawn(async move {
            let result = work(&key.0, &destination, stage, has_ended, now.wall, &cx).await;
            (key, result)
        });
        false
    }

    fn at_work(&self, tracker: Tracker) -> usize {
        let of_tracker = self.deliveries.iter().filter(|((_, of), _)| *of == tracker);
        of_tracker.filter(|(_, delivery)| matches!(delivery.stage, Stage::AtWork)).count()
    }

    fn ended(&mut self, key: &Key, result: Result<Done, Failure>, now: Now) {
        let (job, tracker) = (key.0.clone(), key.1);
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let health = self.health.entry(tracker).or_insert_with(|| Health::new(tracker));
        let done = match result {
            Ok(done) => done,
            Err(failure) => {
                delivery.stage = Stage::Unknown;
                match failure.kind {
                    FailureKind::Obsolete => return,
                    FailureKind::Away => health.away(now.mono),
                    FailureKind::Refused | FailureKind::Own => delivery.pause.after_failure(now.mono),
                }
                metrics::counter!("foil_tracker_failures_total", "tracker" => tracker.name()).increment(1);
                health.warn(&job, &failure.why, now.mono);
                delivery.state.problem = failure.why;
                self.board.set(&job, tracker, delivery.state.clone());
                return;
            }
        };
        health.well();
        delivery.pause = Pause::default();
        delivery.behind_since = None;
        delivery.state.problem.clear();
        let is_complete = match done {
            Done::WasComplete => true,
            Done::Reported { is_last } => {
                delivery.stage = Stage::Reported(now.mono);
                is_last
            }
            Done::Delivered { session, is_complete } => {
                delivery.state.phases = session.cursor().phases;
                delivery.state.page = session.page().unwrap_or_default();
                delivery.stage = Stage::Idle(session);
                is_complete
            }
        };
        if is_complete {
            delivery.stage = Stage::Complete;
            self.board.remove(&job, tracker);
        } else {
            self.board.set(&job, tracker, delivery.state.clone());
        }
    }

    /// Sets the gauges of undelivered data.
    fn show(&self, now: Now) {
        for destination in &self.destinations {
            let tracker = destination.tracker();
            let of_tracker = self.deliveries.iter().filter(|((_, of), _)| *of == tracker);
            let behind: Vec<Duration> =
                of_tracker.filter_map(|(_, delivery)| Some(now.since(delivery.behind_since?))).collect();
            let oldest = behind.iter().max().map_or(0.0, Duration::as_secs_f64);
            let jobs = u32::try_from(behind.len()).unwrap_or(u32::MAX);
            metrics::gauge!("foil_tracker_behind_jobs", "tracker" => tracker.name()).set(jobs);
            metrics::gauge!("foil_tracker_behind_seconds", "tracker" => tracker.name()).set(oldest);
        }
    }
}

impl Delivery {
    fn cursor(&self) -> Cursor {
        match &self.stage {
            Stage::Idle(session) => session.cursor(),
            _ => Cursor { phases: self.state.phases, ..Cursor::default() },
        }
    }
}

/// Delivers what is available.
async fn work(
    job: &str,
    destination: &Destination,
    stage: Stage,
    has_ended: bool,
    wall: u64,
    cx: &Context,
) -> Result<Done, Failure> {
    let tracker = destination.tracker();
    // Another leader may have completed the work.
    let is_first = matches!(stage, Stage::Unknown);
    if is_first && has_ended && Receipt::read(&cx.store, job, tracker).await.map_err(own)?.is_some() {
        return Ok(Done::WasComplete);
    }
    let (done, receipt) = match destination {
        Destination::Points(target) => {
            let mut session = match stage {
                Stage::Idle(session) => session,
                _ => Box::new(Session::open(target, job, cx).await?),
            };
            let is_complete = session.deliver(cx).await?;
            let page = session.page().unwrap_or_default();
            let receipt = Receipt { phases: session.cursor().phases, page };
            (Done::Delivered { session, is_complete }, is_complete.then_some(receipt))
        }
        Destination::Progress(trainjob) => {
            let id = job.to_owned();
            let found = cx.driver.survey(move |core| kubeflow::progress(core, &id, wall)).await;
            let progress = found.ok().flatten().ok_or_else(Failure::obsolete)?;
            trainjob.report(&progress, wall, &cx.lease).await?;
            let is_last = progress.is_last;
            (Done::Reported { is_last }, is_last.then(Receipt::default))
        }
    };
    if let Some(receipt) = receipt {
        receipt.write(&cx.store, job, tracker).await.map_err(own)?;
    }
    Ok(done)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn own(error: StoreError) -> Failure {
    Failure::new(FailureKind::Own, format!("the store failed: {error}"))
}

//! The delivery of one job to one tracker: the job's log is sent part by part, each part before the next is
//! read.

use foil_common::spec::Tracker;
use foil_common::storage::Store;
use foil_proto::v1;
use tonic::{Code, Status};

use super::batch::{Batch, JobFacts};
use super::http::{Failure, FailureKind};
use super::mlflow::{Api, Run};
use super::points::{self, Line, Point, StepReader};
use super::samples;
use super::source::{self, Cursor, Next, PhaseFacts, StepCounts};
use super::tensorboard::Writer;
use crate::driver::Handle;
use crate::driver::core::Core;
use crate::job::JobState;
use crate::lease::Lease;
use crate::plan::Work;
use crate::rpc::results::Feed;

/// Number of points held in memory; more are sent in several batches.
const WINDOW: usize = 20_000;

/// Dependencies of a delivery.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) driver: Handle,
    pub(super) feed: Feed,
    pub(super) store: Store,
    pub(super) lease: Lease,
}

impl Context {
    /// Runs a query of a job's state.
    pub(super) async fn inspect<T: Send + 'static>(
        &self,
        job: &str,
        look: impl FnOnce(&JobState) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let found = self.driver.unscoped().inspect(job, look).await;
        found.ok().flatten().ok_or_else(Failure::obsolete)
    }
}

/// Destination of a job's points.
#[derive(Debug)]
enum Sink {
    TensorBoard(Writer),
    Mlflow(Run),
}

/// A delivery in progress. After a failure it is dropped, and the next one asks the server what has arrived.
#[derive(Debug)]
pub(super) struct Session {
    job: JobFacts,
    sink: Sink,
    cursor: Cursor,
    counts: StepCounts,
    running: Option<Running>,
}

/// The running phase, with the position up to which its lines have been read.
#[derive(Debug)]
struct Running {
    phase: String,
    attempt: u32,
    /// Number of bytes of its lines that have been read.
    from: usize,
    reader: StepReader,
}

/// Destination that [`Session::open`] connects to.
#[derive(Debug, Clone)]
pub(super) enum Target {
    TensorBoard,
    Mlflow(Api),
}

impl Target {
    pub(super) fn tracker(&self) -> Tracker {
        match self {
            Self::TensorBoard => Tracker::TensorBoard,
            Self::Mlflow(_) => Tracker::Mlflow,
        }
    }
}

impl Session {
    pub(super) async fn open(target: &Target, job: &str, cx: &Context) -> Result<Self, Failure> {
        let job = cx.inspect(job, JobFacts::of).await?;
        let (sink, cursor) = match target {
            Target::TensorBoard => {
                let (writer, cursor) = Writer::open(cx.store.clone(), &job).await?;
                (Sink::TensorBoard(writer), cursor)
            }
            // The server knows for each point whether it has arrived.
            Target::Mlflow(api) => {
                (Sink::Mlflow(Run::open(api.clone(), &job, &cx.lease).await?), Cursor::default())
            }
        };
        let counts = cx.inspect(&job.id, move |state| StepCounts::until(state, cursor.phases)).await?;
        Ok(Self { job, sink, cursor, counts, running: None })
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The URL of the run's page, if the tracker has one.
    pub(super) fn page(&self) -> Option<String> {
        match &self.sink {
            Sink::TensorBoard(_) => None,
            Sink::Mlflow(run) => Some(run.page()),
        }
    }

    /// Delivers everything available. True if the job has ended and has been delivered completely.
    pub(super) async fn deliver(&mut self, cx: &Context) -> Result<bool, Failure> {
        loop {
            let cursor = self.cursor;
            match cx.inspect(&self.job.id, move |state| source::next(state, cursor)).await? {
                Next::Phase { facts, metrics, steps } => self.phase(facts, &metrics, steps, cx).await?,
                Next::Steps { facts, attempt, until } => {
                    if !self.steps(facts, attempt, until, cx).await? {
                        return Ok(false);
                    }
                }
                Next::End { at, outcome } => {
                    let batch = Batch { ending: Some((at, outcome)), ..Batch::default() };
                    self.send(&batch, Cursor { ended: true, ..cursor }, cx).await?;
                }
                Next::Nothing => return Ok(cursor.ended),
            }
        }
    }

    async fn send(&mut self, batch: &Batch, after: Cursor, cx: &Context) -> Result<(), Failure> {
        match &mut self.sink {
            Sink::TensorBoard(writer) => writer.write(&self.job, batch, after, &cx.lease).await?,
            Sink::Mlflow(run) => run.send(batch, &cx.lease).await?,
        }
        let tracker = match &self.sink {
            Sink::TensorBoard(_) => Tracker::TensorBoard,
            Sink::Mlflow(_) => Tracker::Mlflow,
        };
        let number = batch.points.len() as u64;
        metrics::counter!("foil_tracker_points_total", "tracker" => tracker.name()).increment(number);
        self.cursor = after;
        Ok(())
    }

    /// Delivers a committed phase: its steps, its own metrics, and its round's results.
    async fn phase(
        &mut self,
        facts: PhaseFacts,
        metrics: &[v1::Metric],
        steps: Option<v1::Object>,
        cx: &Context,
    ) -> Result<(), Failure> {
        let mut batch = Batch::default();
        if let Some(object) = steps {
            loop {
                let (points, last) = self.window(&facts, &object, cx).await?;
                if points.len() < WINDOW {
                    batch.points = points;
                    break;
                }
                let after = Cursor { steps: last, ..self.cursor };
                self.send(&Batch { points, ..Batch::default() }, after, cx).await?;
            }
        }
        batch.points.extend(points::of_phase(&facts, metrics));
        if facts.phase.work == Work::EvaluatePolicy {
            self.evaluated(&mut batch, &facts, cx).await?;
        }
        let after = Cursor { phases: self.cursor.phases + 1, ..Cursor::default() };
        self.send(&batch, after, cx).await?;
        self.counts.passed(&facts, metrics);
        self.running = None;
        Ok(())
    }

    /// Adds everything besides metrics that the tracker shows of the round whose policy was evaluated.
    async fn evaluated(&self, batch: &mut Batch, facts: &PhaseFacts, cx: &Context) -> Result<(), Failure> {
        match &self.sink {
            Sink::TensorBoard(_) => {
                batch.completions = samples::completions(&self.job, facts, cx).await?;
                batch.histograms = samples::histograms(&self.job, facts, cx).await?;
            }
            Sink::Mlflow(run) if run.lacks_completions(facts.phase.round) => {
                batch.completions = samples::completions(&self.job, facts, cx).await?;
            }
            Sink::Mlflow(_) => {}
        }
        Ok(())
    }

    /// The next points of a committed phase's steps, and the last step that they cover.
    async fn window(
        &self,
        facts: &PhaseFacts,
        object: &v1::Object,
        cx: &Context,
    ) -> Result<(Vec<Point>, u64), Failure> {
        let mut reader = self.reader(facts.clone());
        let (mut points, mut last) = (Vec::new(), self.cursor.steps);
        let wanted = (self.cursor.steps, u64::MAX);
        let read = cx.feed.lines(object, |line| {
            if points.len() >= WINDOW {
                return Ok(());
            }
            match reader.line(line, wanted, &mut points) {
                Ok(Line::Step(step)) => last = step,
                Ok(Line::Beyond | Line::Other) => {}
                Err(error) => return Err(Status::data_loss(error.to_string())),
            }
            Ok(())
        });
        match read.await {
            Ok(()) => Ok((points, last)),
            // The lost steps cannot be recovered, and must not block the rest.
            Err(status) if matches!(status.code(), Code::DataLoss | Code::NotFound) => {
                let (job, phase) = (&self.job.id, facts.phase.id.as_str());
                tracing::warn!(
                    job,
                    phase,
                    why = status.message(),
                    "a phase's steps cannot be read for a tracker"
                );
                Ok((Vec::new(), last))
            }
            Err(status) => Err(own(&status)),
        }
    }

    fn reader(&self, facts: PhaseFacts) -> StepReader {
        let offset = self.counts.of(facts.phase.work);
        StepReader::new(facts, offset, self.job.logging_steps)
    }

    /// Delivers steps of the running phase, up to its last checkpoint. False if no more are available for
    /// now.
    async fn steps(
        &mut self,
        facts: PhaseFacts,
        attempt: u32,
        until: u64,
        cx: &Context,
    ) -> Result<bool, Failure> {
        let phase = facts.phase.id.to_string();
        let mut running = match self.running.take() {
            Some(running) if (running.phase.as_str(), running.attempt) == (phase.as_str(), attempt) => {
                running
            }
            _ => Running { phase: phase.clone(), attempt, from: 0, reader: self.reader(facts) },
        };
        let (job, from) = (self.job.id.clone(), running.from);
        let lines = move |core: &Core| source::running_lines(core, &job, &phase, attempt, from);
        let lines = cx.driver.survey(lines).await.map_err(|_| Failure::obsolete())?;
        // A new leader has not received all steps yet, or the phase is being committed or interrupted.
        let Some(lines) = lines.filter(|lines| !lines.is_empty()) else {
            self.running = Some(running);
            return Ok(false);
        };
        let (mut points, mut last, mut is_at_end) = (Vec::new(), self.cursor.steps, false);
        for line in lines.split_inclusive('\n') {
            let wanted = (self.cursor.steps, until);
            match running.reader.line(line.trim_end().as_bytes(), wanted, &mut points) {
                Ok(Line::Step(step)) => last = last.max(step),
                Ok(Line::Other) | Err(_) => {}
                Ok(Line::Beyond) => {
                    is_at_end = true;
                    break;
                }
            }
            running.from += line.len();
        }
        self.running = Some(running);
        let after = Cursor { steps: last, ..self.cursor };
        self.send(&Batch { points, ..Batch::default() }, after, cx).await?;
        Ok(!is_at_end)
    }
}

/// The failure to read the job's results.
pub(super) fn own(status: &Status) -> Failure {
    match status.code() {
        Code::NotFound => Failure::obsolete(),
        _ => {
            Failure::new(FailureKind::Own, format!("the job's results cannot be read: {}", status.message()))
        }
    }
}

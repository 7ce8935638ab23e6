//! Progress reports of the device thread to the coordinator.
//!
//! Progress counts rows, samples or bytes, never time: a stuck rank stops reporting, which distinguishes it
//! from a slow one.

#![expect(clippy::disallowed_methods, reason = "reports are rate-limited")]

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use foil_common::activity::Activity;
use foil_common::otlp::TraceContext;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use tokio::sync::mpsc::UnboundedSender;

use super::WorkSpan;
use super::thread_bytes::{Direction, ThreadBytes};
use crate::task::{ChunkTask, GangTask, Object};

/// Minimum interval between two reports of one kind.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which a thread's bytes are polled: longer than [`REPORT_INTERVAL`], so that every poll can be
/// reported.
const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// Sends messages on the session's stream without blocking. Messages after the session's end are lost; the
/// rank ends with the session.
#[derive(Clone, Debug)]
pub struct Reporter {
    messages: UnboundedSender<v1::RankMessage>,
    task: Arc<Mutex<Task>>,
}

/// Progress of the current task.
#[derive(Debug, Default)]
struct Task {
    phase: String,
    chunk: u32,
    /// Totals over the whole task, so that a count that stops increasing means a stuck rank.
    activities: BTreeMap<Activity, Count>,
    last: Option<LastReport>,
    /// The parent of the next spans.
    trace: Option<TraceContext>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    done: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug)]
struct LastReport {
    at: Instant,
    /// `None` for rows or samples.
    activity: Option<Activity>,
}

/// Time that a training step took on this rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepUsage {
    /// Time that its host spent waiting for other ranks, if it waits.
    pub collective_wait: Option<Duration>,
    /// Peak bytes of tensors on its GPU since the process started, if it has one.
    pub device_memory_peak: Option<u64>,
}

/// Durations of a shard of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct ShardTimes {
    /// Time that training waited.
    pub stall: Duration,
    /// Time for writing, hashing and uploading.
    pub upload: Duration,
}

impl Reporter {
    pub fn new(messages: UnboundedSender<v1::RankMessage>) -> Self {
        Self { messages, task: Arc::default() }
    }

    pub fn send(&self, message: Message) {
        let _ = self.messages.send(v1::RankMessage { message: Some(message) });
    }

    /// Reports a chunk's result.
    pub fn chunk_done(
        &self,
        task: &ChunkTask,
        object: Object,
        moments: Vec<v1::Moments>,
        calibration: Option<v1::Calibration>,
        seconds: f64,
    ) {
        self.send(Message::Chunk(v1::ChunkResult {
            lease: task.lease,
            phase: task.phase.name.clone(),
            chunk: task.chunk,
            object: Some(object.into()),
            moments,
            calibration,
            seconds,
        }));
    }

    /// Reports a training step.
    pub fn step_done(
        &self,
        task: &GangTask,
        step: u64,
        steps: u64,
        metrics: Vec<v1::Metric>,
        usage: StepUsage,
    ) {
        self.send(Message::Step(v1::StepReport {
            phase: task.phase.name.clone(),
            attempt: task.attempt,
            step,
            steps,
            metrics,
            collective_wait_seconds: usage.collective_wait.map(|wait| wait.as_secs_f64()),
            device_memory_peak_bytes: usage.device_memory_peak,
        }));
    }

    /// Reports the address at which rank 0 of a gang listens.
    pub fn rendezvous_open(&self, task: &GangTask, host: &str, port: u16) {
        self.send(Message::Rendezvous(v1::RendezvousOffer {
            phase: task.phase.name.clone(),
            attempt: task.attempt,
            host: host.to_owned(),
            port: port.into(),
        }));
    }

    /// Reports this rank's uploaded shard of a checkpoint.
    pub fn checkpoint_shard_done(&self, task: (&str, u32), step: u64, shard: Object, times: ShardTimes) {
        let (phase, attempt) = task;
        self.send(Message::Checkpoint(v1::CheckpointShard {
            phase: phase.to_owned(),
            attempt,
            step,
            object: Some(shard.into()),
            stall_seconds: Some(times.stall.as_secs_f64()),
            upload_seconds: Some(times.upload.as_secs_f64()),
        }));
    }

    /// Reports a gang phase's result.
    pub fn gang_done(
        &self,
        task: &GangTask,
        objects: Vec<Object>,
        metrics: Vec<v1::Metric>,
        parameters_blake3: String,
    ) {
        self.send(Message::Gang(v1::GangResult {
            phase: task.phase.name.clone(),
            attempt: task.attempt,
            objects: objects.into_iter().map(v1::Object::from).collect(),
            metrics,
            parameters_blake3,
        }));
    }

    /// Starts reporting for a new task, whose spans are children of `trace`.
    pub fn begin_task(&self, phase: &str, chunk: u32, trace: Option<TraceContext>) {
        *self.task() = Task { phase: phase.to_owned(), chunk, trace, ..Task::default() };
    }

    /// Begins a part of the task's work.
    pub fn span(&self, name: &'static str) -> WorkSpan {
        let task = self.task();
        WorkSpan::begin(task.trace, name).with("foil.phase", task.phase.as_str())
    }

    /// Begins work that becomes the parent of the task's later spans.
    pub fn outer_span(&self, name: &'static str) -> WorkSpan {
        let span = self.span(name);
        if let Some(context) = span.context() {
            self.task().trace = Some(context);
        }
        span
    }

    /// Reports rows or samples of the task. At most one message per [`REPORT_INTERVAL`] is sent and the rest
    /// are dropped. The end of a chunk is reported by its result.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.report(&mut self.task(), None, Count { done, total }, unit);
    }

    /// Announces `amount` more units of an activity.
    pub fn expect(&self, activity: Activity, amount: u64) {
        self.count(activity, |count| count.total += amount);
    }

    /// Counts `amount` more units of an activity as done.
    pub fn advance(&self, activity: Activity, amount: u64) {
        self.count(activity, |count| count.done += amount);
    }

    /// Runs `work`, which reads about `expected` bytes of files on this thread, and reports the bytes during
    /// the work.
    pub fn reading<T>(&self, activity: Activity, expected: u64, work: impl FnOnce() -> T) -> T {
        self.moving(activity, expected, Direction::Read, work)
    }

    /// Runs `work`, which writes about `expected` bytes to files on this thread, and reports the bytes during
    /// the work.
    pub fn writing<T>(&self, activity: Activity, expected: u64, work: impl FnOnce() -> T) -> T {
        self.moving(activity, expected, Direction::Written, work)
    }

    fn moving<T>(
        &self,
        activity: Activity,
        expected: u64,
        direction: Direction,
        work: impl FnOnce() -> T,
    ) -> T {
        self.expect(activity, expected);
        let bytes = ThreadBytes::current_thread(direction);
        let Some(start) = bytes.now() else {
            tracing::warn!(%activity, "this kernel does not count a thread's bytes; cannot report progress");
            return work();
        };
        thread::scope(|scope| {
            // Dropped at the end of the work, even after a panic.
            let (_done, ended) = mpsc::channel();
            let watch = move || self.watch(activity, &bytes, start, &ended);
            if let Err(error) = thread::Builder::new().name("bytes".to_owned()).spawn_scoped(scope, watch) {
                tracing::warn!(%error, %activity, "cannot report progress");
            }
            work()
        })
    }

    /// Reports the bytes that a thread transfers beyond `reported`, until `ended` is closed.
    fn watch(&self, activity: Activity, bytes: &ThreadBytes, mut reported: u64, ended: &mpsc::Receiver<()>) {
        loop {
            let is_done = ended.recv_timeout(POLL_INTERVAL) != Err(RecvTimeoutError::Timeout);
            let now = bytes.now().unwrap_or(reported);
            if now > reported {
                self.advance(activity, now - reported);
                reported = now;
            }
            if is_done {
                return;
            }
        }
    }

    fn count(&self, activity: Activity, change: impl FnOnce(&mut Count)) {
        let mut task = self.task();
        let count = task.activities.entry(activity).or_default();
        change(count);
        // The expected amount is an estimate, since a transfer may have to restart.
        count.total = count.total.max(count.done);
        let count = *count;
        self.report(&mut task, Some(activity), count, activity.unit());
    }

    fn report(&self, task: &mut Task, activity: Option<Activity>, count: Count, unit: &str) {
        let at = Instant::now();
        if task.last.is_some_and(|last| last.activity == activity && at - last.at < REPORT_INTERVAL) {
            return;
        }
        task.last = Some(LastReport { at, activity });
        self.send(Message::Progress(v1::TaskProgress {
            phase: task.phase.clone(),
            chunk: task.chunk,
            done: count.done,
            total: count.total,
            unit: unit.to_owned(),
            activity: activity.map(v1::Activity::from).unwrap_or_default().into(),
        }));
    }

    fn task(&self) -> MutexGuard<'_, Task> {
        // Counts are always consistent, even after a panic elsewhere.
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn reporter() -> (Reporter, impl FnMut() -> Vec<Message>) {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<v1::RankMessage>();
        let sent = move || std::iter::from_fn(|| receiver.try_recv().ok()?.message).collect();
        (Reporter::new(sender), sent)
    }

    fn reported(messages: &[Message]) -> Vec<(u64, u64, &str)> {
        let progress = messages.iter().filter_map(|message| match message {
            Message::Progress(reported) => Some((reported.done, reported.total, reported.unit.as_str())),
            _ => None,
        });
        progress.collect()
    }

    #[test]
    fn progress_is_throttled_and_results_are_not() {
        let (reporter, mut sent) = reporter();
        reporter.begin_task("r01.policy.generate", 3, None);
        for done in 0..1000 {
            reporter.progress(done, 1000, "samples");
        }
        reporter.send(Message::Step(v1::StepReport::default()));
        let messages = sent();
        assert!(messages.len() < 10);
        let Message::Progress(first) = &messages[0] else { panic!("{messages:?}") };
        assert_eq!((first.phase.as_str(), first.chunk), ("r01.policy.generate", 3));
        assert!(matches!(messages.last(), Some(Message::Step(_))));
    }

    #[test]
    fn a_stage_is_told_when_it_begins_and_counts_on_over_a_task() {
        let (reporter, mut sent) = reporter();
        reporter.begin_task("r01.reward.train", 0, None);
        reporter.expect(Activity::Downloading, 10);
        reporter.advance(Activity::Downloading, 10);
        reporter.expect(Activity::Encoding, 3);
        reporter.expect(Activity::Downloading, 5);
        assert_eq!(
            reported(&sent()),
            [(0, 10, "bytes downloaded"), (0, 3, "rows encoded"), (10, 15, "bytes downloaded")]
        );
        reporter.begin_task("r01.policy.train", 0, None);
        reporter.advance(Activity::Downloading, 7);
        assert_eq!(reported(&sent()), [(7, 7, "bytes downloaded")], "a new task starts at 0");
    }

    #[test]
    fn a_slow_read_is_reported_only_while_it_moves() {
        let (reporter, mut sent) = reporter();
        let mut zeros = std::fs::File::open("/dev/zero").unwrap();
        let stuck = reporter.reading(Activity::Loading, 3000, || {
            assert_eq!(reported(&sent()), [(0, 3000, "bytes loaded")]);
            for round in 1..=3 {
                zeros.read_exact(&mut [0; 1000]).unwrap();
                let looks = std::iter::repeat_with(|| {
                    thread::sleep(POLL_INTERVAL / 10);
                    sent()
                });
                let message = looks.take(500).find(|sent| !sent.is_empty()).unwrap();
                let [(done, ..)] = reported(&message)[..] else { panic!("{message:?}") };
                // Reading the counter itself also counts.
                assert_eq!(done / 1000, round, "{message:?}");
            }
            thread::sleep(3 * POLL_INTERVAL);
            sent()
        });
        assert!(stuck.is_empty(), "nothing moves: {stuck:?}");
    }
}

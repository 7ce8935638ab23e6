//! What the device thread tells the coordinator while it works.
//!
//! Progress is what moves: rows, samples, bytes. Nothing here speaks for the passing of time, so that a rank that is
//! stuck falls silent and can be told from one that is slow.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use foil_common::activity::Activity;
use foil_proto::v1;
use foil_proto::v1::rank_message::Message;
use tokio::sync::mpsc::UnboundedSender;

use super::thread_bytes::{Direction, ThreadBytes};

/// Between two progress messages of one kind.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);
/// Between two looks at what a thread has moved: longer, so that what is seen is told.
const WATCH_PERIOD: Duration = Duration::from_millis(400);

/// Sends messages on the session's stream; never waits. Messages after the session's end are lost, as the rank is.
#[derive(Clone, Debug)]
pub struct Reporter {
    messages: UnboundedSender<v1::RankMessage>,
    task: Arc<Mutex<Task>>,
}

/// The present task's progress.
#[derive(Debug, Default)]
struct Task {
    phase: String,
    chunk: u32,
    /// Counted over the whole task, so that a count that stands still means a rank that does.
    activities: BTreeMap<Activity, Count>,
    last: Option<Told>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    done: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    at: Instant,
    /// None: rows or samples.
    activity: Option<Activity>,
}

impl Reporter {
    pub fn new(messages: UnboundedSender<v1::RankMessage>) -> Self {
        Self { messages, task: Arc::default() }
    }

    pub fn send(&self, message: Message) {
        let _ = self.messages.send(v1::RankMessage { message: Some(message) });
    }

    /// What is told from here on is of this task.
    pub fn enter(&self, phase: &str, chunk: u32) {
        *self.task() = Task { phase: phase.to_owned(), chunk, ..Task::default() };
    }

    /// Tells of the task's rows or samples. At most one message in a quarter of a second; the rest are dropped, the end
    /// of a chunk being told by its result.
    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.tell(&mut self.task(), None, Count { done, total }, unit);
    }

    /// Announces `amount` more units of an activity.
    pub fn expect(&self, activity: Activity, amount: u64) {
        self.count(activity, |count| count.total += amount);
    }

    /// Counts `amount` more units of an activity as done.
    pub fn advance(&self, activity: Activity, amount: u64) {
        self.count(activity, |count| count.done += amount);
    }

    /// Runs `work`, which reads about `expected` bytes of files on this thread, and tells of them as they come.
    pub fn reading<T>(&self, activity: Activity, expected: u64, work: impl FnOnce() -> T) -> T {
        self.moving(activity, expected, Direction::Read, work)
    }

    /// Runs `work`, which writes about `expected` bytes to files on this thread, and tells of them as they go.
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
        let bytes = ThreadBytes::of_this_thread(direction);
        let Some(start) = bytes.now() else {
            tracing::warn!(%activity, "this kernel does not count a thread's bytes: its progress cannot be told");
            return work();
        };
        thread::scope(|scope| {
            // Dropped at the end of the work, also where that is a panic.
            let (_over, ended) = mpsc::channel();
            let watch = move || self.watch(activity, &bytes, start, &ended);
            if let Err(error) = thread::Builder::new().name("bytes".to_owned()).spawn_scoped(scope, watch) {
                tracing::warn!(%error, %activity, "its progress cannot be told");
            }
            work()
        })
    }

    /// Tells what a thread moves from `told` bytes on until `ended` says that it is done.
    fn watch(&self, activity: Activity, bytes: &ThreadBytes, mut told: u64, ended: &mpsc::Receiver<()>) {
        loop {
            let over = ended.recv_timeout(WATCH_PERIOD) != Err(RecvTimeoutError::Timeout);
            let now = bytes.now().unwrap_or(told);
            if now > told {
                self.advance(activity, now - told);
                told = now;
            }
            if over {
                return;
            }
        }
    }

    fn count(&self, activity: Activity, change: impl FnOnce(&mut Count)) {
        let mut task = self.task();
        let count = task.activities.entry(activity).or_default();
        change(count);
        // What was expected is a guess where a transfer had to start again.
        count.total = count.total.max(count.done);
        let count = *count;
        self.tell(&mut task, Some(activity), count, activity.unit());
    }

    fn tell(&self, task: &mut Task, activity: Option<Activity>, count: Count, unit: &str) {
        let at = Instant::now();
        if task.last.is_some_and(|last| last.activity == activity && at - last.at < PROGRESS_PERIOD) {
            return;
        }
        task.last = Some(Told { at, activity });
        self.send(Message::Progress(v1::TaskProgress {
            phase: task.phase.clone(),
            chunk: task.chunk,
            done: count.done,
            total: count.total,
            unit: unit.to_owned(),
        }));
    }

    fn task(&self) -> MutexGuard<'_, Task> {
        // Counts are whole at any moment: a panic elsewhere leaves nothing half done.
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

    fn told(messages: &[Message]) -> Vec<(u64, u64, &str)> {
        let progress = messages.iter().filter_map(|message| match message {
            Message::Progress(told) => Some((told.done, told.total, told.unit.as_str())),
            _ => None,
        });
        progress.collect()
    }

    #[test]
    fn progress_is_throttled_and_results_are_not() {
        let (reporter, mut sent) = reporter();
        reporter.enter("r01.policy.generate", 3);
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
        reporter.enter("r01.reward.train", 0);
        reporter.expect(Activity::Downloading, 10);
        reporter.advance(Activity::Downloading, 10);
        reporter.expect(Activity::Encoding, 3);
        reporter.expect(Activity::Downloading, 5);
        assert_eq!(
            told(&sent()),
            [(0, 10, "bytes downloaded"), (0, 3, "rows encoded"), (10, 15, "bytes downloaded")]
        );
        reporter.enter("r01.policy.train", 0);
        reporter.advance(Activity::Downloading, 7);
        assert_eq!(told(&sent()), [(7, 7, "bytes downloaded")], "a new task counts anew");
    }

    #[test]
    fn slow_reading_is_told_while_it_moves_and_no_longer() {
        let (reporter, mut sent) = reporter();
        let mut zeros = std::fs::File::open("/dev/zero").unwrap();
        let stuck = reporter.reading(Activity::Loading, 3000, || {
            assert_eq!(told(&sent()), [(0, 3000, "bytes loaded")]);
            for round in 1..=3 {
                zeros.read_exact(&mut [0; 1000]).unwrap();
                let looks = std::iter::repeat_with(|| {
                    thread::sleep(WATCH_PERIOD / 10);
                    sent()
                });
                let message = looks.take(500).find(|sent| !sent.is_empty()).unwrap();
                let [(done, ..)] = told(&message)[..] else { panic!("{message:?}") };
                // The account itself was read too.
                assert_eq!(done / 1000, round, "{message:?}");
            }
            thread::sleep(3 * WATCH_PERIOD);
            sent()
        });
        assert!(stuck.is_empty(), "nothing moves: {stuck:?}");
    }
}

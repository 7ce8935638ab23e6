//! Job history for metrics that compare an event with earlier ones of the same job.

use std::collections::HashMap;

use crate::schedule::StepTaken;

/// A step report, compared with earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Report {
    /// The step was taken for the first time.
    New,
    /// The step was repeated, because the first attempt that took it ended before a checkpoint included it.
    Replayed,
    /// The rank repeats a report that it or the attempt that it continues has already made.
    Repeated,
}

/// A completed stage of a recovery.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) seconds: f64,
}

/// History of the running jobs. A new leader starts with an empty one: whatever began under the previous
/// leader is not measured.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    jobs: HashMap<String, Tracked>,
    /// Number of steps taken by all jobs, and how many of them were repeated.
    taken: u64,
    replayed: u64,
}

#[derive(Debug, Default)]
struct Tracked {
    recovery: Option<Recovery>,
    steps: Steps,
    /// Durations of the current phase's chunks, in seconds.
    chunks: Vec<f64>,
}

/// Minimum number of chunks for a map phase to have a straggler.
const MIN_CHUNKS: usize = 3;

/// A recovery continues until the next attempt commits something; times in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
enum Recovery {
    /// Waiting for devices since the end of an attempt.
    Devices { since: u64 },
    /// Waiting for the first step, chunk or commit since the start of an attempt.
    Progress { since: u64 },
}

/// The steps of a phase that have been reported.
#[derive(Debug, Default)]
struct Steps {
    phase: String,
    attempt: u32,
    /// The last step of this attempt.
    last: u64,
    /// The last step of any earlier attempt.
    before: u64,
}

impl Tracker {
    pub(super) fn attempt_ended(&mut self, job: &str, at: u64) {
        self.jobs.entry(job.to_owned()).or_default().recovery = Some(Recovery::Devices { since: at });
    }

    /// The end of the wait for devices, if the job is recovering.
    pub(super) fn attempt_started(&mut self, job: &str, at: u64) -> Option<Stage> {
        let tracked = self.jobs.get_mut(job)?;
        let Some(Recovery::Devices { since }) = tracked.recovery else { return None };
        tracked.recovery = Some(Recovery::Progress { since: at });
        Some(Stage { name: "devices", seconds: seconds(since, at) })
    }

    /// The end of a recovery, if this is the first progress after it.
    pub(super) fn progressed(&mut self, job: &str, at: u64) -> Option<Stage> {
        let tracked = self.jobs.get_mut(job)?;
        let Some(Recovery::Progress { since }) = tracked.recovery else { return None };
        tracked.recovery = None;
        Some(Stage { name: "progress", seconds: seconds(since, at) })
    }

    pub(super) fn step(&mut self, job: &str, step: &StepTaken) -> Report {
        let steps = &mut self.jobs.entry(job.to_owned()).or_default().steps;
        if steps.phase != step.phase {
            *steps = Steps { phase: step.phase.clone(), ..Steps::default() };
        }
        if step.attempt > steps.attempt {
            steps.before = steps.before.max(steps.last);
            (steps.attempt, steps.last) = (step.attempt, 0);
        }
        if step.step <= steps.last.max(step.resumed_after) {
            return Report::Repeated;
        }
        steps.last = step.step;
        self.taken += 1;
        if step.step > steps.before {
            return Report::New;
        }
        self.replayed += 1;
        Report::Replayed
    }

    /// Fraction of the steps that were not repeats; none before the first step.
    pub(super) fn goodput(&self) -> Option<f64> {
        (self.taken > 0).then(|| 1.0 - self.replayed as f64 / self.taken as f64)
    }

    pub(super) fn chunk_done(&mut self, job: &str, seconds: f64) {
        self.jobs.entry(job.to_owned()).or_default().chunks.push(seconds);
    }

    /// Ratio of the slowest chunk's duration to the median in a committed phase; none for a phase of few
    /// chunks.
    pub(super) fn straggler_ratio(&mut self, job: &str) -> Option<f64> {
        let mut chunks = std::mem::take(&mut self.jobs.get_mut(job)?.chunks);
        chunks.sort_by(f64::total_cmp);
        let (median, slowest) = (chunks.get(chunks.len() / 2)?, chunks.last()?);
        (chunks.len() >= MIN_CHUNKS && *median > 0.0).then(|| slowest / median)
    }

    pub(super) fn ended(&mut self, job: &str) {
        self.jobs.remove(job);
    }
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Work;

    fn step(attempt: u32, step: u64, resumed_after: u64) -> StepTaken {
        StepTaken {
            work: Work::TrainPolicy,
            phase: "r01.policy.train".into(),
            attempt,
            step,
            resumed_after,
            seconds: None,
            tokens: 0,
            is_finite: true,
        }
    }

    #[test]
    fn steps_after_the_last_checkpoint_are_replayed_and_reports_of_those_before_it_are_repeated() {
        let mut tracker = Tracker::default();
        for number in 1..=5 {
            assert_eq!(tracker.step("j", &step(1, number, 0)), Report::New);
        }
        // The rank lost its connection and repeats its earlier reports.
        assert_eq!(tracker.step("j", &step(1, 4, 0)), Report::Repeated);
        // Attempt 2 continues after a checkpoint of step 3.
        let second: Vec<Report> = (1..=7).map(|number| tracker.step("j", &step(2, number, 3))).collect();
        let expected = [[Report::Repeated; 3].as_slice(), &[Report::Replayed; 2], &[Report::New; 2]].concat();
        assert_eq!(second, expected);
        assert_eq!(tracker.goodput(), Some(1.0 - 2.0 / 9.0));
        let next = StepTaken { phase: "r02.policy.train".into(), ..step(2, 1, 0) };
        assert_eq!(tracker.step("j", &next), Report::New);
    }

    #[test]
    fn a_straggler_is_measured_by_the_median_of_its_phase() {
        let mut tracker = Tracker::default();
        for seconds in [1.0, 8.0, 2.0, 2.0] {
            tracker.chunk_done("j", seconds);
        }
        tracker.chunk_done("other", 100.0);
        assert_eq!(tracker.straggler_ratio("j"), Some(4.0));
        assert_eq!(tracker.straggler_ratio("j"), None, "the next phase has no chunks yet");
        assert_eq!(tracker.straggler_ratio("other"), None, "one chunk does not straggle");
        assert_eq!((tracker.straggler_ratio("none"), tracker.goodput()), (None, None));
    }

    #[test]
    fn a_recovery_has_two_stages() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.attempt_started("j", 1000), None, "the first attempt is not a recovery");
        assert_eq!(tracker.progressed("j", 2000), None);
        tracker.attempt_ended("j", 10_000);
        let devices = Stage { name: "devices", seconds: 2.5 };
        assert_eq!(tracker.attempt_started("j", 12_500), Some(devices));
        let progress = Stage { name: "progress", seconds: 4.0 };
        assert_eq!(tracker.progressed("j", 16_500), Some(progress));
        assert_eq!(tracker.progressed("j", 17_000), None);
        tracker.attempt_ended("j", 20_000);
        tracker.ended("j");
        assert_eq!(tracker.attempt_started("j", 21_000), None);
    }
}

//! Retries and warnings for a failing tracker.

use std::time::Duration;

use foil_common::spec::Tracker;

/// Initial and maximum pause after failures.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Minimum time between two warnings about a failing tracker.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Pauses that double with each consecutive failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pause {
    failures: u32,
    until: Duration,
}

impl Pause {
    pub(super) fn after_failure(&mut self, now: Duration) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.until = now + pause;
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        now >= self.until
    }
}

/// The health of one tracker.
#[derive(Debug)]
pub(super) struct Health {
    tracker: Tracker,
    pause: Pause,
    warned: Option<Duration>,
    /// The current failure has been logged.
    is_told: bool,
}

impl Health {
    pub(super) fn new(tracker: Tracker) -> Self {
        Self { tracker, pause: Pause::default(), warned: None, is_told: false }
    }

    /// Whether requests may be sent to the tracker.
    pub(super) fn is_open(&self, now: Duration) -> bool {
        self.pause.is_over(now)
    }

    /// Records that the tracker is unavailable. Several jobs that find this out at the same time count once.
    pub(super) fn away(&mut self, now: Duration) {
        if self.pause.is_over(now) {
            self.pause.after_failure(now);
        }
    }

    pub(super) fn well(&mut self) {
        self.pause = Pause::default();
        if std::mem::take(&mut self.is_told) {
            tracing::info!(tracker = %self.tracker, "the experiment tracker accepts data again");
        }
    }

    pub(super) fn warn(&mut self, job: &str, why: &str, now: Duration) {
        let is_silent = self.warned.is_some_and(|warned| now.saturating_sub(warned) < WARN_INTERVAL);
        if !is_silent {
            tracing::warn!(
                tracker = %self.tracker,
                job,
                why,
                "an experiment tracker does not accept data; the job continues, and the rest is sent when it does"
            );
            (self.warned, self.is_told) = (Some(now), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let (mut pause, mut now, mut lengths) = (Pause::default(), Duration::ZERO, Vec::new());
        for _ in 0..40 {
            assert!(pause.is_over(now));
            pause.after_failure(now);
            lengths.push(pause.until - now);
            now = pause.until;
        }
        assert_eq!(lengths[..6], [2, 4, 8, 16, 32, 60].map(at));
        assert!(lengths[6..].iter().all(|length| *length == at(60)));
    }

    #[test]
    fn jobs_that_find_a_tracker_away_together_count_once() {
        let mut health = Health::new(Tracker::Mlflow);
        (0..4).for_each(|_| health.away(at(10)));
        assert!(!health.is_open(at(11)) && health.is_open(at(12)));
        health.away(at(12));
        assert!(!health.is_open(at(15)) && health.is_open(at(16)));
        health.well();
        assert!(health.is_open(at(0)));
    }
}

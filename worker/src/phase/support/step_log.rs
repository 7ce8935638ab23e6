//! Rate-limited log lines and spans for training steps.

#![expect(clippy::disallowed_methods, reason = "throughput is measured")]

use std::time::{Duration, Instant};

use crate::task_io::WorkSpan;
use crate::task_io::progress::Reporter;
use crate::train::StepMetrics;

/// Maximum time between two log lines.
const MAX_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum number of log lines per phase.
const PARTS: u64 = 10;

/// Logs a phase's first and last step, one step in each tenth of the phase, and one every ten seconds.
#[derive(Debug, Default)]
pub(in crate::phase) struct StepLog {
    written: Option<Instant>,
    /// The tenth of the phase that contained the last line.
    part: u64,
    /// Tokens and seconds since the last line.
    tokens: usize,
    seconds: f64,
}

impl StepLog {
    /// Logs a step if it is due, and returns whether it was. All ranks take the same steps, so only rank 0
    /// logs at level INFO.
    pub(in crate::phase) fn step(&mut self, metrics: &StepMetrics, rank: u32) -> bool {
        let StepMetrics { step, steps, loss, grad_norm, learning_rate, .. } = *metrics;
        if metrics.skipped {
            tracing::warn!(
                step,
                steps,
                loss,
                grad_norm,
                "skipped a step: its loss or gradient is not finite"
            );
        }
        let Some(tokens_per_second) = self.take(metrics, Instant::now()) else { return false };
        match rank {
            0 => tracing::info!(step, steps, loss, grad_norm, learning_rate, tokens_per_second, "step"),
            _ => tracing::debug!(step, steps, loss, grad_norm, learning_rate, tokens_per_second, "step"),
        }
        true
    }

    /// The gang's tokens per second since the last line, if a line is due for this step.
    fn take(&mut self, metrics: &StepMetrics, now: Instant) -> Option<f64> {
        self.tokens += metrics.tokens;
        self.seconds += metrics.seconds;
        let part = metrics.step * PARTS / metrics.steps.max(1);
        let is_due = self.written.is_none_or(|written| now - written >= MAX_INTERVAL);
        if !is_due && part == self.part && metrics.step != metrics.steps {
            return None;
        }
        self.written = Some(now);
        self.part = part;
        let rate = std::mem::take(&mut self.tokens) as f64 / std::mem::take(&mut self.seconds);
        // Rounded to a tenth.
        Some((rate * 10.0).round() / 10.0)
    }
}

/// A span for the steps between two log lines.
pub(in crate::phase) struct StepSpans<'a> {
    reports: &'a Reporter,
    /// First step of the open span.
    first: u64,
    open: WorkSpan,
}

impl<'a> StepSpans<'a> {
    /// Spans of the steps that follow `step`.
    pub(in crate::phase) fn after(step: u64, reports: &'a Reporter) -> Self {
        Self { reports, first: step + 1, open: reports.span("steps") }
    }

    /// Ends a span with a step that was logged. Steps before the checkpoint are not repeated, so they have no
    /// span.
    pub(in crate::phase) fn end(&mut self, step: u64) {
        if step < self.first {
            return;
        }
        self.open.note("foil.step.first", self.first);
        self.open.note("foil.step.last", step);
        // Begins the span of the next steps before the span of these is sent.
        self.open = self.reports.span("steps");
        self.first = step + 1;
    }

    /// Ends without a span for the time after the last step.
    pub(in crate::phase) fn finish(self) {
        self.open.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The logged steps, with their tokens per second.
    fn lines(steps: u64, seconds: f64) -> Vec<(u64, f64)> {
        let mut log = StepLog::default();
        let start = Instant::now();
        let line = |step: u64| {
            let metrics = StepMetrics {
                step,
                steps,
                loss: 0.5,
                grad_norm: 1.0,
                learning_rate: 1e-3,
                rows: 8,
                tokens: 100,
                seconds,
                collective_wait: None,
                skipped: false,
                objective: Vec::new(),
            };
            let now = start + Duration::from_secs_f64(step as f64 * seconds);
            log.take(&metrics, now).map(|rate| (step, rate))
        };
        (1..=steps).filter_map(line).collect()
    }

    #[test]
    fn quick_steps_are_logged_each_tenth_and_slow_ones_every_ten_seconds() {
        let logged = |steps, seconds| lines(steps, seconds).iter().map(|(step, _)| *step).collect::<Vec<_>>();
        assert_eq!(logged(1000, 0.01), [1, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]);
        assert_eq!(logged(3, 0.01), [1, 2, 3]);
        assert_eq!(logged(1000, 4.0)[..4], [1, 4, 7, 10]);
    }

    #[test]
    fn throughput_covers_all_steps_since_the_last_line() {
        assert!(lines(1000, 0.5).iter().all(|(_, rate)| *rate == 200.0));
    }
}

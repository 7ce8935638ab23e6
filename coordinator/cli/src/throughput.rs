//! Progress of a running phase: its count, its rate and the time left.

use std::time::Instant;

use foil_common::activity::Activity;
use foil_proto::v1;

/// The progress of a running phase.
pub(super) struct Throughput {
    phase: String,
    /// Time at which the current unit started.
    started: Instant,
    /// Time and count of the first report: progress before a reconnection does not count for the rate.
    first: Option<(Instant, u64)>,
    done: u64,
    total: u64,
    unit: String,
    /// Total and unit of the phase's rows or steps.
    work: Option<(u64, String)>,
}

impl Throughput {
    pub(super) fn new(phase: &str, now: Instant) -> Self {
        let phase = phase.to_owned();
        Self { phase, started: now, first: None, done: 0, total: 0, unit: String::new(), work: None }
    }

    pub(super) fn phase(&self) -> &str {
        &self.phase
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn count(&mut self, progress: &v1::PhaseProgress, now: Instant) {
        if self.unit != progress.unit {
            let is_first = self.unit.is_empty();
            self.unit.clone_from(&progress.unit);
            self.first = None;
            if !is_first {
                self.started = now;
            }
        }
        self.done = progress.done;
        self.total = progress.total;
        if Activity::from_unit(&self.unit).is_none() {
            self.work = Some((self.total, self.unit.clone()));
        }
        // A count that starts at 0 is timed from the start of its unit.
        let since = if progress.done == 0 { self.started } else { now };
        self.first.get_or_insert((since, progress.done));
    }

    /// The phase's total work, for example `64 prompts`.
    pub(super) fn amount(&self) -> String {
        let amount = |(total, unit): &(u64, String)| match total {
            1 => format!("1 {}", unit.trim_end_matches('s')),
            _ => format!("{total} {unit}"),
        };
        self.work.as_ref().map(amount).unwrap_or_default()
    }

    /// The progress as text, for example `480/960 prompts  12.3/s, 39 s left` or `loading 120 of 450 MB, 3 s
    /// left`.
    pub(super) fn text(&self, now: Instant) -> String {
        let rate = self.rate(now);
        let left = rate.map(|rate| duration(self.total.saturating_sub(self.done) as f64 / rate));
        match Activity::from_unit(&self.unit) {
            Some(Activity::Rendezvous) => Activity::Rendezvous.to_string(),
            Some(activity) => {
                let amount = match activity.counts_bytes() {
                    true => bytes(self.done, self.total),
                    false => format!("{} of {} rows", self.done, self.total),
                };
                let left = left.map(|left| format!(", {left} left")).unwrap_or_default();
                format!("{activity} {amount}{left}")
            }
            None => {
                let count = format!("{}/{} {}", self.done, self.total, self.unit);
                match (rate, left) {
                    (Some(rate), Some(left)) => format!("{count}  {}/s, {left} left", short(rate)),
                    _ => count,
                }
            }
        }
    }

    /// Units per second, if enough time has passed.
    fn rate(&self, now: Instant) -> Option<f64> {
        let (since, done) = self.first?;
        let seconds = now.duration_since(since).as_secs_f64();
        let rate = self.done.saturating_sub(done) as f64 / seconds;
        (seconds > 0.5 && rate > 0.0).then_some(rate)
    }
}

/// `120 of 450 MB`, in a unit that suits the total.
fn bytes(done: u64, total: u64) -> String {
    let (scale, unit, digits) = match total {
        0..1_000_000 => (1e3, "kB", 0),
        1_000_000..1_000_000_000 => (1e6, "MB", 0),
        _ => (1e9, "GB", 1),
    };
    format!("{:.digits$} of {:.digits$} {unit}", done as f64 / scale, total as f64 / scale)
}

fn short(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn progress(done: u64, total: u64, unit: &str) -> v1::PhaseProgress {
        v1::PhaseProgress { done, total, unit: unit.into(), ..Default::default() }
    }

    #[test]
    fn the_rate_counts_from_the_first_report() {
        let start = Instant::now();
        let mut throughput = Throughput::new("r01.policy.generate", start);
        throughput.count(&progress(500, 1000, "prompts"), start);
        assert_eq!(throughput.text(start), "500/1000 prompts");
        let later = start + Duration::from_secs(10);
        throughput.count(&progress(600, 1000, "prompts"), later);
        assert_eq!(throughput.text(later), "600/1000 prompts  10.0/s, 40 s left");
    }

    #[test]
    fn loading_and_saving_are_separate_from_steps() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut throughput = Throughput::new("r01.reward.train", start);
        throughput.count(&progress(0, 450_000_000, "bytes loaded"), start);
        throughput.count(&progress(300_000_000, 450_000_000, "bytes loaded"), after(20));
        assert_eq!(throughput.text(after(20)), "loading 300 of 450 MB, 10 s left");
        throughput.count(&progress(30, 300, "rows encoded"), after(30));
        assert_eq!(throughput.text(after(30)), "encoding 30 of 300 rows");
        throughput.count(&progress(0, 2, "ranks met"), after(31));
        assert_eq!(throughput.text(after(31)), "waiting for the other ranks");
        throughput.count(&progress(0, 16, "steps"), after(40));
        throughput.count(&progress(8, 16, "steps"), after(50));
        assert_eq!(
            throughput.text(after(50)),
            "8/16 steps  0.8/s, 10 s left",
            "loading is not part of the rate"
        );
        throughput.count(&progress(1_500_000_000, 14_000_000_000, "bytes uploaded"), after(60));
        assert_eq!(throughput.text(after(60)), "uploading 1.5 of 14.0 GB");
        assert_eq!(throughput.amount(), "16 steps");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([5.4, 61.0, 7325.0].map(duration), ["5 s", "1 min 01 s", "2 h 02 min"]);
    }
}

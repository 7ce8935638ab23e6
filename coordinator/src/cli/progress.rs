//! A job's progress: bars on a terminal, plain lines where the output is piped.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{output, report};

/// Between two lines about the same phase.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows what happens to one job.
pub(crate) struct Progress {
    display: Display,
    phase: Option<Meter>,
    /// Phases in the job's plan; 0 until it is known.
    phases: usize,
    /// Of the longest phase id in the plan, for alignment.
    width: usize,
    done: usize,
    /// Said to be queued, which is worth saying once.
    waits: bool,
}

enum Display {
    Bars { bars: MultiProgress, current: Option<ProgressBar> },
    Lines(Sink),
}

/// Where lines go: standard output, or standard error where that one carries the final JSON object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    Stdout,
    Stderr,
}

/// The running phase's count.
struct Meter {
    phase: String,
    started: Instant,
    /// When and where counting began: work done before a reconnection says nothing of the rate.
    first: Option<(Instant, u64)>,
    done: u64,
    total: u64,
    unit: String,
    shown: Instant,
}

impl Progress {
    /// `reserve_stdout`: standard output is for something else.
    pub(crate) fn new(reserve_stdout: bool) -> Self {
        let on_terminal =
            std::io::stderr().is_terminal() && (reserve_stdout || std::io::stdout().is_terminal());
        let display = match (on_terminal, reserve_stdout) {
            (true, _) => Display::Bars {
                bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)),
                current: None,
            },
            (false, true) => Display::Lines(Sink::Stderr),
            (false, false) => Display::Lines(Sink::Stdout),
        };
        Self { display, phase: None, phases: 0, width: 0, done: 0, waits: false }
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        match &self.display {
            Display::Bars { bars, .. } => {
                // A terminal that is gone needs no line.
                let _ = bars.println(text);
            }
            Display::Lines(Sink::Stderr) => output::note(text),
            Display::Lines(Sink::Stdout) => {
                // As above; the job goes on without a reader.
                let _ = output::line(text);
            }
        }
    }

    /// A bar for bytes; the caller moves and finishes it.
    pub(crate) fn bytes(&self, label: &str, total: u64) -> ProgressBar {
        let Display::Bars { bars, .. } = &self.display else { return ProgressBar::hidden() };
        let style = style(
            "{prefix:<28} {bar:28} {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12}  {eta:>4} left",
        );
        bars.add(ProgressBar::new(total).with_style(style).with_prefix(label.to_owned()))
    }

    /// A sign of life for work of unknown size; the caller names the parts and finishes it.
    pub(crate) fn spinner(&self, label: &str) -> ProgressBar {
        let Display::Bars { bars, .. } = &self.display else { return ProgressBar::hidden() };
        let bar = bars.add(ProgressBar::new_spinner().with_style(style("{prefix:<28} {spinner} {msg}")));
        bar.enable_steady_tick(Duration::from_millis(250));
        bar.with_prefix(label.to_owned())
    }

    /// Removes what is drawn, before something else is printed.
    pub(crate) fn finish(&mut self) {
        if let Display::Bars { bars, current } = &mut self.display {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
            // The terminal may be gone.
            let _ = bars.clear();
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Job(job) => self.job(job),
            Event::PhaseStarted(started) => self.start(&started.phase, started.attempt),
            Event::PhaseProgress(progress) => self.progress(progress),
            Event::PhaseCommitted(committed) => self.commit(committed),
            Event::Notice(notice) => self.line(&format!("{}: {}", notice.level, notice.text)),
        }
    }

    fn job(&mut self, job: &v1::Job) {
        let phases = job.plan.as_ref().map(|plan| plan.phases.as_slice()).unwrap_or_default();
        self.phases = phases.len();
        self.width = phases.iter().map(|phase| phase.id.len()).max().unwrap_or(0);
        self.done = job.phases_done as usize;
        if job.state() == v1::JobState::Queued && !self.waits {
            self.waits = true;
            self.line("queued");
        }
    }

    fn start(&mut self, phase: &str, attempt: u32) {
        if self.phase.as_ref().is_some_and(|meter| meter.phase == phase) {
            self.line(&format!("{phase} starts again (attempt {attempt})"));
        }
        let now = Instant::now();
        self.phase = Some(Meter {
            phase: phase.to_owned(),
            started: now,
            first: None,
            done: 0,
            total: 0,
            unit: String::new(),
            shown: now,
        });
        let label = self.label(phase);
        if let Display::Bars { bars, current } = &mut self.display {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(style("{prefix} {spinner} {elapsed}"));
            bar.set_prefix(label);
            bar.enable_steady_tick(Duration::from_millis(250));
            *current = Some(bar);
        }
    }

    /// `[ 3/52] r01.reward.train`, padded so that what follows stands below what follows in other phases.
    fn label(&self, phase: &str) -> String {
        let width = self.width;
        match self.phases {
            0 => phase.to_owned(),
            phases => {
                let digits = phases.to_string().len();
                format!("[{:>digits$}/{phases}] {phase:<width$}", (self.done + 1).min(phases))
            }
        }
    }

    fn progress(&mut self, progress: &v1::PhaseProgress) {
        if self.phase.as_ref().is_none_or(|meter| meter.phase != progress.phase) {
            self.start(&progress.phase, 0);
        }
        let label = self.label(&progress.phase);
        let Some(meter) = &mut self.phase else { return };
        meter.count(progress, Instant::now());
        let figures = report::brief(&progress.step);
        let mut line = None;
        match &mut self.display {
            Display::Bars { current: Some(bar), .. } => {
                if bar.length() != Some(meter.total) {
                    bar.set_length(meter.total);
                    bar.set_style(style("{prefix} {bar:24} {pos:>5}/{len:<5} {msg}"));
                }
                bar.set_position(meter.done);
                bar.set_message(meter.pace(Instant::now(), &figures));
            }
            Display::Bars { current: None, .. } => {}
            Display::Lines(_) => {
                if meter.shown.elapsed() >= LINE_INTERVAL {
                    meter.shown = Instant::now();
                    let pace = meter.pace(Instant::now(), &figures);
                    line = Some(format!("{label}  {}/{}  {pace}", meter.done, meter.total));
                }
            }
        }
        if let Some(line) = line {
            self.line(&line);
        }
    }

    fn commit(&mut self, committed: &v1::PhaseCommitted) {
        let meter = self.phase.take_if(|meter| meter.phase == committed.phase);
        if let Display::Bars { current, .. } = &mut self.display
            && let Some(bar) = current.take()
        {
            bar.finish_and_clear();
        }
        let amount = match &meter {
            Some(meter) if meter.total > 0 => format!("{} {}", meter.total, meter.unit),
            _ => String::new(),
        };
        let figures = report::brief(&committed.metrics);
        let label = self.label(&committed.phase);
        self.line(format!("{label} {:>7.1} s  {amount:<14}  {figures}", committed.seconds).trim_end());
        self.done += 1;
    }
}

impl Meter {
    fn count(&mut self, progress: &v1::PhaseProgress, now: Instant) {
        self.done = progress.done;
        self.total = progress.total;
        self.unit.clone_from(&progress.unit);
        // A phase seen from its beginning is timed from there.
        let since = if progress.done == 0 { self.started } else { now };
        self.first.get_or_insert((since, progress.done));
    }

    /// Rate and time left: `12.3 prompts/s, 45 s left`.
    fn pace(&self, now: Instant, figures: &str) -> String {
        let mut text = String::new();
        if let Some((since, done)) = self.first {
            let seconds = now.duration_since(since).as_secs_f64();
            let rate = (self.done.saturating_sub(done)) as f64 / seconds;
            if seconds > 0.5 && rate > 0.0 {
                let left = self.total.saturating_sub(self.done) as f64 / rate;
                text = format!("{} {}/s, {} left", short(rate), self.unit, duration(left));
            }
        }
        if text.is_empty() {
            text.clone_from(&self.unit);
        }
        if figures.is_empty() { text } else { format!("{text}  {figures}") }
    }
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

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏ ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_from_what_was_first_seen() {
        let start = Instant::now();
        let mut meter = Meter {
            phase: "r01.policy.generate".into(),
            started: start,
            first: None,
            done: 0,
            total: 0,
            unit: String::new(),
            shown: start,
        };
        let progress =
            |done| v1::PhaseProgress { done, total: 1000, unit: "prompts".into(), ..Default::default() };
        meter.count(&progress(500), start);
        assert_eq!(meter.pace(start, ""), "prompts");
        let later = start + Duration::from_secs(10);
        meter.count(&progress(600), later);
        assert_eq!(meter.pace(later, "loss 0.500"), "10.0 prompts/s, 40 s left  loss 0.500");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([5.4, 61.0, 7325.0].map(duration), ["5 s", "1 min 01 s", "2 h 02 min"]);
    }
}

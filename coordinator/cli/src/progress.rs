//! A job's progress: bars on a terminal, plain lines if the output is piped.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foil_common::plural::counted;
use foil_common::rpc::artifacts::Moved;
use foil_common::telemetry;
use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::throughput::Throughput;
use super::{report, stdout, terminal};

/// Minimum interval of lines about one phase.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Width of a bar's count, rate, time left and first metric.
const COUNT_COLUMNS: usize = 46;
/// Width of the duration of a phase.
const SECONDS_COLUMNS: usize = 9;
/// Minimum width after a phase's name for a complete closing line.
const ROOMY_COLUMNS: usize = 60;

/// The display of one job.
pub(crate) struct Progress {
    display: Display,
    throughput: Option<Throughput>,
    /// Time of the last line about the running phase.
    written: Instant,
    /// Number of phases in the job's plan; 0 until it is known.
    phases: usize,
    /// Length of the longest phase id in the plan, for alignment.
    width: usize,
    done: usize,
    /// Whether "queued" was shown, which is done once.
    queued_shown: bool,
    /// The last reason shown for waiting.
    wait_reason: String,
    /// When this run resumed the job, in Unix seconds: earlier notices were shown by the run that they are
    /// of.
    resumed_at: Option<i64>,
}

enum Display {
    Bars {
        bars: MultiProgress,
        current: Option<ProgressBar>,
        /// Whether lines were written above the bars.
        is_written: AtomicBool,
    },
    Lines(Sink),
}

/// The destination of lines: standard output, or standard error if the former is reserved for JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    Stdout,
    Stderr,
}

impl Progress {
    /// `reserve_stdout`: write nothing to standard output.
    pub(crate) fn new(reserve_stdout: bool) -> Self {
        let on_terminal =
            std::io::stderr().is_terminal() && (reserve_stdout || std::io::stdout().is_terminal());
        let target = match on_terminal {
            true => ProgressDrawTarget::stderr_with_hz(8),
            false => ProgressDrawTarget::hidden(),
        };
        Self::on(target, reserve_stdout)
    }

    /// Bars if the target supports them, else lines, for example on a terminal without cursor movement.
    fn on(target: ProgressDrawTarget, reserve_stdout: bool) -> Self {
        let display = match (target.is_hidden(), reserve_stdout) {
            (false, _) => Display::Bars {
                bars: MultiProgress::with_draw_target(target),
                current: None,
                is_written: AtomicBool::new(false),
            },
            (true, true) => Display::Lines(Sink::Stderr),
            (true, false) => Display::Lines(Sink::Stdout),
        };
        Self {
            display,
            throughput: None,
            written: Instant::now(),
            phases: 0,
            width: 0,
            done: 0,
            queued_shown: false,
            wait_reason: String::new(),
            resumed_at: None,
        }
    }

    /// Width of a line in columns.
    fn columns(&self) -> usize {
        match self.display {
            Display::Bars { .. } | Display::Lines(Sink::Stderr) => terminal::stderr_columns(),
            Display::Lines(Sink::Stdout) => terminal::stdout_columns(),
        }
    }

    /// Prints a permanent line.
    pub(crate) fn line(&self, text: &str) {
        match &self.display {
            Display::Bars { bars, is_written, .. } => {
                is_written.store(true, Ordering::Relaxed);
                // The terminal may be gone.
                let _ = bars.println(terminal::wrap(text, self.columns()));
            }
            Display::Lines(Sink::Stderr) => stdout::note(&terminal::wrap(text, self.columns())),
            Display::Lines(Sink::Stdout) => {
                // As above; the job continues without a reader.
                let _ = stdout::line(&terminal::wrap(text, self.columns()));
            }
        }
    }

    /// Reports that the job resumes.
    pub(crate) fn resumes(&mut self, phases: u32) {
        // That it was queued before is not news.
        self.queued_shown = true;
        self.resumed_at =
            SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs().cast_signed());
        self.line(&format!("resuming after {}", counted(phases, "phase")));
    }

    /// Whether an event is a notice from before the job resumed.
    pub(crate) fn is_past_notice(&self, event: &v1::JobEvent) -> bool {
        let at = event.at.as_ref().map(|at| at.seconds);
        matches!(event.event, Some(Event::Notice(_)))
            && at.zip(self.resumed_at).is_some_and(|(at, resumed)| at < resumed)
    }

    /// A bar of bytes, which the caller advances and finishes.
    pub(crate) fn bytes(&self, label: &str, total: u64) -> ProgressBar {
        let Display::Bars { bars, .. } = &self.display else { return ProgressBar::hidden() };
        let style = style(
            "{prefix:<18} {bar:16} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        );
        bars.add(ProgressBar::new(total).with_style(style).with_prefix(label.to_owned()))
    }

    /// A spinner for work of unknown size; the caller sets its message and finishes it.
    pub(crate) fn spinner(&self, label: &str) -> ProgressBar {
        let Display::Bars { bars, .. } = &self.display else { return ProgressBar::hidden() };
        let bar = bars.add(ProgressBar::new_spinner().with_style(style("{prefix:<18} {spinner} {wide_msg}")));
        bar.enable_steady_tick(Duration::from_millis(250));
        bar.with_prefix(label.to_owned())
    }

    /// Clears the bars, before something else is printed.
    pub(crate) fn finish(&mut self) {
        if let Display::Bars { bars, current, is_written } = &mut self.display {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
            // The terminal may be gone.
            let _ = bars.clear();
            // The last line is drawn to the edge of the terminal, and the cursor stays there.
            if is_written.swap(false, Ordering::Relaxed) {
                telemetry::write_line("");
            }
        }
    }

    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Job(job) => self.job(job),
            Event::PhaseStarted(started) => self.start(&started.phase, started.attempt),
            Event::PhaseProgress(progress) => self.progress(progress),
            Event::PhaseCommitted(committed) => self.commit(committed),
            // A fast job has many of them.
            Event::CheckpointCommitted(_) => {}
            // The initial event of the watch has shown it already.
            Event::Notice(notice) if notice.text == self.wait_reason => {}
            Event::Notice(notice) => self.line(&format!("{}: {}", notice.level, notice.text)),
        }
    }

    fn job(&mut self, job: &v1::Job) {
        let phases = job.plan.as_ref().map(|plan| plan.phases.as_slice()).unwrap_or_default();
        self.phases = job.phases_total.max(u32::try_from(phases.len()).unwrap_or(u32::MAX)) as usize;
        self.width = phases.iter().map(|phase| phase.id.len()).max().unwrap_or(0);
        self.done = job.phases_done as usize;
        // That it was queued before its first attempt is not news.
        self.queued_shown |= job.attempt > 0;
        if job.state() == v1::JobState::Queued && !self.queued_shown {
            self.queued_shown = true;
            self.line("queued");
        }
        if let Some(waiting) = job.waiting.as_ref().filter(|waiting| waiting.reason != self.wait_reason) {
            self.wait_reason.clone_from(&waiting.reason);
            self.line(&waiting.reason);
        }
    }

    fn start(&mut self, phase: &str, attempt: u32) {
        if self.throughput.as_ref().is_some_and(|throughput| throughput.phase() == phase) {
            self.line(&format!("{phase} restarts (attempt {attempt})"));
        }
        self.written = Instant::now();
        self.throughput = Some(Throughput::new(phase, self.written));
        let label = self.label(phase);
        if let Display::Bars { bars, current, .. } = &mut self.display {
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

    fn label(&self, phase: &str) -> String {
        label(phase, self.done + 1, self.phases, self.width, self.columns())
    }

    fn progress(&mut self, progress: &v1::PhaseProgress) {
        if self.throughput.as_ref().is_none_or(|throughput| throughput.phase() != progress.phase) {
            self.start(&progress.phase, 0);
        }
        let label = self.label(&progress.phase);
        let cells = self.columns().saturating_sub(label.chars().count() + COUNT_COLUMNS).clamp(4, 24);
        let Some(throughput) = &mut self.throughput else { return };
        let now = Instant::now();
        throughput.count(progress, now);
        let figures = report::main_metrics(&progress.step);
        let text = format!("{}  {}", throughput.text(now), figures.join(", "));
        match &self.display {
            Display::Bars { current: Some(bar), .. } => {
                if bar.length() != Some(throughput.total()) {
                    bar.set_length(throughput.total());
                    bar.set_style(style(&format!("{{prefix}} {{bar:{cells}}} {{wide_msg}}")));
                }
                bar.set_position(throughput.done());
                bar.set_message(text);
            }
            Display::Bars { current: None, .. } => {}
            Display::Lines(_) if now - self.written >= LINE_INTERVAL => {
                self.written = now;
                self.line(format!("{label}  {text}").trim_end());
            }
            Display::Lines(_) => {}
        }
    }

    fn commit(&mut self, committed: &v1::PhaseCommitted) {
        let throughput = self.throughput.take_if(|throughput| throughput.phase() == committed.phase);
        if let Display::Bars { current, .. } = &mut self.display
            && let Some(bar) = current.take()
        {
            bar.finish_and_clear();
        }
        let amount = throughput.map(|throughput| throughput.amount()).unwrap_or_default();
        let label = self.label(&committed.phase);
        self.line(&closing_line(&label, committed, &amount, self.columns()));
        self.done += 1;
    }
}

/// `[ 3/52] r01.reward.train`, padded to align the text after it if there is room. Without a plan it is only
/// the phase.
fn label(phase: &str, number: usize, phases: usize, width: usize, columns: usize) -> String {
    if phases == 0 {
        return phase.to_owned();
    }
    let digits = phases.to_string().len();
    let head = format!("[{:>digits$}/{phases}] ", number.min(phases));
    let width = if head.len() + width + SECONDS_COLUMNS > columns { 0 } else { width };
    format!("{head}{phase:<width$}")
}

/// A committed phase in one line: its duration, work and metrics, as far as they fit.
fn closing_line(label: &str, committed: &v1::PhaseCommitted, amount: &str, columns: usize) -> String {
    let mut line = format!("{label} {:>6.1} s", committed.seconds);
    // For all lines or for none, so that metrics are aligned.
    if columns.saturating_sub(label.chars().count()) >= ROOMY_COLUMNS {
        line += &format!("  {amount:<14}");
    }
    let mut separator = "  ";
    for figure in report::main_metrics(&committed.metrics) {
        if line.chars().count() + separator.len() + figure.chars().count() > columns {
            break;
        }
        line += &format!("{separator}{figure}");
        separator = ", ";
    }
    line.trim_end().to_owned()
}

/// A callback that advances a bar of bytes.
pub(crate) fn moves(bar: &ProgressBar) -> Moved {
    let bar = bar.clone();
    Arc::new(move |bytes| bar.inc(bytes))
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
    fn a_target_without_bars_gets_lines() {
        let display = |reserved| Progress::on(ProgressDrawTarget::hidden(), reserved).display;
        assert!(matches!(display(true), Display::Lines(Sink::Stderr)));
        assert!(matches!(display(false), Display::Lines(Sink::Stdout)));
    }

    #[test]
    fn a_resumed_run_does_not_repeat_earlier_notices() {
        let at = |seconds, event| v1::JobEvent {
            at: Some(pbjson_types::Timestamp { seconds, nanos: 0 }),
            event: Some(event),
            ..Default::default()
        };
        let notice = || Event::Notice(v1::Notice::default());
        let mut progress = Progress::on(ProgressDrawTarget::hidden(), true);
        assert!(!progress.is_past_notice(&at(1, notice())));
        progress.resumes(3);
        assert!(progress.is_past_notice(&at(1, notice())));
        assert!(!progress.is_past_notice(&at(i64::MAX, notice())));
        assert!(!progress.is_past_notice(&at(1, Event::PhaseCommitted(v1::PhaseCommitted::default()))));
    }

    #[test]
    fn names_are_padded_where_there_is_room() {
        let label = |columns| label("r00.sft", 1, 12, 35, columns);
        assert_eq!(label(80), format!("[ 1/12] r00.sft{}", " ".repeat(28)));
        assert_eq!([label(52).len(), label(51).len()], [43, 15]);
        assert_eq!(label(40), "[ 1/12] r00.sft");
    }

    #[test]
    fn a_closing_line_holds_what_fits() {
        let metric = |name: &str, value| v1::Metric { name: name.into(), value, se: None };
        let committed = v1::PhaseCommitted {
            seconds: 12.34,
            metrics: vec![metric("gold_mean", 0.5), metric("reward_mean", 1.25), metric("steps", 8.0)],
            ..Default::default()
        };
        let line = |columns| closing_line("[ 9/12] r01.policy.evaluate", &committed, "96 prompts", columns);
        assert_eq!(
            line(usize::MAX),
            "[ 9/12] r01.policy.evaluate   12.3 s  96 prompts      reward 1.250, gold 0.500"
        );
        assert_eq!(line(80), "[ 9/12] r01.policy.evaluate   12.3 s  reward 1.250, gold 0.500");
        assert_eq!(line(60), "[ 9/12] r01.policy.evaluate   12.3 s  reward 1.250");
    }
}

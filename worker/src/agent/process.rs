//! A supervised rank process: its output, its exit, and the signals sent to it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use foil_common::oom::{self, MemoryKind};
use foil_common::telemetry::LogFormat;
use foil_proto::v1;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::output::{Output, OutputTail, forward};
use super::shipper::LogSink;
use crate::memory::{MemoryLimit, OomKillCounter};
use foil_common::exit::Exit;

/// The end of a rank process, or a failure to start one.
#[derive(Debug)]
pub(super) struct RankEnd {
    pub(super) exit: v1::RankExited,
    /// Whether this agent ended the process on purpose.
    pub(super) stopped: bool,
}

impl RankEnd {
    /// Logs the end and adds it to the metrics.
    pub(super) fn record(&self) {
        let (exit, cause) = (&self.exit, self.cause());
        let signal = exit.signal.map(signal_name);
        tracing::info!(session = exit.session_id, cause, code = ?exit.exit_code, signal, "rank ended");
        let mut labels = vec![("cause", cause.to_owned())];
        if cause == "signal" {
            labels.extend(signal.map(|signal| ("signal", signal)));
        }
        metrics::counter!("foil_rank_exits_total", &labels).increment(1);
    }

    fn cause(&self) -> &'static str {
        match (self.exit.exit_code, self.exit.signal) {
            _ if self.exit.out_of_memory => "out_of_memory",
            _ if self.stopped => "stopped",
            (_, Some(_)) => "signal",
            (Some(0), None) => "done",
            (Some(_), None) => "error",
            (None, None) => "not_started",
        }
    }
}

/// The signal's name, for example `SIGSEGV`; real-time signals are named by number.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

/// A running process. Dropping it does not end it.
#[derive(Debug)]
pub(super) struct RankProcess {
    child: Arc<Mutex<Child>>,
    killed: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl RankProcess {
    /// Supervises `child`, whose output must be piped, and sends its end on `exits`.
    pub(super) fn supervise(
        session_id: String,
        mut child: Child,
        format: LogFormat,
        sink: LogSink,
        exits: mpsc::UnboundedSender<RankEnd>,
    ) -> io::Result<Self> {
        let output = Output::default();
        let readers = [
            child.stdout.take().map(|out| forward(&session_id, out, format, output.clone(), sink.clone())),
            child.stderr.take().map(|err| forward(&session_id, err, format, output.clone(), sink.clone())),
        ];
        let [stdout, stderr] = readers;
        let readers = [stdout.transpose()?, stderr.transpose()?];
        let process =
            Self { child: Arc::new(Mutex::new(child)), killed: Arc::default(), terminated: Arc::default() };
        let Self { child, killed, terminated } = &process;
        let (child, killed, terminated) = (Arc::clone(child), Arc::clone(killed), Arc::clone(terminated));
        let kills_before = OomKillCounter::read();
        thread::Builder::new().name(format!("reap {session_id}")).spawn(move || {
            let end = End::wait(&child);
            for reader in readers.into_iter().flatten() {
                // If a reader panicked, the tail is merely shorter.
                let _ = reader.join();
            }
            sink.end();
            let oom_killed = OomKillCounter::read() > kills_before;
            let killed = killed.load(Ordering::SeqCst);
            let stopped = end.is_stop(killed, terminated.load(Ordering::SeqCst));
            let exit = end.report(session_id, output.take(), killed, oom_killed);
            // The receiver has been dropped if the agent itself is ending.
            let _ = exits.send(RankEnd { exit, stopped });
        })?;
        Ok(process)
    }

    /// Sends SIGTERM: a rank in training writes a checkpoint before it exits.
    pub(super) fn terminate(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(id) = i32::try_from(child.id()) else { return };
        self.terminated.store(true, Ordering::SeqCst);
        // The process is not reaped while the lock is held, so its pid cannot have been reused.
        if let Err(error) =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)
        {
            tracing::debug!(%error, "cannot send SIGTERM to a rank");
        }
    }

    /// Sends SIGKILL. Harmless if the process has ended: it is reaped under the same lock, so its pid cannot
    /// have been reused.
    pub(super) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // The coordinator often notices a rank's end on its stream first and sends a kill that arrives too
        // late.
        if !is_ending(child.id()) {
            self.killed.store(true, Ordering::SeqCst);
        }
        if let Err(error) = child.kill() {
            tracing::warn!(%error, "cannot kill a rank");
        }
    }
}

/// Whether a process is exiting or has exited, so that a signal sent now cannot be the cause.
fn is_ending(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).map_or(true, |stat| is_exit_state(&stat))
}

/// Whether the text of /proc/N/stat shows a zombie or the kernel flag PF_EXITING.
fn is_exit_state(stat: &str) -> bool {
    const PF_EXITING: u32 = 0x4;
    // The program's name, in parentheses, may contain any characters.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let flags: u32 = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    matches!(fields.first(), Some(&("Z" | "X"))) || flags & PF_EXITING > 0
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// Exit code. If `signal` is also `None`, waiting for the process failed.
    code: Option<i32>,
    signal: Option<i32>,
    /// Peak resident memory in bytes.
    peak: Option<u64>,
}

impl End {
    /// Waits for the exit without reaping, so that a kill can take the lock while it waits; then reaps under
    /// the lock.
    fn wait(child: &Mutex<Child>) -> Self {
        let id = child.lock().unwrap_or_else(PoisonError::into_inner).id();
        let waited = foil_sys::wait_for_end(id).and_then(|peak| {
            let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
            Ok(Self { code: status.code(), signal: status.signal(), peak: Some(peak) })
        });
        waited.unwrap_or_else(|error| {
            tracing::error!(%error, process = id, "cannot wait for a rank");
            Self::default()
        })
    }

    /// Whether this agent caused the exit: by SIGKILL, or by SIGTERM that the rank answered.
    fn is_stop(self, killed: bool, terminated: bool) -> bool {
        let by = |signal: Signal| self.signal == Some(signal as i32);
        let graceful = self.code == Some(Exit::Terminated as i32) || by(Signal::SIGTERM);
        (killed && by(Signal::SIGKILL)) || (terminated && graceful)
    }

    fn report(
        self,
        session_id: String,
        output: OutputTail,
        killed: bool,
        oom_killed: bool,
    ) -> v1::RankExited {
        let OutputTail { tail: log_tail, shortage } = output;
        let shortage = self.memory_shortage(shortage, oom_killed && !killed);
        let memory = shortage.map(|shortage| v1::MemoryShortage {
            peak_bytes: self.peak,
            limit_bytes: MemoryLimit::read().map(|limit| limit.bytes),
            ..shortage
        });
        let (exit_code, signal) = (self.code, self.signal);
        v1::RankExited { session_id, exit_code, signal, out_of_memory: memory.is_some(), log_tail, memory }
    }

    /// Detects a shortage of host memory: the kernel's OOM killer struck, or the program aborted because of a
    /// failed allocation and printed so.
    fn memory_shortage(
        self,
        printed: Option<v1::MemoryShortage>,
        oom_killed: bool,
    ) -> Option<v1::MemoryShortage> {
        let ended_by = |signal: Signal| self.signal == Some(signal as i32);
        if ended_by(Signal::SIGKILL) && oom_killed {
            return Some(oom::of_unknown_size(MemoryKind::Host));
        }
        if ended_by(Signal::SIGABRT) { printed } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_is_reported_if_the_kernel_or_the_process_says_so() {
        let end = |signal: Signal| End { signal: Some(signal as i32), peak: Some(5 << 30), code: None };
        let output = |line: &str| OutputTail { tail: vec![line.to_owned()], shortage: oom::parse(line) };
        let report = |end: End, line: &str, killed, oom_killed| {
            end.report("s".into(), output(line), killed, oom_killed)
        };

        let killed = report(end(Signal::SIGKILL), "", false, true);
        let memory = killed.memory.unwrap();
        assert!(killed.out_of_memory && memory.limit_bytes.is_some());
        assert_eq!((memory.place.as_str(), memory.peak_bytes), ("host", Some(5 << 30)));
        let aborted = report(end(Signal::SIGABRT), "memory allocation of 4096 bytes failed", false, false);
        assert_eq!(aborted.memory.unwrap().requested_bytes, Some(4096));
        let bad_alloc = "terminate called after throwing an instance of 'std::bad_alloc'";
        assert!(report(end(Signal::SIGABRT), bad_alloc, false, false).out_of_memory);
        assert!(report(end(Signal::SIGABRT), bad_alloc, true, false).out_of_memory, "the kill came too late");

        for (end, line, killed, oom_killed) in [
            // The agent killed this process while the kernel killed another.
            (end(Signal::SIGKILL), bad_alloc, true, true),
            (end(Signal::SIGKILL), "", false, false),
            (end(Signal::SIGSEGV), bad_alloc, false, true),
            (end(Signal::SIGABRT), "assertion failed", false, true),
            (End { code: Some(1), ..End::default() }, bad_alloc, false, true),
        ] {
            let exit = report(end, line, killed, oom_killed);
            assert!(!exit.out_of_memory && exit.memory.is_none(), "{exit:?}");
        }
    }

    #[test]
    fn an_exit_is_counted_by_its_true_cause() {
        let cause = |end: End, killed: bool, terminated: bool| {
            let stopped = end.is_stop(killed, terminated);
            RankEnd { exit: end.report("s".into(), OutputTail::default(), killed, false), stopped }.cause()
        };
        let by = |signal: Signal| End { signal: Some(signal as i32), ..End::default() };
        let code = |code: i32| End { code: Some(code), ..End::default() };
        assert_eq!(cause(by(Signal::SIGKILL), true, false), "stopped");
        assert_eq!(cause(by(Signal::SIGKILL), false, false), "signal", "killed by somebody else");
        assert_eq!(cause(by(Signal::SIGSEGV), true, true), "signal", "it crashed before the kill");
        assert_eq!(cause(code(143), false, true), "stopped");
        assert_eq!((cause(code(143), false, false), cause(code(1), false, true)), ("error", "error"));
        assert_eq!(
            (cause(code(0), false, false), cause(End::default(), false, false)),
            ("done", "not_started")
        );
        assert_eq!((signal_name(11), signal_name(64)), ("SIGSEGV".to_owned(), "signal 64".to_owned()));
    }

    #[test]
    fn a_kill_after_the_exit_is_recognized() {
        assert!(!is_exit_state("7 (a) b) S 1 7 7 0 -1 4194304 100 0"));
        assert!(is_exit_state("7 (a) b) Z 1 7 7 0 -1 4194304 100 0"));
        assert!(is_exit_state("7 (a) R 1 7 7 0 -1 4194308 100 0"), "PF_EXITING");
        assert!(!is_ending(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        foil_sys::wait_for_end(child.id()).unwrap();
        assert!(is_ending(child.id()));
        child.wait().unwrap();
    }
}

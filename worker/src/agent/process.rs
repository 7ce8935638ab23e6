//! One rank process as its agent holds it: its output, its end, and the means to end it.

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

use super::output::{Output, Said, forward};
use crate::exit::Exit;
use crate::memory::{KillCounter, Limit};

/// A process that has ended, or that could not be started.
#[derive(Debug)]
pub(super) struct RankEnd {
    pub(super) exit: v1::RankExited,
    /// By this agent, which was told to or is ending itself.
    pub(super) stopped: bool,
}

impl RankEnd {
    /// Logs and counts it.
    pub(super) fn count(&self) {
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

/// For example `SIGSEGV`; a real-time signal goes by its number.
fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

/// A running process. Dropping it does not end it.
#[derive(Debug)]
pub(super) struct RankProcess {
    child: Arc<Mutex<Child>>,
    killed: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl RankProcess {
    /// Takes charge of `child`, whose output must be piped; its end is sent on `exits`.
    pub(super) fn supervise(
        session_id: String,
        mut child: Child,
        format: LogFormat,
        exits: mpsc::UnboundedSender<RankEnd>,
    ) -> io::Result<Self> {
        let output = Output::default();
        let readers = [
            child.stdout.take().map(|out| forward(&session_id, out, format, output.clone())).transpose()?,
            child.stderr.take().map(|err| forward(&session_id, err, format, output.clone())).transpose()?,
        ];
        let process =
            Self { child: Arc::new(Mutex::new(child)), killed: Arc::default(), asked: Arc::default() };
        let Self { child, killed, asked } = &process;
        let (child, killed, asked) = (Arc::clone(child), Arc::clone(killed), Arc::clone(asked));
        let kills_before = KillCounter::read();
        thread::Builder::new().name(format!("reap {session_id}")).spawn(move || {
            let end = End::of(&child);
            for reader in readers.into_iter().flatten() {
                // A reader that panicked only shortens the tail.
                let _ = reader.join();
            }
            let kernel_killed = KillCounter::read() > kills_before;
            let by_us = killed.load(Ordering::SeqCst);
            let stopped = end.is_stop(by_us, asked.load(Ordering::SeqCst));
            let exit = end.report(session_id, output.take(), by_us, kernel_killed);
            // Nobody listens where the agent itself is ending.
            let _ = exits.send(RankEnd { exit, stopped });
        })?;
        Ok(process)
    }

    /// Asks it to end: a rank in training keeps a checkpoint first.
    pub(super) fn terminate(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(id) = i32::try_from(child.id()) else { return };
        self.asked.store(true, Ordering::SeqCst);
        // It is not reaped while the lock is held, so the number is still its own.
        if let Err(error) =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM)
        {
            tracing::debug!(%error, "a rank could not be asked to end");
        }
    }

    /// SIGKILL. Harmless where the process has ended: it is reaped under the same lock, so its number cannot name another.
    pub(super) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // A rank's end is often heard of by its stream first, and answered with a kill that comes too late.
        if !is_ending(child.id()) {
            self.killed.store(true, Ordering::SeqCst);
        }
        if let Err(error) = child.kill() {
            tracing::warn!(%error, "a rank could not be killed");
        }
    }
}

/// Whether a process is ending or has ended, so that no signal from here on is its cause.
fn is_ending(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).map_or(true, |stat| tells_of_end(&stat))
}

/// By the text of /proc/N/stat: a zombie, or one with the kernel's flag PF_EXITING.
fn tells_of_end(stat: &str) -> bool {
    const PF_EXITING: u32 = 0x4;
    // The program's name, in parentheses, may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let flags: u32 = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    matches!(fields.first(), Some(&("Z" | "X"))) || flags & PF_EXITING > 0
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// None of both where it could not be waited for.
    code: Option<i32>,
    signal: Option<i32>,
    /// The most memory it held, in bytes.
    peak: Option<u64>,
}

impl End {
    /// Waits for the end without reaping, so that the lock is free for a kill meanwhile; then reaps under it.
    fn of(child: &Mutex<Child>) -> Self {
        let id = child.lock().unwrap_or_else(PoisonError::into_inner).id();
        let waited = foil_sys::wait_for_end(id).and_then(|peak| {
            let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
            Ok(Self { code: status.code(), signal: status.signal(), peak: Some(peak) })
        });
        waited.unwrap_or_else(|error| {
            tracing::error!(%error, process = id, "a rank could not be waited for");
            Self::default()
        })
    }

    /// Whether it ended as this agent wanted it to: by the kill, or in answer to SIGTERM.
    fn is_stop(self, killed: bool, asked: bool) -> bool {
        let by = |signal: Signal| self.signal == Some(signal as i32);
        let answered = self.code == Some(Exit::Terminated as i32) || by(Signal::SIGTERM);
        (killed && by(Signal::SIGKILL)) || (asked && answered)
    }

    fn report(self, session_id: String, said: Said, by_us: bool, kernel_killed: bool) -> v1::RankExited {
        let Said { tail: log_tail, shortage } = said;
        let shortage = self.shortage(shortage, kernel_killed && !by_us);
        let memory = shortage.map(|shortage| v1::MemoryShortage {
            peak_bytes: self.peak,
            limit_bytes: Limit::read().map(|limit| limit.bytes),
            ..shortage
        });
        let (exit_code, signal) = (self.code, self.signal);
        v1::RankExited { session_id, exit_code, signal, out_of_memory: memory.is_some(), log_tail, memory }
    }

    /// Host memory that ran out: the kernel's killer struck, or the program aborted over an allocation and said so.
    fn shortage(self, said: Option<v1::MemoryShortage>, kernel_killed: bool) -> Option<v1::MemoryShortage> {
        let ended_by = |signal: Signal| self.signal == Some(signal as i32);
        if ended_by(Signal::SIGKILL) && kernel_killed {
            return Some(oom::of_unknown_size(MemoryKind::Host));
        }
        if ended_by(Signal::SIGABRT) { said } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_blamed_where_the_kernel_or_the_process_says_so() {
        let end = |signal: Signal| End { signal: Some(signal as i32), peak: Some(5 << 30), code: None };
        let said = |line: &str| Said { tail: vec![line.to_owned()], shortage: oom::parse(line) };
        let report = |end: End, line: &str, by_us, killed| end.report("s".into(), said(line), by_us, killed);

        let killed = report(end(Signal::SIGKILL), "", false, true);
        let memory = killed.memory.unwrap();
        assert!(killed.out_of_memory && memory.limit_bytes.is_some());
        assert_eq!((memory.place.as_str(), memory.peak_bytes), ("host", Some(5 << 30)));
        let aborted = report(end(Signal::SIGABRT), "memory allocation of 4096 bytes failed", false, false);
        assert_eq!(aborted.memory.unwrap().requested_bytes, Some(4096));
        let bad_alloc = "terminate called after throwing an instance of 'std::bad_alloc'";
        assert!(report(end(Signal::SIGABRT), bad_alloc, false, false).out_of_memory);
        assert!(report(end(Signal::SIGABRT), bad_alloc, true, false).out_of_memory, "the kill came too late");

        for (end, line, by_us, kernel_killed) in [
            // Killed by this agent while the kernel killed another.
            (end(Signal::SIGKILL), bad_alloc, true, true),
            (end(Signal::SIGKILL), "", false, false),
            (end(Signal::SIGSEGV), bad_alloc, false, true),
            (end(Signal::SIGABRT), "assertion failed", false, true),
            (End { code: Some(1), ..End::default() }, bad_alloc, false, true),
        ] {
            let exit = report(end, line, by_us, kernel_killed);
            assert!(!exit.out_of_memory && exit.memory.is_none(), "{exit:?}");
        }
    }

    #[test]
    fn an_end_is_counted_by_its_true_cause() {
        let cause = |end: End, killed: bool, asked: bool| {
            let stopped = end.is_stop(killed, asked);
            RankEnd { exit: end.report("s".into(), Said::default(), killed, false), stopped }.cause()
        };
        let by = |signal: Signal| End { signal: Some(signal as i32), ..End::default() };
        let code = |code: i32| End { code: Some(code), ..End::default() };
        assert_eq!(cause(by(Signal::SIGKILL), true, false), "stopped");
        assert_eq!(cause(by(Signal::SIGKILL), false, false), "signal", "somebody else's");
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
    fn a_kill_that_comes_too_late_is_known_as_such() {
        assert!(!tells_of_end("7 (a) b) S 1 7 7 0 -1 4194304 100 0"));
        assert!(tells_of_end("7 (a) b) Z 1 7 7 0 -1 4194304 100 0"));
        assert!(tells_of_end("7 (a) R 1 7 7 0 -1 4194308 100 0"), "PF_EXITING");
        assert!(!is_ending(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        foil_sys::wait_for_end(child.id()).unwrap();
        assert!(is_ending(child.id()));
        child.wait().unwrap();
    }
}

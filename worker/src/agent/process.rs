//! One rank process as its agent holds it: its output, its end, and the means to end it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use foil_proto::v1;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::memory::KillCounter;

/// Lines of a rank's output that go with the report of its end.
const TAIL_LINES: usize = 50;
/// Longer lines are cut in that report.
const TAIL_LINE_BYTES: usize = 2000;

/// A running process. Dropping it does not end it.
#[derive(Debug)]
pub(super) struct RankProcess {
    child: Arc<Mutex<Child>>,
    killed: Arc<AtomicBool>,
}

impl RankProcess {
    /// Takes charge of `child`, whose output must be piped; its end is sent on `exits`.
    pub(super) fn supervise(
        session_id: String,
        mut child: Child,
        exits: mpsc::UnboundedSender<v1::RankExited>,
    ) -> io::Result<Self> {
        let tail = Tail::default();
        let readers = [
            child.stdout.take().map(|out| forward(&session_id, out, tail.clone())).transpose()?,
            child.stderr.take().map(|err| forward(&session_id, err, tail.clone())).transpose()?,
        ];
        let process = Self { child: Arc::new(Mutex::new(child)), killed: Arc::default() };
        let (child, killed) = (Arc::clone(&process.child), Arc::clone(&process.killed));
        let kills_before = KillCounter::read();
        thread::Builder::new().name(format!("reap {session_id}")).spawn(move || {
            let status = reap(&child);
            for reader in readers.into_iter().flatten() {
                // A reader that panicked only shortens the tail.
                let _ = reader.join();
            }
            let by_us = killed.load(Ordering::SeqCst);
            let out_of_memory =
                !by_us && status.as_ref().is_ok_and(was_killed) && KillCounter::read() > kills_before;
            let exit = describe(session_id, status, out_of_memory, tail.take());
            // Nobody listens where the agent itself is ending.
            let _ = exits.send(exit);
        })?;
        Ok(process)
    }

    /// SIGKILL. Harmless where the process has ended: it is reaped under the same lock, so its number cannot name another.
    pub(super) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        if let Err(error) = self.child.lock().unwrap_or_else(PoisonError::into_inner).kill() {
            tracing::warn!(%error, "a rank could not be killed");
        }
    }
}

/// Waits for the end without reaping, so that the lock is free for a kill meanwhile; then reaps under it.
fn reap(child: &Mutex<Child>) -> io::Result<ExitStatus> {
    let id = child.lock().unwrap_or_else(PoisonError::into_inner).id();
    let pid = Pid::from_raw(i32::try_from(id).map_err(io::Error::other)?);
    while let Err(error) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
        if error != nix::errno::Errno::EINTR {
            return Err(error.into());
        }
    }
    child.lock().unwrap_or_else(PoisonError::into_inner).wait()
}

fn was_killed(status: &ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGKILL as i32)
}

fn describe(
    session_id: String,
    status: io::Result<ExitStatus>,
    out_of_memory: bool,
    log_tail: Vec<String>,
) -> v1::RankExited {
    let (exit_code, signal) = match status {
        Ok(status) => (status.code(), status.signal()),
        Err(error) => {
            tracing::error!(%error, session = session_id, "a rank could not be waited for");
            (None, None)
        }
    };
    v1::RankExited { session_id, exit_code, signal, out_of_memory, log_tail }
}

/// The last lines of a process's output.
#[derive(Clone, Debug, Default)]
struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        let cut =
            (0..=TAIL_LINE_BYTES.min(line.len())).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        lines.push_back(line[..cut].to_owned());
    }

    fn take(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

/// Copies a rank's output to this process's standard error, where its log goes too, line by line.
fn forward(session_id: &str, output: impl Read + Send + 'static, tail: Tail) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("log {session_id}")).spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches(['\n', '\r']);
            tail.push(line);
            // Where our own standard error is closed the tail still gets the line.
            let _ = writeln!(io::stderr().lock(), "{line}");
            bytes.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones_at_a_character() {
        let tail = Tail::default();
        for line in 0..60 {
            tail.push(&line.to_string());
        }
        tail.push(&"é".repeat(2000));
        let lines = tail.take();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[0], "11");
        assert_eq!(lines[TAIL_LINES - 1].len(), TAIL_LINE_BYTES);
    }
}

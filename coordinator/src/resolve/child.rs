//! The process that reads a job's inputs: a request on standard input, an answer on standard output.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use foil_common::storage::Store;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::request::{Answer, Request};

/// The hidden command of `foil` that runs [`main`].
pub const COMMAND: &str = "resolve-inputs";
/// Nobody waits for the answer any more.
const ABANDONED: i32 = 75;
/// A specification with its references; files come from the store.
const LARGEST_REQUEST: u64 = 16 << 20;

/// What the process may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// Time of all its threads together.
    pub cpu: Duration,
}

/// Why the process ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Memory,
    Time,
    Unknown,
}

impl Limits {
    pub(super) fn arguments(self) -> [String; 4] {
        let seconds = self.cpu.as_secs().max(1);
        ["--memory".to_owned(), self.memory.to_string(), "--cpu-seconds".to_owned(), seconds.to_string()]
    }

    fn impose(self) -> io::Result<()> {
        let seconds = self.cpu.as_secs();
        let set = |resource, limit| setrlimit(resource, limit, limit).map_err(io::Error::from);
        set(Resource::RLIMIT_AS, self.memory)?;
        set(Resource::RLIMIT_CPU, seconds)?;
        set(Resource::RLIMIT_CORE, 0)
    }
}

/// Reads one request, does its work under `limits`, and writes the answer. Ends as soon as standard input does: whoever
/// asked holds it open for as long as the answer is waited for, and loses it by dying.
///
/// # Errors
/// No request, no store, or no limits; nothing that is the request's fault.
pub async fn main(store: &str, limits: Limits) -> io::Result<()> {
    limits.impose()?;
    let request = tokio::task::spawn_blocking(read_request).await.map_err(io::Error::other)??;
    std::thread::spawn(end_with_asker);
    let store = Store::open(store).map_err(io::Error::other)?;
    let answer = Answer::from(request.run(&store).await);
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &answer)?;
    stdout.flush()
}

fn read_request() -> io::Result<Request> {
    let mut line = Vec::new();
    io::stdin().lock().take(LARGEST_REQUEST).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn end_with_asker() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    std::process::exit(ABANDONED);
}

pub(super) fn cause(status: ExitStatus, complaint: &str) -> Cause {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    // An allocation that fails aborts the process; one that libraries try to handle ends in other ways.
    let memory = ["memory allocation of", "out of memory", "Cannot allocate memory", "OutOfMemory"];
    match signal {
        Some(Signal::SIGXCPU) => Cause::Time,
        _ if memory.iter().any(|words| complaint.contains(words)) => Cause::Memory,
        _ => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_death_is_told_from_its_signal_and_last_words() {
        let killed = |signal: Signal| ExitStatus::from_raw(signal as i32);
        assert_eq!(cause(killed(Signal::SIGXCPU), ""), Cause::Time);
        let words = "memory allocation of 137438953440 bytes failed";
        assert_eq!(cause(killed(Signal::SIGABRT), words), Cause::Memory);
        assert_eq!(cause(killed(Signal::SIGSEGV), ""), Cause::Unknown);
        assert_eq!(cause(ExitStatus::from_raw(101 << 8), "thread panicked"), Cause::Unknown);
    }
}

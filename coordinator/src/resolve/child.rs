//! The child process that reads a job's inputs: a request on standard input, a response on standard output.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use foil_common::spec;
use foil_common::storage::Store;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::request::{Request, Response};

/// The hidden command of `foil` that runs [`main`].
pub const COMMAND: &str = "resolve-inputs";
/// Exit code if the caller stopped waiting for the response.
const ABANDONED: i32 = 75;
/// Size limit of a request: a specification with its references. Files are read from the store.
const MAX_REQUEST_BYTES: u64 = 16 << 20;

/// Resource limits of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// CPU time, summed over all threads.
    pub cpu: Duration,
}

/// The reason why the process ended without a response.
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

/// Reads one request, handles it under `limits`, and writes the response. Exits as soon as standard input
/// ends: the parent keeps it open while waiting for the response, and its death closes it.
///
/// # Errors
/// There is no request or no store, or the limits cannot be set; the inputs are never at fault.
pub async fn main(store: &str, limits: Limits) -> io::Result<()> {
    limits.impose()?;
    // The process is usually started before there is a request.
    spec::preload();
    let store = Store::open(store).map_err(io::Error::other)?;
    let request = tokio::task::spawn_blocking(read_request).await.map_err(io::Error::other)??;
    std::thread::spawn(exit_with_parent);
    let response = Response::from(request.run(&store).await);
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &response)?;
    stdout.flush()
}

fn read_request() -> io::Result<Request> {
    let mut line = Vec::new();
    io::stdin().lock().take(MAX_REQUEST_BYTES).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn exit_with_parent() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    std::process::exit(ABANDONED);
}

pub(super) fn cause(status: ExitStatus, stderr: &str) -> Cause {
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    // A failed allocation aborts the process; a library that handles one itself fails in other ways.
    let memory = ["memory allocation of", "out of memory", "Cannot allocate memory", "OutOfMemory"];
    match signal {
        Some(Signal::SIGXCPU) => Cause::Time,
        _ if memory.iter().any(|message| stderr.contains(message)) => Cause::Memory,
        _ => Cause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_death_is_derived_from_signal_and_stderr() {
        let killed = |signal: Signal| ExitStatus::from_raw(signal as i32);
        assert_eq!(cause(killed(Signal::SIGXCPU), ""), Cause::Time);
        let stderr = "memory allocation of 137438953440 bytes failed";
        assert_eq!(cause(killed(Signal::SIGABRT), stderr), Cause::Memory);
        assert_eq!(cause(killed(Signal::SIGSEGV), ""), Cause::Unknown);
        assert_eq!(cause(ExitStatus::from_raw(101 << 8), "thread panicked"), Cause::Unknown);
    }
}

//! Processes with a time limit.

#![expect(clippy::disallowed_methods, reason = "processes have a deadline")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Interval at which a process is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time after SIGTERM and after SIGKILL. `foil run` ends its worker and then its coordinator, 15 s each at
/// most.
const GRACE: Duration = Duration::from_secs(35);
/// Number of lines of a failed process's log that are shown.
const TAIL: usize = 5;

/// Runs a command with its standard output and error in files.
///
/// # Errors
/// It cannot be started, fails, or does not end in time; with the end of its log.
pub(super) fn run(command: &mut Command, stdout: &Path, log: &Path, limit: Duration) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(create(stdout)?).stderr(create(log)?);
    let mut child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
    let tail = || {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let text = [log, stdout].map(read).into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].iter();
        tail.map(|line| format!("\n  | {line}")).collect::<String>()
    };
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{program} ended with {status}{}", tail()),
        None => {
            end(&mut child)?;
            bail!("{program} did not end within {} s{}", limit.as_secs(), tail())
        }
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

/// The status of a process that ends within `limit`.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().context("waiting for a process")? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() >= deadline => return Ok(None),
            None => thread::sleep(POLL_INTERVAL),
        }
    }
}

/// Ends a process, which may end those that it has started at SIGTERM.
fn end(child: &mut Child) -> Result<()> {
    let process = Pid::from_raw(i32::try_from(child.id())?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // It may have exited in the meantime.
        let _ = kill(process, signal);
        if wait(child, GRACE)?.is_some() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(script: &str, limit: Duration) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let [stdout, log] = ["stdout", "log"].map(|name| directory.path().join(name));
        let ran = run(Command::new("sh").args(["-c", script]), &stdout, &log, limit);
        let error = ran.err().map(|error| error.to_string()).unwrap_or_default();
        (error, fs::read_to_string(stdout).unwrap())
    }

    #[test]
    fn a_process_ends_by_itself_or_at_its_limit() {
        let long = Duration::from_secs(60);
        assert_eq!(outcome("echo done", long), (String::new(), "done\n".to_owned()));
        let (error, stdout) = outcome("echo part; echo why >&2; exit 3", long);
        assert!(error.contains("exit status: 3\n  | why") && stdout == "part\n", "{error}");
        let (error, stdout) = outcome("echo part; exec sleep 100", Duration::from_millis(300));
        assert!(error.contains("did not end within") && stdout == "part\n", "{error}");
    }
}

//! Runs one command on one input with limits.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The commands that read a job's inputs without a coordinator.
pub(crate) const COMMANDS: &[&[&str]] = &[
    &["inspect", "job.yaml", "--rows", "2"],
    &["plan", "job.yaml"],
    &["submit", "job.yaml", "--dry-run"],
    // Runs only its own checks: within the limits neither foil-worker's libtorch nor Python can start.
    &["conform", "model"],
];

/// CPU time limit in seconds, which is independent of the load of the machine.
const PROCESSOR_LIMIT: u64 = 5;

/// Wall-clock timeout, for commands that wait without using CPU time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Address space limit, which bounds all memory.
const MEMORY_LIMIT: u64 = 1 << 30;

pub(crate) enum Verdict {
    Accepted,
    Refused,
    Finding(String),
}

pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) output: Vec<u8>,
}

/// Runs the command in the input's directory.
pub(crate) fn run(foil: &Path, command: &[&str], dir: &Path) -> io::Result<Outcome> {
    let log = dir.join("output.txt");
    let output = File::create(&log)?;
    let mut child = Command::new("prlimit")
        .arg(format!("--as={MEMORY_LIMIT}"))
        .arg(format!("--cpu={PROCESSOR_LIMIT}"))
        .arg("--core=0")
        .arg("--")
        .arg(foil)
        .args(command)
        // glibc reserves address space for the arena of each thread.
        .env("MALLOC_ARENA_MAX", "1")
        .env("TOKIO_WORKER_THREADS", "2")
        .env("RUST_BACKTRACE", "0")
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let status = wait(&mut child)?;
    let output = std::fs::read(&log)?;
    Ok(Outcome { verdict: classify(status, &output), output })
}

/// Waits for the child to exit; `None` on timeout.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn classify(status: Option<ExitStatus>, output: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(output);
    let Some(status) = status else {
        return Verdict::Finding(format!("hung for {} s", PATIENCE.as_secs()));
    };
    if let Some(line) =
        text.lines().find(|line| line.contains("panicked at") || line.contains("please report"))
    {
        return Verdict::Finding(line.trim().to_owned());
    }
    match (status.code(), status.signal()) {
        (Some(0), _) => Verdict::Accepted,
        (Some(101), _) => Verdict::Finding("exited with 101, a panic's code".to_owned()),
        (Some(_), _) => Verdict::Refused,
        (None, Some(signal)) => {
            let last = text.lines().last().unwrap_or_default();
            Verdict::Finding(format!("ended by signal {signal}; {last}"))
        }
        (None, None) => Verdict::Finding(format!("ended with {status}")),
    }
}

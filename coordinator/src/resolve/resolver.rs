//! Reads inputs outside the coordinator's process, for a few jobs at a time.
//!
//! A user's files determine how much work and memory reading them takes: archives that unpack to a thousand
//! times their size, templates that loop, tokenizers that crash. The coordinator therefore reads none of them
//! itself. It starts a child process with limits on memory and time, which ends with its caller, at its
//! deadline, or with the coordinator.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foil_common::storage::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::child::{self, COMMAND, Limits};
use super::request::{Request, Response};
use super::{ResolveError, Resolved};
use crate::trackers::SECRET_VARIABLES;

/// Maximum number of jobs whose inputs are read concurrently.
const MAX_RUNNING: usize = 2;
/// Maximum number of waiting jobs.
const MAX_WAITING: usize = 16;
/// Size limit of a response, which holds counts and warnings but no rows.
const MAX_RESPONSE_BYTES: u64 = 16 << 20;
/// Size of the retained tail of a child's standard error.
const MAX_STDERR_BYTES: u64 = 16 << 10;

/// Reads jobs' inputs.
#[derive(Debug, Clone)]
pub struct Resolver {
    backend: Backend,
    running: Arc<Semaphore>,
    /// Includes running ones.
    admitted: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
enum Backend {
    /// This process: for trusted inputs, or a store in this process's memory.
    Here(Store),
    Child(Arc<Children>),
}

/// Child processes, one of which is started ahead of its request.
#[derive(Debug)]
struct Children {
    config: ChildConfig,
    spare: Mutex<Option<Child>>,
}

/// Configuration of child processes.
#[derive(Debug)]
pub struct ChildConfig {
    /// The `foil` program.
    pub program: std::path::PathBuf,
    /// The store's location, as accepted by [`Store::open`].
    pub store: String,
    /// Bytes of address space.
    pub memory: u64,
    /// Maximum time from request to response.
    pub deadline: Duration,
}

impl Resolver {
    /// Reads inputs in this process.
    pub fn here(store: Store) -> Self {
        Self::new(Backend::Here(store))
    }

    /// Reads inputs in child processes.
    pub fn in_children(setup: ChildConfig) -> Self {
        Self::new(Backend::Child(Arc::new(Children { config: setup, spare: Mutex::new(None) })))
    }

    fn new(backend: Backend) -> Self {
        Self {
            backend,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            admitted: Arc::new(Semaphore::new(MAX_RUNNING + MAX_WAITING)),
        }
    }

    /// Reads a job's inputs; dropping the future cancels the work.
    ///
    /// # Errors
    /// The inputs cannot be used, too many others are waiting, or a limit was exceeded.
    pub async fn resolve(&self, request: Request) -> Result<Resolved, ResolveError> {
        let _admitted =
            self.admitted.try_acquire().map_err(|_| ResolveError::Busy { waiting: MAX_WAITING })?;
        let _running =
            self.running.acquire().await.map_err(|_| ResolveError::Busy { waiting: MAX_WAITING })?;
        match &self.backend {
            Backend::Here(store) => request.run(store).await,
            Backend::Child(children) => children.resolve(&request).await,
        }
    }
}

impl Children {
    async fn resolve(&self, request: &Request) -> Result<Resolved, ResolveError> {
        let resolved = match self.take() {
            Ok(child) => self.config.resolve(child, request).await,
            Err(error) => Err(ResolveError::Process { reason: error.to_string() }),
        };
        // Not before: its start takes time of the cores that this request needs.
        self.prepare();
        resolved
    }

    fn take(&self) -> io::Result<Child> {
        let spare = self.spare().take();
        // The child may have ended in the meantime, for example because memory ran out.
        match spare.and_then(|mut child| matches!(child.try_wait(), Ok(None)).then_some(child)) {
            Some(child) => Ok(child),
            None => self.config.start(),
        }
    }

    /// Starts a child ahead of the next request, which then need not wait for it. If that fails, the request
    /// starts its own child and reports the error.
    fn prepare(&self) {
        let mut spare = self.spare();
        if spare.is_none() {
            *spare = self.config.start().ok();
        }
    }

    fn spare(&self) -> MutexGuard<'_, Option<Child>> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChildConfig {
    async fn resolve(&self, child: Child, request: &Request) -> Result<Resolved, ResolveError> {
        let work = exchange(child, request);
        match tokio::time::timeout(self.deadline, work).await {
            Ok(Ok(response)) => response.into(),
            Ok(Err(ChildError::Start(error))) => Err(ResolveError::Process { reason: error.to_string() }),
            Ok(Err(ChildError::Ended { status, stderr })) => Err(self.died(status, &stderr)),
            Err(_) => Err(ResolveError::Deadline { limit: self.deadline }),
        }
    }

    fn start(&self) -> io::Result<Child> {
        let limits = Limits { memory: self.memory, cpu: cpu_limit(self.deadline) };
        let mut command = Command::new(&self.program);
        // The child reads user-provided files and does not need the trackers' secrets.
        for variable in SECRET_VARIABLES {
            command.env_remove(variable);
        }
        command
            .arg(COMMAND)
            .args(limits.arguments())
            .env("FOIL_STORE", &self.store)
            // Each arena reserves address space, which is limited.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    fn died(&self, status: ExitStatus, stderr: &str) -> ResolveError {
        match child::cause(status, stderr) {
            child::Cause::Memory => ResolveError::Memory { bytes: self.memory },
            child::Cause::Time => ResolveError::Deadline { limit: self.deadline },
            child::Cause::Unknown => {
                tracing::error!(%status, stderr, "reading a job's inputs crashed");
                ResolveError::Crashed
            }
        }
    }
}

/// Sends the request and waits for the response. The child's standard input stays open until then, because
/// closing it tells the child that its caller has stopped waiting.
async fn exchange(mut child: Child, request: &Request) -> Result<Response, ChildError> {
    let mut line = serde_json::to_vec(request).map_err(|error| ChildError::Start(error.into()))?;
    line.push(b'\n');
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(ChildError::Start(io::Error::other("it has no standard streams")));
    };
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    let mut stdout = stdout.take(MAX_RESPONSE_BYTES);
    let read = async {
        // If the child dies early, its exit status is reported instead.
        let _ = stdin.write_all(&line).await;
        stdout.read_to_end(&mut text).await
    };
    let (read, _) = tokio::join!(read, tail(stderr, &mut errors));
    drop(stdin);
    if let (Ok(_), Ok(response)) = (read, serde_json::from_slice(&text)) {
        return Ok(response);
    }
    let status = child.wait().await.map_err(ChildError::Start)?;
    Err(ChildError::Ended { status, stderr: String::from_utf8_lossy(&errors).into_owned() })
}

/// The reason why there is no response.
enum ChildError {
    Start(io::Error),
    Ended { status: ExitStatus, stderr: String },
}

/// CPU time limit that corresponds to all cores being busy until the deadline. It stops a child whose parent
/// is suspended.
fn cpu_limit(deadline: Duration) -> Duration {
    deadline * u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1)
}

/// Reads to the end, keeping only the tail.
async fn tail(mut stream: impl tokio::io::AsyncRead + Unpin, kept: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(MAX_STDERR_BYTES as usize);
        kept.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use foil_proto::v1;

    use super::*;
    use crate::tenant::Tenant;

    /// A child that answers with its process id.
    const CHILD: &str = "#!/bin/sh
read request
printf '{\"Failed\":{\"field\":null,\"message\":\"%s\",\"transient\":false,\"store\":false}}' $$
";

    async fn answering_pid(children: &Children) -> String {
        let request = Request {
            job_id: "j".into(),
            spec: v1::JobSpec::default(),
            models: std::collections::BTreeMap::new(),
            write: false,
            tenant: Tenant::default(),
        };
        children.resolve(&request).await.unwrap_err().to_string()
    }

    fn spare_pid(children: &Children) -> String {
        children.spare().as_ref().and_then(Child::id).unwrap().to_string()
    }

    #[tokio::test]
    async fn a_request_goes_to_the_child_started_before_it_if_that_still_runs() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("child");
        // Written by another process: a file that is open for writing here, or in a child of another test,
        // cannot be executed.
        let write = "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"";
        let written =
            std::process::Command::new("sh").args(["-c", write, "sh", CHILD]).arg(&program).status();
        assert!(written.unwrap().success());
        let deadline = Duration::from_secs(60);
        let config = ChildConfig { program, store: "memory:".into(), memory: 1 << 30, deadline };
        let children = Children { config, spare: Mutex::new(None) };
        answering_pid(&children).await;
        let second = spare_pid(&children);
        assert_eq!(answering_pid(&children).await, second);
        let third = spare_pid(&children);
        assert_ne!(third, second, "each child has one request");
        let mut dead = children.spare().take().unwrap();
        dead.kill().await.unwrap();
        *children.spare() = Some(dead);
        assert_ne!(answering_pid(&children).await, third);
    }
}

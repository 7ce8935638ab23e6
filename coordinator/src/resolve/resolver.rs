//! Reading inputs apart from the coordinator, a few jobs at a time.
//!
//! A user's files decide how much work and memory their reading takes: archives that unpack to a thousand times their
//! size, templates that loop, tokenizers that crash. The coordinator therefore reads none of them itself. It starts a
//! child process with limits on memory and time, which ends with its caller, with its deadline or with the coordinator.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use foil_common::storage::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::child::{self, COMMAND, Limits};
use super::request::{Answer, Request};
use super::{ResolveError, Resolved};

/// Jobs whose inputs are read at the same time.
const RUNNING: usize = 2;
/// Jobs that wait for their turn.
const WAITING: usize = 16;
/// Most that a child's answer may take; it holds counts and warnings, no rows.
const LARGEST_ANSWER: u64 = 16 << 20;
/// The end of a child's standard error that is kept.
const LARGEST_COMPLAINT: u64 = 16 << 10;

/// Reads jobs' inputs.
#[derive(Debug, Clone)]
pub struct Resolver {
    place: Place,
    running: Arc<Semaphore>,
    /// Running ones too.
    admitted: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
enum Place {
    /// This process: what reads the inputs is trusted, or the store is in this process's memory.
    Here(Store),
    Child(Arc<Setup>),
}

/// How a child is started.
#[derive(Debug)]
pub struct Setup {
    /// The `foil` program.
    pub program: std::path::PathBuf,
    /// The store's location, as [`Store::open`] takes it.
    pub store: String,
    /// Bytes of address space.
    pub memory: u64,
    /// Time from start to answer.
    pub deadline: Duration,
}

impl Resolver {
    /// Reads inputs in this process.
    pub fn here(store: Store) -> Self {
        Self::new(Place::Here(store))
    }

    /// Reads inputs in child processes.
    pub fn in_children(setup: Setup) -> Self {
        Self::new(Place::Child(Arc::new(setup)))
    }

    fn new(place: Place) -> Self {
        Self {
            place,
            running: Arc::new(Semaphore::new(RUNNING)),
            admitted: Arc::new(Semaphore::new(RUNNING + WAITING)),
        }
    }

    /// Reads a job's inputs; dropping the future ends the work.
    ///
    /// # Errors
    /// Inputs that cannot be used; too many others wait; the limits were reached.
    pub async fn resolve(&self, request: Request) -> Result<Resolved, ResolveError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| ResolveError::Busy { waiting: WAITING })?;
        let _running = self.running.acquire().await.map_err(|_| ResolveError::Busy { waiting: WAITING })?;
        match &self.place {
            Place::Here(store) => request.run(store).await,
            Place::Child(setup) => setup.resolve(&request).await,
        }
    }
}

impl Setup {
    async fn resolve(&self, request: &Request) -> Result<Resolved, ResolveError> {
        let work = self.converse(request);
        match tokio::time::timeout(self.deadline, work).await {
            Ok(Ok(answer)) => answer.into(),
            Ok(Err(Broken::Start(error))) => Err(ResolveError::Process { reason: error.to_string() }),
            Ok(Err(Broken::Ended { status, complaint })) => Err(self.died(status, &complaint)),
            Err(_) => Err(ResolveError::Deadline { limit: self.deadline }),
        }
    }

    fn start(&self) -> io::Result<Child> {
        let limits = Limits { memory: self.memory, cpu: cpu_limit(self.deadline) };
        Command::new(&self.program)
            .arg(COMMAND)
            .args(limits.arguments())
            .env("FOIL_STORE", &self.store)
            // Each arena reserves address space, which is what is limited.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    /// Sends the request and waits for the answer. The child's standard input stays open until then: its end tells the
    /// child that nobody waits any more.
    async fn converse(&self, request: &Request) -> Result<Answer, Broken> {
        let mut line = serde_json::to_vec(request).map_err(|error| Broken::Start(error.into()))?;
        line.push(b'\n');
        let mut child = self.start().map_err(Broken::Start)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(Broken::Start(io::Error::other("it has no standard streams")));
        };
        let (mut text, mut complaint) = (Vec::new(), Vec::new());
        let mut stdout = stdout.take(LARGEST_ANSWER);
        let said = async {
            // A child that dies early is told by its status.
            let _ = stdin.write_all(&line).await;
            stdout.read_to_end(&mut text).await
        };
        let (said, _) = tokio::join!(said, tail(stderr, &mut complaint));
        drop(stdin);
        if let (Ok(_), Ok(answer)) = (said, serde_json::from_slice(&text)) {
            return Ok(answer);
        }
        let status = child.wait().await.map_err(Broken::Start)?;
        Err(Broken::Ended { status, complaint: String::from_utf8_lossy(&complaint).into_owned() })
    }

    fn died(&self, status: ExitStatus, complaint: &str) -> ResolveError {
        match child::cause(status, complaint) {
            child::Cause::Memory => ResolveError::Memory { bytes: self.memory },
            child::Cause::Time => ResolveError::Deadline { limit: self.deadline },
            child::Cause::Unknown => {
                tracing::error!(%status, complaint, "reading a job's inputs crashed");
                ResolveError::Crashed
            }
        }
    }
}

/// Why there is no answer.
enum Broken {
    Start(io::Error),
    Ended { status: ExitStatus, complaint: String },
}

/// More than the deadline for each core would be; against a child whose parent is stopped.
fn cpu_limit(deadline: Duration) -> Duration {
    deadline * u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1)
}

/// Reads to the end and keeps only the last part.
async fn tail(mut stream: impl tokio::io::AsyncRead + Unpin, kept: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(LARGEST_COMPLAINT as usize);
        kept.drain(..surplus);
    }
}

//! The logs of a job's ranks as users read them: from the store, whether the job is running or its hosts are
//! gone.

mod cursor;
mod filter;
mod pieces;
mod reader;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use foil_common::logs::Process;
use foil_common::storage::Store;
use foil_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use self::cursor::Cursor;
use self::filter::Filter;
use self::reader::{Reader, Sink, Tail};
use super::status::{RETRY_AFTER, bad_field, no_job, not_leading, status, stopped};
use crate::auth::Principal;
use crate::clock::Clock;
use crate::driver::UserHandle;
use crate::job::{JobState, JobStatus};
use crate::leadership::{LeadershipHandle, NotLeading};
use crate::lease::Lease;

/// Maximum number of concurrent streams; each holds up to one log part per rank.
const MAX_STREAMS: usize = 64;
/// Number of messages that may wait for the reader.
const BACKLOG: usize = 4;
/// Limits of a message.
const MESSAGE_LINES: usize = 1000;
const MESSAGE_BYTES: usize = 256 << 10;
/// Interval between two checks of the store.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time after a job's end in which the last lines of its ranks must reach the store.
const FLUSH_TIME: Duration = Duration::from_secs(10);
/// A reader that consumes nothing for this long is dropped.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Streams logs.
#[derive(Debug, Clone)]
pub(super) struct Logs {
    store: Store,
    clock: Clock,
    streams: Arc<Semaphore>,
}

pub(super) type LogsStream = ReceiverStream<Result<v1::LogsResponse, Status>>;

/// The parts of a job's state that its logs depend on.
struct Facts {
    state: v1::LogsState,
    attempt: u32,
    /// Time of its end, in milliseconds since the Unix epoch.
    ended: Option<u64>,
    /// The processes of the last attempt.
    processes: Vec<Process>,
}

impl Facts {
    fn of(state: &JobState) -> Self {
        let last = state.log_writers.iter().filter(|writer| writer.attempt == state.attempt);
        let process = |writer: &crate::job::LogWriter| Process {
            attempt: writer.attempt,
            rank: writer.rank,
            session: writer.session.clone(),
        };
        let ended = match state.status {
            JobStatus::Ended { at, .. } => Some(at),
            _ => None,
        };
        let wire = match (ended, state.attempt) {
            (Some(_), _) => v1::LogsState::Ended,
            (None, 0) => v1::LogsState::NotStarted,
            (None, _) => v1::LogsState::Running,
        };
        Self { state: wire, attempt: state.attempt, ended, processes: last.map(process).collect() }
    }
}

impl Logs {
    pub(super) fn new(store: Store) -> Self {
        Self { store, clock: Clock::start(), streams: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }

    /// Starts a stream.
    pub(super) async fn stream(
        &self,
        request: v1::LogsRequest,
        caller: &Principal,
        leadership: &LeadershipHandle,
    ) -> Result<LogsStream, Status> {
        let (driver, lease) = leadership.leading().map_err(|why| not_leading(&why))?;
        let driver = driver.for_user(caller);
        let cursor: Cursor = request
            .cursor
            .parse()
            .map_err(|_| bad_field("cursor", "it is not a cursor of an earlier response"))?;
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| busy())?;
        let job = request.job_id.clone();
        let filter = {
            let request = request.clone();
            driver.inspect(&job, move |state| Filter::new(&request, state)).await
        };
        let filter = filter.map_err(stopped)?.ok_or_else(|| no_job(&job))??;
        // With a cursor, the lines omitted by the tail have already been read.
        let tail = filter.tail.filter(|_| request.cursor.is_empty());
        let reader = Reader::new(self.store.clone(), &job, filter, cursor);
        let (sender, stream) = mpsc::channel(BACKLOG);
        let follow = Follow {
            job,
            driver,
            lease,
            clock: self.clock,
            follow: request.follow,
            output: Output { sender: sender.clone(), lines: Vec::new(), bytes: 0, cursor: String::new() },
        };
        tokio::spawn(async move {
            if let Err(status) = follow.run(reader, tail, permit).await {
                // A reader that has disconnected needs no reason.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

fn busy() -> Status {
    let problem = format!("{MAX_STREAMS} logs are being read already; try again");
    let mut details = ErrorDetails::with_quota_failure_violation("logs", problem.clone());
    details.set_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, "BUSY", problem, details)
}

/// One stream.
struct Follow {
    job: String,
    driver: UserHandle,
    lease: Lease,
    clock: Clock,
    follow: bool,
    output: Output,
}

impl Follow {
    async fn run(
        mut self,
        mut reader: Reader,
        tail: Option<usize>,
        _permit: OwnedSemaphorePermit,
    ) -> Result<(), Status> {
        if let Some(lines) = tail {
            reader.seek_tail(lines).await?;
            let mut last = Tail::new(lines);
            let attempt = self.facts().await?.attempt;
            reader.pass(attempt, &mut last).await?;
            for line in last.into_lines() {
                self.output.take(line, &reader.cursor).await?;
            }
        }
        loop {
            // Queried before the store is read, so that everything written by then is included.
            let facts = self.facts().await?;
            reader.pass(facts.attempt, &mut self.output).await?;
            self.output.flush(&reader.cursor).await?;
            let missing = || facts.processes.iter().filter(|process| reader.awaits(process));
            let done = match facts.ended {
                None => !self.follow,
                Some(at) => missing().next().is_none() || self.is_over(at),
            };
            if done {
                let unfinished = match facts.ended {
                    Some(_) => missing().map(ToString::to_string).collect(),
                    None => Vec::new(),
                };
                let end = v1::LogsEnd { state: facts.state.into(), unfinished };
                return self.output.end(end, &reader.cursor).await;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.output.sender.closed() => return Ok(()),
            }
        }
    }

    /// True if the time for the last lines to arrive is over.
    fn is_over(&self, ended: u64) -> bool {
        let flush = u64::try_from(FLUSH_TIME.as_millis()).unwrap_or(u64::MAX);
        self.clock.now().wall >= ended.saturating_add(flush)
    }

    async fn facts(&self) -> Result<Facts, Status> {
        if !self.lease.is_valid() {
            return Err(not_leading(&NotLeading::LeaseExpired));
        }
        let facts = self.driver.inspect(&self.job, Facts::of).await.map_err(stopped)?;
        facts.ok_or_else(|| no_job(&self.job))
    }
}

/// Collects lines into messages.
struct Output {
    sender: mpsc::Sender<Result<v1::LogsResponse, Status>>,
    lines: Vec<v1::RankLogLine>,
    bytes: usize,
    /// The cursor of the last message.
    cursor: String,
}

impl Output {
    /// Sends the collected lines, and the cursor if it has moved.
    async fn flush(&mut self, cursor: &Cursor) -> Result<(), Status> {
        let cursor = cursor.to_string();
        if self.lines.is_empty() && cursor == self.cursor {
            return Ok(());
        }
        self.cursor.clone_from(&cursor);
        self.bytes = 0;
        let lines = std::mem::take(&mut self.lines);
        self.send(v1::LogsResponse { lines, cursor, end: None }).await
    }

    async fn end(&mut self, end: v1::LogsEnd, cursor: &Cursor) -> Result<(), Status> {
        let (lines, cursor) = (std::mem::take(&mut self.lines), cursor.to_string());
        self.send(v1::LogsResponse { lines, cursor, end: Some(end) }).await
    }

    async fn send(&self, response: v1::LogsResponse) -> Result<(), Status> {
        let sent = tokio::time::timeout(STALL_TIMEOUT, self.sender.send(Ok(response))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the reader is gone")),
            Err(_) => Err(Status::deadline_exceeded("the reader takes no lines")),
        }
    }
}

impl Sink for Output {
    async fn take(&mut self, line: v1::RankLogLine, cursor: &Cursor) -> Result<(), Status> {
        self.bytes += line.line.len();
        self.lines.push(line);
        if self.lines.len() >= MESSAGE_LINES || self.bytes >= MESSAGE_BYTES {
            self.flush(cursor).await?;
        }
        Ok(())
    }
}

//! Ships the log of a rank process to the store, through the coordinator.
//!
//! New lines are sent within [`FLUSH_INTERVAL`] as a small part. Every [`PART_BYTES`] are rewritten as one
//! part that replaces the small ones, and the last part is marked as such. A rank therefore never waits for
//! the store. If the agent itself is killed, the log lacks its last seconds.

#![expect(clippy::disallowed_methods, reason = "lines are batched until a deadline")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foil_common::logs::{LINE_BYTES, PART_BYTES, Part, Process};
use foil_common::rpc::LeaderChannel;
use foil_common::rpc::artifacts::{Writer, unfollowed, upload_bytes};
use foil_common::{redact, telemetry};
use foil_proto::v1;
use serde::de::IgnoredAny;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

/// Time that a line may wait to be batched with others.
const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
/// Number of small parts after which their bytes are rewritten as one part.
const SMALL_PARTS: u32 = 64;
/// Maximum number of bytes waiting for the store; beyond it, the oldest lines are dropped.
const BACKLOG_BYTES: usize = 1 << 20;
/// Pause after a transient failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Accepts the lines of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    secret: String,
    buffer: Mutex<Buffer>,
    changed: Notify,
}

/// The end of a log: the bytes that are not yet in a permanent part.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Offset of the first byte in the log.
    start: u64,
    /// Offset up to which the log is in the store, in parts of any size.
    sent: u64,
    /// Number of small parts since `start`.
    small_parts: u32,
    /// Whether the log is complete.
    ended: bool,
    /// Whether the coordinator rejects the rest of the log.
    refused: bool,
}

/// The next bytes to write.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    start: u64,
    end: u64,
    is_last: bool,
}

impl Buffer {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn push(&mut self, line: &str) {
        if self.refused {
            return;
        }
        self.bytes.extend_from_slice(line.as_bytes());
        self.bytes.push(b'\n');
        if self.bytes.len() > BACKLOG_BYTES {
            let keep_from = self.bytes.len() - BACKLOG_BYTES / 2;
            let whole = self.bytes[keep_from..].iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.drop_front(keep_from + whole);
        }
    }

    fn drop_front(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.start += count as u64;
        self.sent = self.sent.max(self.start);
        self.small_parts = 0;
    }

    /// The next part to write, if any.
    fn next(&self) -> Option<Cut> {
        let end = self.end();
        if self.bytes.len() >= PART_BYTES {
            // Lines are much shorter than a part, so one ends within it.
            let line_end =
                self.bytes[..PART_BYTES].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            return Some(Cut { start: self.start, end: self.start + line_end as u64, is_last: false });
        }
        if self.ended {
            return Some(Cut { start: self.start, end, is_last: true });
        }
        if self.sent == end {
            return None;
        }
        let start = if self.small_parts >= SMALL_PARTS { self.start } else { self.sent };
        Some(Cut { start, end, is_last: false })
    }

    /// The bytes of a cut, unless they have been dropped.
    fn bytes_of(&self, cut: &Cut) -> Option<Bytes> {
        let from = usize::try_from(cut.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(cut.end - self.start).ok()?;
        self.bytes.get(from..to).map(Bytes::copy_from_slice)
    }

    /// Records that a cut is durable.
    fn written(&mut self, cut: &Cut) {
        self.sent = self.sent.max(cut.end);
        if cut.start == self.start && cut.end - cut.start > (PART_BYTES - LINE_BYTES) as u64 {
            let count = usize::try_from(cut.end.saturating_sub(self.start)).unwrap_or(self.bytes.len());
            self.drop_front(count.min(self.bytes.len()));
        } else if cut.start == self.start {
            self.small_parts = 1;
        } else {
            self.small_parts += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= PART_BYTES
    }
}

impl LogSink {
    /// Starts to ship the lines of the process that `start` describes. The task ends some time after
    /// [`Self::end`].
    pub(super) fn start(start: &v1::StartRank, channel: LeaderChannel) -> (Self, JoinHandle<()>) {
        let shared = Arc::new(Shared {
            secret: start.secret.clone(),
            buffer: Mutex::default(),
            changed: Notify::new(),
        });
        let process = Process { attempt: start.attempt, rank: start.rank, session: start.session_id.clone() };
        let writer = Writer::rank(&start.job_id, start.attempt, &start.session_id, &start.secret);
        let shipper =
            Shipper { shared: Arc::clone(&shared), job: start.job_id.clone(), process, writer, channel };
        (Self { shared }, tokio::spawn(shipper.run()))
    }

    /// Adds a line of output. A JSON line is kept as it is.
    pub(super) fn push(&self, line: &str) {
        let Some(line) = stored(line, &self.shared.secret) else { return };
        let mut buffer = self.shared.lock();
        buffer.push(&line);
        drop(buffer);
        self.shared.changed.notify_one();
    }

    /// Marks the log as complete: the process has ended and all of its lines have been pushed.
    pub(super) fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// Whether the buffered lines should be sent immediately.
    fn is_ready(&self) -> bool {
        let buffer = self.lock();
        buffer.ended || buffer.is_full()
    }

    fn has_lines(&self) -> bool {
        let buffer = self.lock();
        buffer.sent < buffer.end()
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shipper {
    shared: Arc<Shared>,
    job: String,
    process: Process,
    writer: Writer,
    channel: LeaderChannel,
}

impl Shipper {
    async fn run(self) {
        loop {
            self.gather().await;
            let next = self.shared.lock().next();
            let Some(cut) = next else { continue };
            match self.write(&cut).await {
                Ok(()) if cut.is_last => return,
                Ok(()) => {}
                Err(Refused) => {
                    let mut buffer = self.shared.lock();
                    *buffer = Buffer { refused: true, ..Buffer::default() };
                    return;
                }
            }
        }
    }

    /// Waits for the first lines, and then until they fill a part, the interval is over, or the log ends.
    async fn gather(&self) {
        while !self.shared.is_ready() && !self.shared.has_lines() {
            self.shared.changed.notified().await;
        }
        let deadline = Instant::now() + FLUSH_INTERVAL;
        while !self.shared.is_ready() {
            if timeout_at(deadline, self.shared.changed.notified()).await.is_err() {
                return;
            }
        }
    }

    async fn write(&self, cut: &Cut) -> Result<(), Refused> {
        let part =
            Part { process: self.process.clone(), start: cut.start, end: cut.end, is_last: cut.is_last };
        let key = part.key(&self.job);
        loop {
            let Some(bytes) = self.shared.lock().bytes_of(cut) else { return Ok(()) };
            match upload_bytes(&self.channel, &key, &self.writer, bytes, &unfollowed()).await {
                Ok(_) => {
                    self.shared.lock().written(cut);
                    return Ok(());
                }
                Err(error) if error.is_passing() => {
                    tracing::warn!(%error, session = self.process.session, "a rank's log waits for the store");
                    sleep(RETRY_INTERVAL).await;
                }
                Err(error) => {
                    tracing::warn!(%error, session = self.process.session, "the rest of a rank's log is not kept");
                    return Err(Refused);
                }
            }
        }
    }
}

/// The coordinator rejects the rest of this log: the job was deleted, or another process writes for the rank.
struct Refused;

/// The line to store: JSON without secrets, truncated if too long. `None` for an empty line.
fn stored(line: &str, secret: &str) -> Option<String> {
    if line.trim().is_empty() {
        return None;
    }
    let is_object = line.starts_with('{') && serde_json::from_str::<IgnoredAny>(line).is_ok();
    let line = if line.contains(secret) && !secret.is_empty() { &line.replace(secret, "…") } else { line };
    let line = redact::secrets(line);
    if is_object && line.len() < LINE_BYTES {
        return Some(line.into_owned());
    }
    // Escaping turns a quote or a backslash into two bytes and a control character into six.
    let text = &line[..line.floor_char_boundary(LINE_BYTES / 8)];
    let cut = if text.len() < line.len() { "…" } else { "" };
    Some(telemetry::json_line("INFO", "rank", &format!("{text}{cut}"), &[]))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn filled(bytes: usize) -> Buffer {
        let mut buffer = Buffer::default();
        while buffer.bytes.len() < bytes {
            buffer.push(&"x".repeat(99));
        }
        buffer
    }

    /// Writes everything that is due; returns the cuts.
    fn write_all(buffer: &mut Buffer) -> Vec<(u64, u64)> {
        let mut cuts = Vec::new();
        while let Some(cut) = buffer.next() {
            assert_eq!(buffer.bytes_of(&cut).unwrap().len() as u64, cut.end - cut.start);
            cuts.push((cut.start, cut.end));
            buffer.written(&cut);
            if cut.is_last {
                break;
            }
        }
        cuts
    }

    #[test]
    fn small_parts_are_written_once_more_as_one() {
        let mut buffer = filled(300);
        assert_eq!(write_all(&mut buffer), [(0, 300)]);
        buffer.push(&"y".repeat(99));
        assert_eq!(write_all(&mut buffer), [(300, 400)]);
        for _ in 2..SMALL_PARTS {
            buffer.push("z");
            assert_eq!(write_all(&mut buffer).len(), 1);
        }
        buffer.push("z");
        let end = buffer.end();
        assert_eq!(write_all(&mut buffer), [(0, end)], "all small parts are covered");
        buffer.push("z");
        assert_eq!(write_all(&mut buffer), [(end, end + 2)]);

        let mut buffer = filled(3 * PART_BYTES + 500);
        let total = buffer.end();
        let cuts = write_all(&mut buffer);
        assert_eq!((cuts.len(), cuts[0].0, cuts[3].1), (4, 0, total), "{cuts:?}");
        assert!(
            cuts.windows(2).all(|pair| pair[0].1 == pair[1].0) && cuts.iter().all(|cut| cut.1 % 100 == 0)
        );
        assert_eq!(write_all(&mut buffer), []);
        buffer.ended = true;
        assert_eq!(write_all(&mut buffer), [(cuts[2].1, total)], "the last part covers the small ones too");
        let empty = Buffer { ended: true, ..Buffer::default() };
        assert_eq!(empty.next(), Some(Cut { start: 0, end: 0, is_last: true }));
    }

    #[test]
    fn a_store_that_is_away_costs_the_oldest_lines_and_no_memory() {
        let mut buffer = filled(BACKLOG_BYTES / 2);
        let first = buffer.next().unwrap();
        for _ in 0..100_000 {
            buffer.push(&"x".repeat(99));
            assert!(buffer.bytes.len() <= BACKLOG_BYTES);
        }
        assert!(buffer.start > 0 && buffer.start.is_multiple_of(100), "whole lines are dropped");
        assert_eq!(buffer.bytes_of(&first), None);
        assert_eq!(buffer.next().unwrap().start, buffer.start);
    }

    #[test]
    fn a_stored_line_is_json_without_secrets_and_short() {
        let secret = "5ec2e7";
        let json = |line: &str| -> Value { serde_json::from_str(&stored(line, secret).unwrap()).unwrap() };
        let line = r#"{"message":"step","step":3}"#;
        assert_eq!(stored(line, secret).as_deref(), Some(line));
        assert_eq!(stored("  ", secret), None);
        assert_eq!(json("[W socket.cpp:460] a \"warning\"")["message"], "[W socket.cpp:460] a \"warning\"");
        for line in [r#"{"message":"my secret is 5ec2e7"}"#, "my secret is 5ec2e7"] {
            assert_eq!(json(line)["message"], "my secret is …");
        }
        let url = json("s3://key:pa55@bucket/p?sig=abc");
        assert_eq!(url["message"], "s3://…@bucket/p?…");
        for long in ["é".repeat(1 << 20), format!("{{\"message\":\"{}\"}}", "\\u0001".repeat(1 << 16))] {
            let line = stored(&long, secret).unwrap();
            assert!(line.len() < LINE_BYTES, "{} bytes", line.len());
            assert!(json(&long)["message"].as_str().unwrap().ends_with('…'));
        }
    }
}

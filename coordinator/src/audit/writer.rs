//! Writes records to the file immediately, and to the store in batches.

#![expect(clippy::disallowed_methods, reason = "batches have a timer, and are filed under the day they end")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use foil_common::private::{self, Exposed};
use foil_common::storage::Store;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use ulid::Ulid;

use super::{AuditFile, PREFIX, Record};

/// Time after which a batch is written, counted from its first record.
const BATCH_TIME: Duration = Duration::from_secs(10);
/// Size after which a batch is written.
const BATCH_BYTES: usize = 256 << 10;
/// Number of batches that may wait for the store.
const BATCHES: usize = 16;
/// Time limit for writing a batch to a store that does not respond.
const STORE_TIME: Duration = Duration::from_secs(60);

/// An audit file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot append to the audit log {path}: {source}", path = path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Exposed(#[from] Exposed),
}

/// Destination of lines that are written immediately.
pub(super) enum Sink {
    Standard,
    File { path: PathBuf, file: File },
}

impl Sink {
    pub(super) fn open(file: &AuditFile) -> Result<Self, AuditError> {
        match file {
            AuditFile::Standard => Ok(Self::Standard),
            AuditFile::Path(path) => {
                let failed = |source| AuditError::Open { path: path.clone(), source };
                let file = append(path).map_err(failed)?;
                private::check_private(path, &file.metadata().map_err(failed)?)?;
                Ok(Self::File { path: path.clone(), file })
            }
        }
    }

    /// Writes a line in a single system call, so that processes may share a file.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line)?;
                stdout.flush()
            }
            Self::File { path, file } => {
                // The file may have been moved away for archiving.
                let is_there = fs::metadata(&*path).is_ok_and(|found| {
                    file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
                });
                if !is_there {
                    *file = append(path)?;
                }
                file.write_all(line)
            }
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Counts records that are not written to the file or the store.
pub(super) fn lost(records: u64) {
    metrics::counter!("foil_audit_records_lost_total").increment(records);
}

pub(super) struct Writer {
    sink: Option<Sink>,
    store: Store,
    batch: Batch,
    /// True while the file cannot be written, which is logged once.
    is_failing: bool,
}

#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    records: u64,
    due: Option<Instant>,
}

impl Writer {
    pub(super) fn new(sink: Option<Sink>, store: Store) -> Self {
        Self { sink, store, batch: Batch::default(), is_failing: false }
    }

    /// Writes until all senders are dropped.
    pub(super) async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        let (batches, receiver) = mpsc::channel(BATCHES);
        let uploads = tokio::spawn(upload(self.store.clone(), receiver));
        loop {
            let due = self.batch.due;
            let timer = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                record = records.recv() => match record {
                    Some(record) => self.take(&record),
                    None => break,
                },
                () = timer => self.batch.due = Some(Instant::now()),
            }
            let is_due = self.batch.due.is_some_and(|due| due <= Instant::now());
            if is_due || self.batch.lines.len() >= BATCH_BYTES {
                self.send_batch(&batches);
            }
        }
        if self.batch.records > 0 {
            self.send_batch(&batches);
        }
        drop(batches);
        // The task never panics; if it did, there would be nothing left to do.
        let _ = uploads.await;
    }

    fn take(&mut self, record: &Record) {
        let line = record.line();
        if let Some(sink) = &mut self.sink {
            match sink.write(&line) {
                Ok(()) => self.is_failing = false,
                Err(error) => {
                    lost(1);
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::error!(%error, "cannot write the audit log");
                    }
                }
            }
        }
        self.batch.lines.extend_from_slice(&line);
        self.batch.records += 1;
        self.batch.due.get_or_insert_with(|| Instant::now() + BATCH_TIME);
    }

    fn send_batch(&mut self, batches: &mpsc::Sender<Batch>) {
        if let Err(unsent) = batches.try_send(std::mem::take(&mut self.batch)) {
            // The store cannot keep up, and the backlog is bounded.
            lost(unsent.into_inner().records);
        }
    }
}

/// Creates an object for each batch.
async fn upload(store: Store, mut batches: mpsc::Receiver<Batch>) {
    let store = store.patient(STORE_TIME);
    while let Some(batch) = batches.recv().await {
        let day = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        // Ids sort by time and are unique, so no batch replaces another.
        let id = Ulid::new().to_string().to_lowercase();
        let key = format!("{PREFIX}/{}/{id}.jsonl", day.split('T').next().unwrap_or_default());
        if let Err(error) = store.create(&key, Bytes::from(batch.lines)).await {
            lost(batch.records);
            tracing::error!(%error, key, records = batch.records, "cannot write the audit log to the store");
        }
    }
}

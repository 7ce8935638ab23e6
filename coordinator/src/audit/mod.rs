//! The audit log: who changed what and when, and which callers the coordinator refused. It is written to a
//! file and to the store as JSON lines, and never delays a call.

mod record;
mod retention;
#[cfg(test)]
mod tests;
mod window;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use foil_common::storage::Store;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use self::record::{Outcome, Record};
pub use self::retention::AuditRetention;
use self::window::Window;
pub use self::writer::AuditError;
use self::writer::{Sink, Writer};

/// Prefix of the objects in the store.
pub(crate) const PREFIX: &str = "audit";
/// Number of records that may wait to be written.
const BACKLOG: usize = 8192;

/// Where the lines go in addition to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditFile {
    /// Standard output.
    Standard,
    /// A file to append to, created readable by its owner only. It may be moved away at any time.
    Path(PathBuf),
}

/// Handle to the audit log. Cheap to clone; the log ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct AuditLog {
    records: mpsc::Sender<Record>,
    window: Arc<Mutex<Window>>,
}

impl AuditLog {
    /// Opens the file, if one is given, and starts the writer task. The task ends, with all records written,
    /// after the last handle is dropped.
    pub fn start(file: Option<&AuditFile>, store: Store) -> Result<(Self, JoinHandle<()>), AuditError> {
        let sink = file.map(Sink::open).transpose()?;
        let (records, receiver) = mpsc::channel(BACKLOG);
        let task = tokio::spawn(Writer::new(sink, store).run(receiver));
        Ok((Self { records, window: Arc::default() }, task))
    }

    /// Queues a record without waiting. If the queue is full, the record is counted as lost.
    pub fn record(&self, mut record: Record, at: SystemTime) {
        if record.outcome == Outcome::Unauthenticated {
            // A caller without credentials must not be able to fill the disk or to crowd out relevant
            // records.
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            match window.admit(at) {
                Some(suppressed) => record.suppressed = suppressed,
                None => return,
            }
        }
        if self.records.try_send(record).is_err() {
            writer::lost(1);
        }
    }
}

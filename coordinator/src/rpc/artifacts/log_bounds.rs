//! Limits on the storage used by the logs of ranks.
//!
//! Parts that larger ones cover are deleted first, then the oldest parts of any process or job that exceeds
//! its size limit. Readers see from the offsets how much is missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use foil_common::logs::{self, PART_BYTES, Part};
use foil_common::storage::{Store, StoreError};

/// Maximum size of the log of one rank process.
const PROCESS_BYTES: u64 = 16 << 20;
/// Maximum size of all logs of a job.
const JOB_BYTES: u64 = 256 << 20;
/// Number of parts of a process after which its log is checked, even if none covers others.
const PARTS_UNSEEN: u32 = 80;
/// A job's logs are checked whenever one of them has grown by this much.
const JOB_STEP: u64 = 16 * PART_BYTES as u64;
/// Maximum number of tracked processes.
const MAX_PROCESSES: usize = 10_000;

/// Enforces the limits in the background.
pub(super) struct LogBounds {
    store: Store,
    /// By session.
    processes: Arc<Mutex<BTreeMap<String, Seen>>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Offset up to which parts were written.
    end: u64,
    /// Number of parts since the log was last checked.
    parts: u32,
}

impl Seen {
    /// Records a part. Returns whether to check the process's log, and whether to check the job's logs.
    fn record(&mut self, part: &Part) -> (bool, bool) {
        let (covers, grown) = (part.start < self.end, part.end / JOB_STEP > self.end / JOB_STEP);
        self.end = self.end.max(part.end);
        self.parts += 1;
        let look = covers || part.is_last || self.parts >= PARTS_UNSEEN;
        if look {
            self.parts = 0;
        }
        (look, grown)
    }
}

impl LogBounds {
    pub(super) fn new(store: Store) -> Self {
        Self { store, processes: Arc::default() }
    }

    /// Records a part that was written, and enforces the limits.
    pub(super) fn enforce(&self, job: &str, part: &Part) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        if processes.len() > MAX_PROCESSES {
            processes.clear();
        }
        let session = &part.process.session;
        let (look, grown) = processes.entry(session.clone()).or_default().record(part);
        if part.is_last {
            processes.remove(session);
        }
        drop(processes);
        if !look && !grown {
            return;
        }
        let (store, job, process) = (self.store.clone(), job.to_owned(), part.process.prefix(job));
        tokio::spawn(async move {
            let mut trimmed = trim(&store, &job, &process, PROCESS_BYTES).await;
            if grown && trimmed.is_ok() {
                trimmed = trim(&store, &job, &logs::prefix(&job), JOB_BYTES).await;
            }
            if let Err(error) = trimmed {
                tracing::debug!(%error, job, "parts of a log could not be deleted");
            }
        });
    }
}

/// Deletes the superfluous parts below a prefix.
async fn trim(store: &Store, job: &str, prefix: &str, max: u64) -> Result<(), StoreError> {
    let listed = store.list(prefix).await?;
    let parts = listed.iter().filter_map(|listed| Part::parse(job, &listed.key)).collect();
    for part in superfluous(parts, max) {
        store.delete_object(&part.key(job)).await?;
    }
    Ok(())
}

/// The parts covered by others, and the oldest of the remaining ones beyond `max` bytes. A process's last
/// part is kept.
fn superfluous(mut parts: Vec<Part>, max: u64) -> Vec<Part> {
    // Parts of one process are ordered by start, the longest first.
    parts.sort_by(|a, b| (&a.process, a.start).cmp(&(&b.process, b.start)).then(b.end.cmp(&a.end)));
    let (mut covered, mut kept): (Vec<Part>, Vec<Part>) = (Vec::new(), Vec::new());
    for part in parts {
        let is_covered = kept
            .last()
            .is_some_and(|before| before.process == part.process && part.end <= before.end && !part.is_last);
        if is_covered { &mut covered } else { &mut kept }.push(part);
    }
    let mut bytes: u64 = kept.iter().map(Part::bytes).sum();
    // Attempts follow one another; within an attempt, all processes begin at 0.
    kept.sort_by_key(|part| (part.process.attempt, part.end));
    for part in kept {
        if bytes <= max {
            break;
        }
        if !part.is_last {
            bytes -= part.bytes();
            covered.push(part);
        }
    }
    covered
}

#[cfg(test)]
mod tests {
    use foil_common::logs::Process;

    use super::*;

    fn part(attempt: u32, rank: u32, start: u64, end: u64) -> Part {
        let session = format!("s{attempt}{rank}");
        Part { process: Process { attempt, rank, session }, start, end, is_last: false }
    }

    #[test]
    fn covered_parts_go_first_and_then_the_oldest() {
        let last = Part { is_last: true, ..part(1, 0, 30, 40) };
        let parts = vec![
            part(1, 0, 0, 10),
            part(1, 0, 10, 20),
            part(1, 0, 0, 30),
            part(1, 0, 30, 35),
            last.clone(),
            part(1, 1, 0, 10),
        ];
        let covered = vec![part(1, 0, 0, 10), part(1, 0, 10, 20), part(1, 0, 30, 35)];
        assert_eq!(superfluous(parts.clone(), 1000), covered);
        let tight = superfluous(parts.clone(), 15);
        assert_eq!(tight, [covered.clone(), vec![part(1, 1, 0, 10), part(1, 0, 0, 30)]].concat());
        assert_eq!(superfluous(parts, 0).len(), 5, "the last part is kept");

        let attempts = vec![part(2, 0, 0, 10), part(1, 0, 0, 50), part(1, 1, 0, 20)];
        assert_eq!(superfluous(attempts, 60), [part(1, 1, 0, 20)], "of an earlier attempt");
    }

    #[test]
    fn a_log_is_looked_at_when_parts_can_go() {
        let mut seen = Seen::default();
        assert_eq!(seen.record(&part(1, 0, 0, 10)), (false, false));
        assert_eq!(seen.record(&part(1, 0, 10, 20)), (false, false));
        assert_eq!(seen.record(&part(1, 0, 0, 30)), (true, false), "it covers both");
        assert_eq!(seen.record(&part(1, 0, 30, JOB_STEP)), (false, true));
        let tiny = |number: u64| part(1, 0, JOB_STEP + number, JOB_STEP + number + 1);
        let looks = (0..400).filter(|number| seen.record(&tiny(*number)).0).count();
        assert!(looks >= 4, "{looks} checks for 400 tiny parts");
    }
}

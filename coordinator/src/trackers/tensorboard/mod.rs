//! TensorBoard's event files, stored next to a job's artifacts.
//!
//! Each batch is one file. Files are numbered by small entries that are created only once. An entry names its
//! file and the position in the job's log up to which the files go. So a new leader continues where the last
//! entry ends, and only one of two leaders can create the next entry: nothing is duplicated or missing.

mod events;
mod messages;

use bytes::Bytes;
use foil_common::spec::Tracker;
use foil_common::storage::{Put, Store, StoreError};
use foil_proto::v1;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use self::events::{EventFile, literal};
use super::batch::{Batch, JobFacts, prefix};
use super::http::{Failure, FailureKind};
use super::samples;
use super::settings;
use super::source::Cursor;
use crate::lease::Lease;

/// Maximum number of files listed at a time.
const FILES: usize = 200;
const CONCURRENT_READS: usize = 8;

/// An entry of the list of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The position in the job's log after this file.
    after: Cursor,
    name: String,
    key: String,
    size: u64,
    blake3: String,
}

/// Writes the files of one job.
#[derive(Debug)]
pub(super) struct Writer {
    store: Store,
    prefix: String,
    /// Number of the next file.
    next: usize,
}

impl Writer {
    /// Finds the position up to which files have been written.
    pub(super) async fn open(store: Store, job: &JobFacts) -> Result<(Self, Cursor), Failure> {
        let prefix = prefix(&job.id, Tracker::TensorBoard);
        let entries = keys(&store, &prefix).await.map_err(|error| own(&error))?;
        let cursor = match entries.last() {
            Some(last) => read(&store, last).await?.after,
            None => Cursor::default(),
        };
        Ok((Self { store, prefix, next: entries.len() }, cursor))
    }

    /// Writes a file; `after` is the position in the job's log after the batch.
    pub(super) async fn write(
        &mut self,
        job: &JobFacts,
        batch: &Batch,
        after: Cursor,
        lease: &Lease,
    ) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes: Bytes = encode(job, batch, self.next == 0).into();
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let key = format!("{}/files/{blake3}", self.prefix);
        if !lease.is_valid() {
            return Err(Failure::obsolete());
        }
        let size = bytes.len() as u64;
        self.store.put_object(&key, bytes).await.map_err(|error| own(&error))?;
        // TensorBoard reads the files of a directory in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{:08}.foil", job.submitted_at / 1000, self.next);
        let entry = Entry { after, name, key, size, blake3 };
        self.append(&entry).await?;
        self.next += 1;
        Ok(())
    }

    async fn append(&self, entry: &Entry) -> Result<(), Failure> {
        let key = entry_key(&self.prefix, self.next);
        let bytes =
            serde_json::to_vec(entry).map_err(|error| Failure::new(FailureKind::Own, error.to_string()))?;
        let put = self.store.create(&key, bytes).await.map_err(|error| own(&error))?;
        // The response to an earlier attempt may have been lost.
        if put == Put::Created || read(&self.store, &key).await? == *entry {
            return Ok(());
        }
        Err(Failure::obsolete())
    }
}

/// A job's event files, starting after the first `skip`.
pub(super) async fn files(store: &Store, job: &str, skip: usize) -> Result<Vec<v1::Object>, StoreError> {
    let keys = keys(store, &prefix(job, Tracker::TensorBoard)).await?;
    let keys = keys.into_iter().skip(skip).take(FILES);
    stream::iter(keys).map(|key| file(store, key)).buffered(CONCURRENT_READS).try_collect().await
}

/// The file that an entry names.
async fn file(store: &Store, key: String) -> Result<v1::Object, StoreError> {
    let bytes = store.get(&key).await?;
    match serde_json::from_slice::<Entry>(&bytes) {
        Ok(entry) => {
            Ok(v1::Object { key: entry.key, size: entry.size, blake3: entry.blake3, path: entry.name })
        }
        Err(error) => {
            let expected = "an entry of the list of event files".to_owned();
            Err(StoreError::Corrupt { key, expected, found: error.to_string() })
        }
    }
}

fn entry_key(prefix: &str, number: usize) -> String {
    format!("{prefix}/list/{number:010}")
}

/// The keys of a job's entries, in order.
async fn keys(store: &Store, prefix: &str) -> Result<Vec<String>, StoreError> {
    let listed = store.list(&format!("{prefix}/list")).await?;
    let mut keys: Vec<String> = listed.into_iter().map(|listed| listed.key).collect();
    keys.sort_unstable();
    Ok(keys)
}

async fn read(store: &Store, key: &str) -> Result<Entry, Failure> {
    let bytes = store.get(key).await.map_err(|error| own(&error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(FailureKind::Own, format!("{key} is damaged: {error}")))
}

fn own(error: &StoreError) -> Failure {
    Failure::new(FailureKind::Own, format!("the store failed: {error}"))
}

fn encode(job: &JobFacts, batch: &Batch, is_first: bool) -> Vec<u8> {
    let mut file = EventFile::new(job.submitted_at);
    if is_first {
        let spec = serde_json::to_string_pretty(&job.spec).unwrap_or_default();
        file.text("job/file", job.submitted_at, 0, literal(&spec));
        file.hparams(job.submitted_at, &settings::flat(&job.spec));
    }
    file.scalars(&batch.points);
    if let Some(completions) = &batch.completions {
        for (index, row) in completions.rows.iter().enumerate() {
            // Each prompt has its own tag, so that its completions can be compared across rounds.
            let (tag, text) = (format!("completions/{index}"), literal(&samples::text(row)));
            file.text(&tag, completions.at, completions.round.into(), text);
        }
    }
    for found in &batch.histograms {
        file.histogram(&found.tag, found.at, found.step, &found.histogram, &found.edges);
    }
    if let Some((at, outcome)) = &batch.ending {
        file.end(*at, outcome);
    }
    file.into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::points::Point;
    use super::*;
    use crate::clock::Clock;
    use crate::job::fixture;

    fn lease(seconds: u64) -> Lease {
        let clock = Clock::start();
        Lease::new(clock, clock.now().mono + Duration::from_secs(seconds))
    }

    fn batch(step: u64) -> Batch {
        let point = Point { key: "policy/train/loss".into(), step, value: 0.5, at: 1000 * step };
        Batch { points: vec![point], ..Batch::default() }
    }

    fn at(phases: u32) -> Cursor {
        Cursor { phases, ..Cursor::default() }
    }

    #[tokio::test]
    async fn a_writer_goes_on_where_the_files_end_and_two_do_not_write_the_same() {
        let (store, job) = (Store::in_memory(), JobFacts::of(&fixture::state(&[])));
        let (mut first, cursor) = Writer::open(store.clone(), &job).await.unwrap();
        assert_eq!(cursor, Cursor::default());
        let lease = lease(600);
        first.write(&job, &batch(1), at(1), &lease).await.unwrap();
        first.write(&job, &Batch::default(), at(2), &lease).await.unwrap();
        let (mut second, cursor) = Writer::open(store.clone(), &job).await.unwrap();
        assert_eq!(cursor, at(1), "a batch with nothing to show has no file");
        second.write(&job, &batch(2), at(2), &lease).await.unwrap();
        let lost = first.write(&job, &batch(3), at(3), &lease).await.unwrap_err();
        assert_eq!(lost.kind, FailureKind::Obsolete);
        let files = files(&store, &job.id, 0).await.unwrap();
        let names: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            names,
            ["events.out.tfevents.0000000000.00000000.foil", "events.out.tfevents.0000000000.00000001.foil"]
        );
        for file in &files {
            store.read_object(file).await.unwrap();
        }
        assert_eq!(super::files(&store, &job.id, 1).await.unwrap(), files[1..]);
    }

    #[tokio::test]
    async fn the_same_again_is_fine_and_without_the_lead_nothing_is_written() {
        let (store, job) = (Store::in_memory(), JobFacts::of(&fixture::state(&[])));
        let (mut first, _) = Writer::open(store.clone(), &job).await.unwrap();
        let (mut second, _) = Writer::open(store.clone(), &job).await.unwrap();
        let lost = first.write(&job, &batch(1), at(1), &lease(0)).await.unwrap_err();
        assert_eq!(lost.kind, FailureKind::Obsolete);
        assert!(files(&store, &job.id, 0).await.unwrap().is_empty());
        let lease = lease(600);
        first.write(&job, &batch(1), at(1), &lease).await.unwrap();
        second.write(&job, &batch(1), at(1), &lease).await.unwrap();
        assert_eq!(files(&store, &job.id, 0).await.unwrap().len(), 1);
    }
}

//! Reading of artifacts and data sets from the store, within bounds.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use super::cache::{Cache, Size};
use super::catalog::{Catalog, Column, Rewards};
use super::chunk::{Chunk, Encoded};
use crate::driver::UserHandle;
use crate::job::JobState;
use crate::rpc::status::{short, status, stopped, store_unavailable};

/// Size limit of an object held in memory.
const MAX_OBJECT_BYTES: u64 = 64 << 20;
/// Size limit of a line in a data set or in metrics.
const MAX_LINE_BYTES: usize = 32 << 20;
/// Maximum number of rows in a data set whose positions are cached.
const MAX_ROWS: usize = 4_000_000;
/// Number of objects read concurrently per call.
const CONCURRENT_READS: usize = 4;
/// Memory in KiB for objects being read and decoded, shared by all calls; and how much of it an object takes,
/// as a multiple of its size.
const MEMORY_KIB: u32 = 192 << 10;
const DECODED_SIZE: u64 = 3;

/// Memory for decoded chunks, and for row positions.
const CHUNK_CACHE_BYTES: usize = 48 << 20;
const ROWS_CACHE_BYTES: usize = 64 << 20;

/// Reads from the store. Cheap to clone; clones share their caches.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) store: Store,
    chunks: Cache<Chunk>,
    rows: Cache<Rows>,
    memory: Arc<Semaphore>,
}

/// The positions of a data set's rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) ids: Vec<u64>,
    /// Offset of each row, and the end of the last one.
    offsets: Vec<u64>,
}

impl Size for Rows {
    fn bytes(&self) -> usize {
        (self.ids.capacity() + self.offsets.capacity()) * size_of::<u64>()
    }
}

/// The objects of a chunk.
#[derive(Debug, Clone)]
pub(super) struct ChunkObjects {
    samples: v1::Object,
    rewards: Option<v1::Object>,
}

impl Reader {
    pub(super) fn new(store: Store) -> Self {
        let (chunks, rows) = (Cache::new(CHUNK_CACHE_BYTES), Cache::new(ROWS_CACHE_BYTES));
        Self { store, chunks, rows, memory: Arc::new(Semaphore::new(MEMORY_KIB as usize)) }
    }

    /// Waits until memory for objects of this size is available.
    pub(super) async fn room(&self, bytes: u64) -> Result<SemaphorePermit<'_>, Status> {
        let wanted = u32::try_from(bytes.saturating_mul(DECODED_SIZE) >> 10).unwrap_or(u32::MAX);
        let permit = self.memory.acquire_many(wanted.clamp(1, MEMORY_KIB)).await;
        permit.map_err(|_| Status::internal("the memory of pages is closed"))
    }

    /// An object that fits in memory, verified.
    pub(super) async fn object(&self, object: &v1::Object) -> Result<Bytes, Status> {
        if object.size > MAX_OBJECT_BYTES {
            let problem = format!(
                "the object {} has {} bytes, and at most {MAX_OBJECT_BYTES} are read for a page; `foil samples` and \
                 Artifacts.Get have it in full, and a smaller generation.chunk_prompts makes smaller objects",
                object.key, object.size
            );
            return Err(status(Code::FailedPrecondition, "OBJECT_TOO_LARGE", problem, ErrorDetails::new()));
        }
        self.store.read_object(object).await.map_err(|error| from_store(&error))
    }

    /// A chunk of a round's completions, by its number in the segment.
    pub(super) async fn chunk(
        &self,
        driver: &UserHandle,
        catalog: &Catalog,
        column: &Column,
        segment: usize,
        chunk: u32,
    ) -> Result<Arc<Chunk>, Status> {
        let key = format!("{}/{segment}/{chunk}", column.key(&catalog.job));
        let read = async {
            let objects = objects(driver, catalog, column, segment, chunk..chunk + 1).await?;
            match objects.into_iter().next() {
                Some(objects) => self.decoded(catalog, objects).await,
                None => Ok(Chunk::default()),
            }
        };
        self.chunks.get(&key, read).await
    }

    /// All chunks of a segment of a round's completions, in order. They are not cached.
    pub(super) async fn each_chunk<'a>(
        &'a self,
        driver: &UserHandle,
        catalog: &'a Catalog,
        column: &Column,
        segment: usize,
    ) -> Result<impl Stream<Item = Result<Chunk, Status>> + 'a, Status> {
        let objects = objects(driver, catalog, column, segment, 0..u32::MAX).await?;
        let chunks = stream::iter(objects).map(move |objects| self.decoded(catalog, objects));
        Ok(chunks.buffered(CONCURRENT_READS))
    }

    async fn decoded(&self, catalog: &Catalog, objects: ChunkObjects) -> Result<Chunk, Status> {
        let ChunkObjects { samples, rewards } = objects;
        let name = samples.key.clone();
        let _room = self.room(samples.size + rewards.as_ref().map_or(0, |object| object.size)).await?;
        let encoded = match &rewards {
            None => Encoded::Samples(self.object(&samples).await?),
            Some(object) => {
                let (samples, rewards) = (self.object(&samples).await?, self.object(object).await?);
                match catalog.set {
                    v1::CompletionSet::Golden => Encoded::Paired { samples, pairs: rewards },
                    _ => Encoded::Scored { samples, scores: rewards },
                }
            }
        };
        let is_trained_on = catalog.set == v1::CompletionSet::Training;
        let (method, worst) = (catalog.method, catalog.select_worst);
        let decode = move || {
            let mut chunk = Chunk::decode(encoded, &name)?;
            if is_trained_on {
                chunk.select(&method, worst);
            }
            Ok(chunk)
        };
        blocking(decode).await
    }

    /// The message stored in an object.
    pub(super) async fn message<T: prost::Message + Default>(
        &self,
        object: &v1::Object,
    ) -> Result<T, Status> {
        let _room = self.room(object.size).await?;
        let bytes = self.object(object).await?;
        T::decode(bytes).map_err(|error| damaged(&object.key, &error.to_string()))
    }

    /// The messages in all objects of an artifact, in order.
    pub(super) fn messages<'a, T: prost::Message + Default + 'a>(
        &'a self,
        objects: Vec<v1::Object>,
    ) -> impl Stream<Item = Result<T, Status>> + 'a {
        let message = move |object: v1::Object| async move { self.message(&object).await };
        stream::iter(objects).map(message).buffered(CONCURRENT_READS)
    }

    /// The positions of a data set's rows.
    pub(super) async fn rows(&self, object: &v1::Object) -> Result<Arc<Rows>, Status> {
        self.rows.get(&object.key, self.find_rows(object)).await
    }

    async fn find_rows(&self, object: &v1::Object) -> Result<Rows, Status> {
        #[derive(Deserialize)]
        struct Row {
            id: u64,
        }
        let mut rows = Rows::default();
        let mut end = 0;
        self.each_line(object, |line, start| {
            let row: Row =
                serde_json::from_slice(line).map_err(|error| damaged(&object.key, &error.to_string()))?;
            if rows.ids.len() >= MAX_ROWS {
                let problem = format!("the data set {} has more than {MAX_ROWS} rows", object.key);
                return Err(status(
                    Code::FailedPrecondition,
                    "OBJECT_TOO_LARGE",
                    problem,
                    ErrorDetails::new(),
                ));
            }
            rows.ids.push(row.id);
            rows.offsets.push(start);
            end = start + line.len() as u64;
            Ok(())
        })
        .await?;
        rows.offsets.push(end);
        Ok(rows)
    }

    /// Calls `visit` with each non-empty line of an object and its offset.
    pub(super) async fn each_line(
        &self,
        object: &v1::Object,
        mut visit: impl FnMut(&[u8], u64) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let (_, mut bytes) = self.store.stream(&object.key, 0).await.map_err(|error| from_store(&error))?;
        let (mut pending, mut start) = (BytesMut::new(), 0);
        while let Some(more) = bytes.try_next().await.map_err(|error| from_store(&error))? {
            let searched = pending.len();
            pending.extend_from_slice(&more);
            let mut from = 0;
            let mut search = searched;
            while let Some(at) = pending[search..].iter().position(|byte| *byte == b'\n') {
                let end = search + at;
                if end > from {
                    visit(&pending[from..end], start + from as u64)?;
                }
                (from, search) = (end + 1, end + 1);
            }
            start += from as u64;
            let _ = pending.split_to(from);
            if pending.len() > MAX_LINE_BYTES {
                return Err(damaged(&object.key, &format!("a line has more than {MAX_LINE_BYTES} bytes")));
            }
            // Lets other calls run in between.
            tokio::task::yield_now().await;
        }
        if !pending.is_empty() {
            visit(&pending, start)?;
        }
        Ok(())
    }

    /// One row of a data set.
    pub(super) async fn row<T: for<'a> Deserialize<'a>>(
        &self,
        object: &v1::Object,
        rows: &Rows,
        row: u64,
    ) -> Result<T, Status> {
        let place = usize::try_from(row).ok().and_then(|row| rows.place(row));
        let place = place.ok_or_else(|| damaged(&object.key, &format!("it has no row {row}")))?;
        let bytes = self.store.get_range(&object.key, place).await.map_err(|error| from_store(&error))?;
        serde_json::from_slice(bytes.trim_ascii()).map_err(|error| damaged(&object.key, &error.to_string()))
    }
}

impl Rows {
    fn place(&self, row: usize) -> Option<Range<u64>> {
        Some(*self.offsets.get(row)?..*self.offsets.get(row + 1)?)
    }
}

/// The existing objects for chunks of a segment of a round's completions.
async fn objects(
    driver: &UserHandle,
    catalog: &Catalog,
    column: &Column,
    segment: usize,
    chunks: Range<u32>,
) -> Result<Vec<ChunkObjects>, Status> {
    let Some(base) = column.bases.get(segment).copied().flatten() else { return Ok(Vec::new()) };
    let rows = &catalog.segments[segment];
    let count = rows.rows.div_ceil(catalog.chunk_prompts);
    let (first, last) = (u64::from(chunks.start).min(count), u64::from(chunks.end).min(count));
    let (phase, rewards, held_out) = (column.phase.clone(), column.rewards.clone(), rows.held_out);
    let look = move |state: &JobState| {
        let object = |phase: &str, chunk: u64| {
            let objects = &state.done(phase)?.artifact.objects;
            objects.get(usize::try_from(chunk).ok()?).cloned()
        };
        let of_chunk = |chunk: u64| {
            let rewards = match &rewards {
                Rewards::Scores(phase) => object(phase, u64::from(base) + chunk),
                // The phase that scores pairs processes only the held-out rows.
                Rewards::Pairs(phase) if held_out => object(phase, chunk),
                Rewards::Pairs(_) | Rewards::Inline | Rewards::None => None,
            };
            Some(ChunkObjects { samples: object(&phase, u64::from(base) + chunk)?, rewards })
        };
        (first..last).filter_map(of_chunk).collect::<Vec<_>>()
    };
    Ok(driver.inspect(&catalog.job, look).await.map_err(stopped)?.unwrap_or_default())
}

/// Runs CPU-intensive work on a separate thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Status::internal("reading an artifact panicked; please report this")))
}

/// Status for an object whose content cannot be read.
pub(super) fn damaged(object: &str, problem: &str) -> Status {
    let message = short(format!("the object {object} is damaged: {problem}"));
    status(Code::DataLoss, "OBJECT_CORRUPT", message, ErrorDetails::new())
}

pub(super) fn from_store(error: &StoreError) -> Status {
    let message = short(error.to_string());
    match error {
        StoreError::NotFound { key, .. } => {
            let details = ErrorDetails::with_resource_info("object", key, "", message.clone());
            status(Code::NotFound, "OBJECT_NOT_FOUND", message, details)
        }
        StoreError::Corrupt { .. } => status(Code::DataLoss, "OBJECT_CORRUPT", message, ErrorDetails::new()),
        error if error.is_transient() => store_unavailable(error),
        _ => Status::failed_precondition(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn stored(store: &Store, text: &str) -> v1::Object {
        store.put_object("jobs/j/data/x.jsonl", text.to_owned().into()).await.unwrap()
    }

    #[tokio::test]
    async fn rows_are_found_by_their_number() {
        let store = Store::in_memory();
        let text = "{\"id\":7,\"text\":\"ä\"}\n\n{\"id\":9,\"text\":\"b\"}\n{\"text\":\"c\",\"id\":11}";
        let object = stored(&store, text).await;
        let reader = Reader::new(store);
        let rows = reader.rows(&object).await.unwrap();
        assert_eq!(rows.ids, [7, 9, 11]);
        for (row, expected) in [(0, "ä"), (1, "b"), (2, "c")] {
            let found: serde_json::Value = reader.row(&object, &rows, row).await.unwrap();
            assert_eq!(found["text"], expected);
        }
        let beyond = reader.row::<serde_json::Value>(&object, &rows, 3).await.unwrap_err();
        assert!(beyond.code() == Code::DataLoss && beyond.message().contains("no row 3"), "{beyond}");
    }

    #[tokio::test]
    async fn what_is_damaged_missing_or_too_large_is_named() {
        let store = Store::in_memory();
        let object = stored(&store, "{\"id\":7}\n{\"id\":").await;
        let reader = Reader::new(store);
        let error = reader.rows(&object).await.unwrap_err();
        assert!(error.code() == Code::DataLoss && error.message().contains("jobs/j/data/x.jsonl"), "{error}");
        let gone = v1::Object { key: "jobs/j/data/y.jsonl".into(), ..object.clone() };
        assert_eq!(reader.object(&gone).await.unwrap_err().code(), Code::NotFound);
        let huge = v1::Object { size: MAX_OBJECT_BYTES + 1, ..object };
        let error = reader.object(&huge).await.unwrap_err();
        assert!(error.code() == Code::FailedPrecondition && error.message().contains("chunk_prompts"));
    }
}

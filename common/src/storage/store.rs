#![expect(clippy::disallowed_methods, reason = "retries end by the clock")]

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::sync::{Mutex, MutexGuard};
use ulid::Ulid;

use super::chunks::large_chunks;
use super::health::{Ask, Health};
use super::nap::{Nap, Napper, real_nap};
use super::urls::Urls;
use super::{StoreError, key};

/// A stream of an object's bytes.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// The outcome of a create-once write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// The key is taken. If a reply was lost, this writer itself may have taken it: read it back to find out.
    Exists,
}

/// One key of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    /// In bytes.
    pub size: u64,
}

/// Default retry timeout of transient failures. A backend's own client may take half a minute before it gives
/// up one try.
const BRIEFLY: Duration = Duration::from_secs(15);

/// A store of immutable objects under validated keys. Cheap to clone; clones share their state.
///
/// Transient failures are retried with jitter for 10 to 15 seconds.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    location: Arc<str>,
    /// Whether listings are in key order.
    in_order: bool,
    retry: ExponentialBuilder,
    /// Time after which no try starts, so that slow failures count like pauses. `None` if only pauses count.
    limit: Option<Duration>,
    /// Whether to retry on a full store too.
    waits_for_room: bool,
    health: Health,
    nap: Nap,
    /// Access to objects by URL, if the backend has that.
    pub(super) urls: Option<Arc<Urls>>,
    /// Locks that serialize the last step of writing a hashed object, by key.
    finishing: Arc<[Mutex<()>; 64]>,
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Store").field(&self.location).finish()
    }
}

impl Store {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, prefix: Path, location: String) -> Self {
        let retry = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(4))
            .with_max_times(8)
            .with_jitter();
        let finishing = Arc::new(std::array::from_fn(|_| Mutex::new(())));
        Self {
            inner,
            prefix,
            location: location.into(),
            in_order: true,
            retry,
            limit: Some(BRIEFLY),
            waits_for_room: false,
            health: Health::default(),
            nap: real_nap,
            urls: None,
            finishing,
        }
    }

    /// A store whose listings are in no particular order.
    pub(super) fn unordered(self) -> Self {
        Self { in_order: false, ..self }
    }

    pub(super) fn lists_in_order(&self) -> bool {
        self.in_order
    }

    /// A store over any backend. `location` names it in messages, and `nap` sleeps before a retry. Only
    /// pauses bound the tries, since the caller's `nap` need not follow the clock.
    pub fn over(backend: Arc<dyn ObjectStore>, location: &str, nap: Nap) -> Self {
        Self { nap, limit: None, ..Self::new(backend, Path::default(), location.to_owned()) }
    }

    /// A store in this process's memory.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(object_store::memory::InMemory::new()), Path::default(), "memory:///".to_owned())
    }

    /// The location of the store, without secrets.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The same store with another retry timeout: while it is unavailable or full, requests are retried with
    /// jitter until `limit` is over.
    pub fn patient(&self, limit: Duration) -> Self {
        let retry = self.retry.without_max_times().with_total_delay(Some(limit));
        Self { retry, limit: self.limit.map(|_| limit), waits_for_room: true, ..self.clone() }
    }

    /// A description of the fault if the store does not answer, is full or refuses requests; `None` if it
    /// works.
    pub fn trouble(&self) -> Option<String> {
        self.health.trouble(Instant::now())
    }

    /// Checks that a key cannot be created twice: the safety of the log depends on it.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let key = format!("meta/probe/{}", Ulid::new());
        let first = Bytes::from_static(b"first");
        self.create(&key, first.clone()).await?;
        let second = self.create(&key, Bytes::from_static(b"second")).await?;
        let kept = self.get(&key).await?;
        if let Err(error) = self.delete(&key).await {
            tracing::warn!(%key, %error, "cannot delete the probe object");
        }
        if second == Put::Exists && kept == first {
            return Ok(());
        }
        Err(StoreError::NotExclusive { location: self.location.to_string() })
    }

    /// Writes a key that must not exist yet; the bytes are durable when this returns.
    pub async fn create(&self, key: &str, bytes: impl Into<PutPayload>) -> Result<Put, StoreError> {
        let payload: PutPayload = bytes.into();
        self.with_retries("create", Ask::write(key, payload.content_length() as u64), |path| {
            let payload = payload.clone();
            async move {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match self.inner.put_opts(&path, payload, options).await {
                    Ok(_) => Ok(Put::Created),
                    // Some stores report a failed `If-None-Match: *` as a failed precondition.
                    Err(
                        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
                    ) => Ok(Put::Exists),
                    Err(error) => Err(error),
                }
            }
        })
        .await
    }

    /// Writes a key unconditionally. Only for bytes that are the same for every writer, and for hints.
    pub(super) async fn overwrite(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.with_retries("put", Ask::write(key, bytes.len() as u64), |path| {
            let bytes = bytes.clone();
            async move { self.inner.put(&path, PutPayload::from_bytes(bytes)).await.map(drop) }
        })
        .await
    }

    /// Reads an object that fits in memory.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.with_retries(
            "get",
            Ask::read(key),
            |path| async move { self.inner.get(&path).await?.bytes().await },
        )
        .await
    }

    /// Bytes `[range.start, range.end)` of an object, fewer if it is shorter.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.with_retries("get", Ask::read(key), |path| {
            let range = range.clone();
            async move { self.inner.get_range(&path, range).await }
        })
        .await
    }

    /// An object's size, and its bytes from `offset` on: none if `offset` is at or beyond the end.
    pub async fn stream(&self, key: &str, offset: u64) -> Result<(u64, ByteStream), StoreError> {
        let size = self.size(key).await?;
        if offset >= size {
            return Ok((size, futures::stream::empty().boxed()));
        }
        let result = self
            .with_retries("get", Ask::read(key), |path| async move {
                let range = Some(GetRange::Offset(offset));
                self.inner.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await
            })
            .await?;
        let (location, key) = (Arc::clone(&self.location), key.to_owned());
        let stream = large_chunks(result)
            .map_err(move |error| StoreError::from_object_store(&location, "get", &key, &error))
            .boxed();
        Ok((size, stream))
    }

    /// An object's size in bytes.
    pub async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let meta = self
            .with_retries("head", Ask::read(key), |path| async move { self.inner.head(&path).await })
            .await?;
        Ok(meta.size)
    }

    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        match self.size(key).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All keys below `prefix` (whole parts: `meta/log` lists `meta/log/…`), sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let metas = self
            .with_retries("list", Ask::read(prefix), |path| async move {
                self.inner.list(Some(&path)).try_collect::<Vec<_>>().await
            })
            .await?;
        Ok(self.listed(&metas))
    }

    /// All keys below `prefix` that sort after `key`, sorted; with an offset listing if the store supports
    /// it.
    pub async fn list_after(&self, prefix: &str, key: &str) -> Result<Vec<Listed>, StoreError> {
        let offset = self.path(key)?;
        let metas = self
            .with_retries("list", Ask::read(prefix), |path| {
                let offset = offset.clone();
                async move { self.inner.list_with_offset(Some(&path), &offset).try_collect::<Vec<_>>().await }
            })
            .await?;
        Ok(self.listed(&metas))
    }

    fn listed(&self, metas: &[ObjectMeta]) -> Vec<Listed> {
        let mut listed: Vec<Listed> = metas
            .iter()
            .filter_map(|meta| Some(Listed { key: self.key_of(&meta.location)?, size: meta.size }))
            .collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        listed
    }

    /// Deletes a key; a missing one is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self
            .with_retries("delete", Ask::read(key), |path| async move { self.inner.delete(&path).await })
            .await
        {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn nap(&self, duration: Duration) {
        (self.nap)(duration).await;
    }

    pub(super) fn backend(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    pub(super) fn prefix(&self) -> &Path {
        &self.prefix
    }

    pub(super) fn failure(
        &self,
        operation: &'static str,
        key: &str,
        error: &object_store::Error,
    ) -> StoreError {
        StoreError::from_object_store(&self.location, operation, key, error)
    }

    /// Records the result of sending a part of `bytes` directly to the backend, or of completing such an
    /// upload.
    pub(super) fn sent_part<T>(
        &self,
        key: &str,
        bytes: u64,
        result: object_store::Result<T>,
    ) -> Result<T, StoreError> {
        let result = result.map_err(|error| self.failure("put", key, &error));
        self.health.note(Ask::write(key, bytes), &result, Instant::now());
        count("put", &result);
        result
    }

    /// Locks out other writers in this process that would finish an object under the same key.
    pub(super) async fn lock(&self, key: &str) -> MutexGuard<'_, ()> {
        let slot = usize::from(blake3::hash(key.as_bytes()).as_bytes()[0]) % self.finishing.len();
        self.finishing[slot].lock().await
    }

    pub(super) fn path(&self, key: &str) -> Result<Path, StoreError> {
        key::validate(key)?;
        let whole = if self.prefix.is_root() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(whole)
            .map_err(|_| StoreError::BadKey { key: key.to_owned(), reason: "the store cannot hold it" })
    }

    pub(super) fn key_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.prefix)?.collect();
        Some(parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/"))
    }

    pub(super) async fn with_retries<T, F, Fut>(
        &self,
        operation: &'static str,
        ask: Ask<'_>,
        request: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Path) -> Fut,
        Fut: Future<Output = object_store::Result<T>>,
    {
        let path = self.path(ask.key)?;
        let began = Instant::now();
        let may_pass = |error: &StoreError| {
            self.limit.is_none_or(|limit| began.elapsed() < limit)
                && (error.is_brief() || (self.waits_for_room && error.is_transient()))
        };
        let once = || {
            let reply = request(path.clone());
            async move {
                let sent = self.health.send(ask, Instant::now());
                let result = reply.await.map_err(|error| self.failure(operation, ask.key, &error));
                sent.answered(&result, Instant::now());
                count(operation, &result);
                result
            }
        };
        once.retry(self.retry)
            .sleep(Napper(self.nap))
            .when(may_pass)
            .notify(|error, delay| tracing::warn!(%error, ?delay, "retrying a request to the store"))
            .await
    }
}

fn count<T>(operation: &'static str, result: &Result<T, StoreError>) {
    let code = result.as_ref().err().map_or("ok", StoreError::code);
    metrics::counter!("foil_objectstore_requests_total", "op" => operation, "code" => code).increment(1);
}

#[cfg(test)]
impl Store {
    /// A store over any backend that retries after a millisecond.
    pub(crate) fn for_test(inner: Arc<dyn ObjectStore>, tries: usize) -> Self {
        let quick = ExponentialBuilder::default()
            .with_min_delay(Duration::from_micros(100))
            .with_max_delay(Duration::from_millis(1))
            .with_max_times(tries);
        Self { retry: quick, ..Self::new(inner, Path::default(), "test".to_owned()) }
    }

    /// Sets another retry timeout.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

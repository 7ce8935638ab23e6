//! A store that fails on purpose: a seeded fraction of requests is refused, or performed with the reply lost.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, future};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Rates of faults, in percent of requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// A put is refused before it has any effect.
    pub(crate) refuse_put: u64,
    /// A put is performed, and its reply is lost.
    pub(crate) lose_reply: u64,
    /// A get or a head is refused.
    pub(crate) refuse_get: u64,
    /// Create-once is treated as an ordinary put, as some stores do.
    pub(crate) ignore_create: bool,
    /// Latency of a put.
    pub(crate) delay_put: Duration,
}

/// A wrapper of a shared in-memory store; each draws its faults from its own seed.
#[derive(Debug)]
pub(crate) struct FaultStore {
    inner: Arc<InMemory>,
    faults: Mutex<Faults>,
    /// Keys that listings lack, as if they were created while those were read, and the number of listings.
    hidden: Mutex<Vec<(String, u32)>>,
    seed: u64,
    drawn: AtomicU64,
    /// Number of faults injected so far. A test in which none occur proves nothing.
    pub(crate) struck: AtomicU64,
}

impl FaultStore {
    pub(crate) fn new(inner: Arc<InMemory>, faults: Faults, seed: u64) -> Self {
        Self {
            inner,
            faults: Mutex::new(faults),
            hidden: Mutex::default(),
            seed,
            drawn: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        }
    }

    /// Leaves a key out of the next listings of its prefix.
    pub(crate) fn hide(&self, key: String, listings: u32) {
        self.hidden.lock().unwrap().push((key, listings));
    }

    /// Sets the faults from now on.
    pub(crate) fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap()
    }

    fn strike(&self, percent: u64) -> bool {
        let mut draw = [0; 16];
        draw[..8].copy_from_slice(&self.seed.to_le_bytes());
        draw[8..].copy_from_slice(&self.drawn.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let [first, second, ..] = *blake3::hash(&draw).as_bytes();
        let hit = u64::from(u16::from_le_bytes([first, second])) % 100 < percent;
        if hit {
            self.struck.fetch_add(1, Ordering::Relaxed);
        }
        hit
    }

    fn failure<T>(what: &'static str) -> Result<T> {
        Err(Error::Generic { store: "fault", source: what.into() })
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("fault store")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.faults().delay_put {
            Duration::ZERO => tokio::task::yield_now().await,
            delay => tokio::time::sleep(delay).await,
        }
        if self.strike(self.faults().refuse_put) {
            return Self::failure("503 before the write");
        }
        let mode = if self.faults().ignore_create { PutMode::Overwrite } else { options.mode.clone() };
        let result = self.inner.put_opts(location, payload, PutOptions { mode, ..options }).await;
        tokio::task::yield_now().await;
        if self.strike(self.faults().lose_reply) {
            Self::failure("connection reset after the write")
        } else {
            result
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        tokio::task::yield_now().await;
        if self.strike(self.faults().refuse_get) {
            return Self::failure("503 on get");
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut hidden = Vec::new();
        self.hidden.lock().unwrap().retain_mut(|(key, listings)| {
            if prefix.is_none_or(|prefix| key.starts_with(prefix.as_ref())) {
                hidden.push(key.clone());
                *listings -= 1;
            }
            *listings > 0
        });
        let is_seen = move |found: &Result<ObjectMeta>| {
            let is_hidden = |meta: &ObjectMeta| hidden.iter().any(|key| key == meta.location.as_ref());
            future::ready(!found.as_ref().is_ok_and(is_hidden))
        };
        self.inner.list(prefix).filter(is_seen).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

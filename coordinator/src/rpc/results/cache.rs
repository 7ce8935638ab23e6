//! A bounded cache of data read from the store. Keys name immutable artifacts, so no value becomes stale.

use std::sync::Arc;

use quick_cache::sync::{Cache as Inner, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tonic::Status;

/// The estimated memory of a value, in bytes.
pub(super) trait Size {
    fn bytes(&self) -> usize;
}

#[derive(Debug, Clone)]
struct BySize;

impl<V: Size> Weighter<String, Arc<V>> for BySize {
    fn weight(&self, key: &String, value: &Arc<V>) -> u64 {
        // Includes the key and the cache's own bookkeeping.
        (key.len() + value.bytes() + 128) as u64
    }
}

/// Values by key; the least recently used are evicted first. Cheap to clone; clones share their values.
#[derive(Debug)]
pub(super) struct Cache<V> {
    inner: Arc<Inner<String, Arc<V>, BySize>>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<V: Size> Cache<V> {
    /// A cache of at most this many bytes; a larger value is not cached.
    pub(super) fn new(bytes: usize) -> Self {
        let mut options = OptionsBuilder::new();
        // A single shard, because each has its own share of the capacity, and single values can be large.
        options.shards(1).estimated_items_capacity(1024).weight_capacity(bytes as u64);
        let inner = match options.build() {
            Ok(options) => Inner::with_options(
                options,
                BySize,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            Err(_) => Inner::with(
                1024,
                bytes as u64,
                BySize,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The value of a key, which `read` loads if it is not cached. Of several concurrent callers, one reads.
    pub(super) async fn get(
        &self,
        key: &str,
        read: impl Future<Output = Result<V, Status>>,
    ) -> Result<Arc<V>, Status> {
        self.inner.get_or_insert_async(key, async { read.await.map(Arc::new) }).await
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.inner.weight()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    impl Size for Vec<u8> {
        fn bytes(&self) -> usize {
            self.len()
        }
    }

    #[tokio::test]
    async fn one_caller_reads_for_all_and_memory_is_bounded() {
        let cache = Cache::<Vec<u8>>::new(1 << 20);
        let reads = AtomicUsize::new(0);
        let read = || async {
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(vec![7; 1000])
        };
        let (first, second) = tokio::join!(cache.get("a", read()), cache.get("a", read()));
        assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        for key in 0..10_000 {
            cache.get(&format!("{key}"), async { Ok(vec![0; 1000]) }).await.unwrap();
            assert!(cache.bytes() <= 1 << 20);
        }
        assert!(cache.bytes() > 1 << 19, "{} bytes are cached", cache.bytes());
        let huge = cache.get("huge", async { Ok(vec![0; 4 << 20]) }).await.unwrap();
        assert!(huge.len() == 4 << 20 && cache.bytes() <= 1 << 20, "it is read but not cached");
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let cache = Cache::<Vec<u8>>::new(1 << 20);
        let failed = cache.get("a", async { Err(Status::unavailable("later")) }).await;
        assert!(failed.is_err());
        assert_eq!(*cache.get("a", async { Ok(vec![1]) }).await.unwrap(), [1]);
    }
}

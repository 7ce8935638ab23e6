//! Listings of every kind of store: their order, their faults, and their memory use.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

use super::super::listing::{Listing, PAGE};
use super::*;

/// A store that counts what it lists and writes.
#[derive(Debug, Clone)]
struct Counting {
    inner: Arc<InMemory>,
    listed: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    /// Number of keys after which a listing fails, once; 0 for never.
    breaks_after: Arc<AtomicU64>,
    is_reversed: bool,
}

impl Counting {
    fn new(inner: Arc<InMemory>) -> Self {
        let (listed, written, breaks_after) = Default::default();
        Self { inner, listed, written, breaks_after, is_reversed: false }
    }

    fn store(&self) -> Store {
        Store::for_test(Arc::new(self.clone()), 3)
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("counting store")
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = self.inner.list(prefix);
        if self.is_reversed {
            let all = stream::once(listing.collect::<Vec<_>>());
            return all.flat_map(|all| stream::iter(all.into_iter().rev())).boxed();
        }
        let Self { listed, breaks_after, .. } = self.clone();
        let counted = listing.enumerate().map(move |(index, meta)| {
            if index > 0 && index as u64 == breaks_after.load(Ordering::Relaxed) {
                breaks_after.store(0, Ordering::Relaxed);
                return Err(Error::Generic { store: "counting", source: "503 on list".into() });
            }
            listed.fetch_add(1, Ordering::Relaxed);
            meta
        });
        counted.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn keys(listing: &mut Listing) -> Vec<String> {
    let mut keys = Vec::new();
    while let Some(found) = listing.next().await.unwrap() {
        keys.push(found.key);
    }
    keys
}

/// Keys in which directories, files and keys that sort between them alternate.
fn names() -> BTreeSet<String> {
    let mut random = ChaCha12Rng::seed_from_u64(rand::random());
    let mut part = || ["a", "a-1", "a.b", "ab", "a.b3x", "b", "0"][random.next_u64() as usize % 7];
    (0..60).map(|index| format!("jobs/{}/{}/{}-{index}", part(), part(), part())).collect()
}

#[tokio::test]
async fn keys_come_in_order_from_object_stores_and_directories() {
    let names = names();
    let directory = tempfile::tempdir().unwrap();
    let stores = [Store::in_memory(), Store::open(directory.path().to_str().unwrap()).unwrap()];
    for store in &stores {
        store.create("jobs-of-others", Bytes::from("x")).await.unwrap();
        for name in &names {
            store.create(name, Bytes::from("x")).await.unwrap();
        }
        let found = keys(&mut Listing::new(store, "jobs")).await;
        assert_eq!(found, names.iter().cloned().collect::<Vec<_>>(), "{store:?}");
        assert_eq!(keys(&mut Listing::new(store, "nothing")).await, [] as [&str; 0], "{store:?}");
    }
    assert_eq!(stores.map(|store| store.lists_in_order()), [true, false]);
}

/// Puts objects into a store quickly, bypassing its checks.
async fn fill(memory: &InMemory, count: usize) {
    for index in 0..count {
        let (key, bytes) = (format!("jobs/j/{index:06}"), Bytes::from(format!("content {index}")));
        let Digest { size, blake3 } = Digest::of(&bytes);
        let sidecar = format!("{{\"size\":{size},\"blake3\":\"{blake3}\"}}\n");
        memory.put_opts(&Path::from(key.clone()), bytes.into(), PutOptions::default()).await.unwrap();
        let place = Path::from(format!("{key}{}", super::super::super::object::SIDECAR));
        memory.put_opts(&place, sidecar.into(), PutOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_copy_has_few_keys_in_memory_however_large_the_store_is() {
    let memory = Arc::new(InMemory::new());
    Service::start(Store::for_test(Arc::clone(&memory) as _, 0), 0).await;
    fill(&memory, 6 * PAGE).await;
    let (from, to) = (Counting::new(memory), Counting::new(Arc::new(InMemory::new())));
    let most = AtomicU64::new(0);
    let progress = |_| {
        let [listed, written] = [&from.listed, &to.written].map(|count| count.load(Ordering::Relaxed));
        most.fetch_max(listed.saturating_sub(written), Ordering::Relaxed);
    };
    let copied = copy(&from.store(), &to.store(), &PREFIXES, progress).await.unwrap();
    assert_eq!((copied.objects, copied.present), (6 * PAGE as u64, 0));
    let most = most.into_inner();
    assert!(most < 2 * PAGE as u64, "{most} keys were listed but not yet copied");
}

#[tokio::test]
async fn a_listing_that_breaks_off_goes_on_where_it_was() {
    let memory = Arc::new(InMemory::new());
    fill(&memory, PAGE).await;
    for breaks_after in [1, PAGE as u64 - 1, PAGE as u64, PAGE as u64 + 1, 2 * PAGE as u64 - 1] {
        let store = Counting::new(Arc::clone(&memory));
        store.breaks_after.store(breaks_after, Ordering::Relaxed);
        let found = keys(&mut Listing::new(&store.store(), "jobs")).await;
        assert_eq!(
            store.breaks_after.load(Ordering::Relaxed),
            0,
            "the listing should have failed after {breaks_after}"
        );
        assert_eq!(found.len(), 2 * PAGE, "interrupted after {breaks_after}");
    }
}

#[tokio::test]
async fn a_store_that_lists_in_no_order_is_refused() {
    let memory = Arc::new(InMemory::new());
    Service::start(Store::for_test(Arc::clone(&memory) as _, 0), 0).await;
    fill(&memory, 3).await;
    let reversed = Counting { is_reversed: true, ..Counting::new(memory) };
    let to = Store::in_memory();
    let error = copy(&reversed.store(), &to, &PREFIXES, |_| {}).await.unwrap_err();
    assert!(matches!(&error, CopyError::Disorder { key, .. } if key == "jobs/j/000002"), "{error}");
    assert!(to.list("meta/log").await.unwrap().is_empty());
    let walked = copy(&reversed.store().unordered(), &to, &PREFIXES, |_| {}).await.unwrap();
    assert_eq!(walked.objects, 3);
}

#[tokio::test]
async fn a_directory_is_copied_and_a_copy_of_it_goes_on() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [from, to] = [&one, &other].map(|place| Store::open(place.path().to_str().unwrap()).unwrap());
    let mut service = Service::start(from.clone(), rand::random()).await;
    for _ in 0..30 {
        service.act().await;
    }
    // The target of an interrupted copy: some of the objects, and one that the source has deleted since.
    let there = service.named.len() / 2;
    for name in &service.named[..there] {
        to.put_object(&key(*name), content(*name)).await.unwrap();
    }
    to.put_object("jobs/j/gone", "gone".into()).await.unwrap();
    let copied = copy(&from, &to, &PREFIXES, |_| {}).await.unwrap();
    let bytes: usize = service.named.iter().map(|name| content(*name).len()).sum();
    let expected = (service.named.len() as u64, bytes as u64, there as u64);
    assert_eq!((copied.objects, copied.bytes, copied.present), expected);
}

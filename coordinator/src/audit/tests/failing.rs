//! The audit log with a store that accepts no writes.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use metrics_exporter_prometheus::PrometheusBuilder;
use object_store::memory::InMemory;
use object_store::path::Path as Location;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::*;

/// A store in memory that refuses writes while it fails.
#[derive(Debug)]
struct FailingStore {
    inner: InMemory,
    fails: AtomicBool,
}

impl fmt::Display for FailingStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("failing store")
    }
}

#[async_trait]
impl ObjectStore for FailingStore {
    async fn put_opts(&self, at: &Location, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(Error::Generic { store: "failing", source: "503".into() }),
            false => self.inner.put_opts(at, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Location,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Location, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Location>>,
    ) -> BoxStream<'static, Result<Location>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn calls_go_on_while_the_store_takes_nothing_and_what_is_lost_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    // All tasks of this runtime are on this thread.
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let lost = || {
        let text = figures.render();
        let line = text.lines().find_map(|line| line.strip_prefix("foil_audit_records_lost_total "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let backend = Arc::new(FailingStore { inner: InMemory::new(), fails: AtomicBool::new(true) });
    let store = Store::over(backend.clone(), "failing", |_| std::future::ready(()).boxed());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    for (fails, expected) in [(true, 3), (false, 3)] {
        backend.fails.store(fails, Ordering::SeqCst);
        let (log, task) = AuditLog::start(Some(&AuditFile::Path(path.clone())), store.clone()).unwrap();
        for method in ["a", "b", "c"] {
            // Returns immediately, because there is nothing to wait for.
            log.record(record(method), SystemTime::UNIX_EPOCH);
        }
        drop(log);
        task.await.unwrap();
        assert_eq!(lost(), expected);
    }
    assert_eq!(stored(&store).await, ["a", "b", "c"], "records after the failure");
    let file = methods(&fs::read_to_string(&path).unwrap());
    assert_eq!(file, ["a", "b", "c", "a", "b", "c"], "the file has all records");
}

#[tokio::test]
async fn a_backlog_is_bounded_and_what_finds_no_room_is_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    let _recorder = metrics::set_default_local_recorder(&recorder);
    let (log, task) = AuditLog::start(None, Store::in_memory()).unwrap();
    // The writer task gets no turn in between.
    for _ in 0..BACKLOG + 7 {
        log.record(record("m"), SystemTime::UNIX_EPOCH);
    }
    assert!(figures.render().contains("foil_audit_records_lost_total 7"), "{}", figures.render());
    drop(log);
    task.await.unwrap();
}

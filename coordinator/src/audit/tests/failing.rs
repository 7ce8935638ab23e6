//! The audit log with a store that accepts no writes.

use std::sync::atomic::Ordering;

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::failing_store::FailingStore;

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
    let backend = Arc::new(FailingStore::default());
    let store = backend.store();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    for (fails, expected) in [(true, 3), (false, 3)] {
        backend.fails_writes.store(fails, Ordering::SeqCst);
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

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::fault::{FaultStore, Faults};
use super::object::Digest;
use super::*;

const KEY: &str = "jobs/j/phases/p/file";

fn local() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().to_str().unwrap()).unwrap();
    (directory, store)
}

#[tokio::test]
async fn a_store_that_creates_twice_is_refused() {
    let faults = Faults { ignore_create: true, ..Faults::default() };
    let store = Store::for_test(Arc::new(FaultStore::new(Arc::new(InMemory::new()), faults, 0)), 0);
    assert!(matches!(store.probe().await, Err(StoreError::NotExclusive { .. })));
}

#[tokio::test]
async fn a_patient_store_outlasts_an_outage_and_others_give_up() {
    let broken = Arc::new(FaultStore::new(Arc::new(InMemory::new()), Faults::default(), 0));
    let store = Store::for_test(Arc::clone(&broken) as Arc<dyn ObjectStore>, 3);
    let outage = Faults { refuse_put: 100, ..Faults::default() };
    broken.set(outage);
    assert!(matches!(store.create("a", "one").await, Err(StoreError::Unavailable { .. })));

    let patient = store.patient(Duration::from_secs(60));
    let waiting = tokio::spawn(async move { patient.create("a", "one").await });
    while broken.struck.load(Ordering::Relaxed) < 50 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    broken.set(Faults::default());
    assert_eq!(waiting.await.unwrap().unwrap(), Put::Created);

    broken.set(outage);
    let bounded = store.patient(Duration::from_millis(20));
    assert!(matches!(bounded.create("b", "one").await, Err(StoreError::Unavailable { .. })));
}

/// Two tries of 30 ms exceed 50 ms, into which hundreds of pauses would fit.
#[tokio::test]
async fn slow_failures_end_by_the_clock() {
    let slow = Faults { refuse_put: 100, delay_put: Duration::from_millis(30), ..Faults::default() };
    let limit = Duration::from_millis(50);
    let waits: [fn(Store, Duration) -> Store; 2] = [Store::within, |store, limit| store.patient(limit)];
    for wait in waits {
        let broken = Arc::new(FaultStore::new(Arc::new(InMemory::new()), slow, 0));
        let store = wait(Store::for_test(Arc::clone(&broken) as Arc<dyn ObjectStore>, 1000), limit);
        assert!(matches!(store.create("a", "one").await, Err(StoreError::Unavailable { .. })));
        let tries = broken.struck.load(Ordering::Relaxed);
        assert!((1..=2).contains(&tries), "{tries} tries");
    }
}

#[tokio::test]
async fn objects_of_any_size_are_identified_by_their_digest() {
    let (_directory, store) = local();
    for size in [0, 1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 20 << 20] {
        let bytes = Bytes::from(vec![7; size]);
        let key = format!("{KEY}-{size}");
        let object = store.put_object(&key, bytes.clone()).await.unwrap();
        assert_eq!(store.stat_object(&key).await.unwrap(), object);
        assert_eq!(Digest::from(&object), Digest::of(&bytes));
        assert_eq!(store.read_object(&object).await.unwrap(), bytes);
    }
    assert!(matches!(store.put_object("a.b3", Bytes::new()).await, Err(StoreError::BadKey { .. })));
}

#[tokio::test]
async fn an_object_never_changes() {
    let store = Store::in_memory();
    store.put_object(KEY, "one".into()).await.unwrap();
    store.put_object(KEY, "one".into()).await.unwrap();
    assert!(matches!(store.put_object(KEY, "two".into()).await, Err(StoreError::Conflict { .. })));
    assert_eq!(store.get(KEY).await.unwrap(), "one");
}

#[tokio::test]
async fn an_unfinished_object_does_not_exist() {
    let (directory, store) = local();
    let announced = Digest::of(&[1; 9 << 20]);
    let mut writer = store.write_object(KEY, announced.clone()).await.unwrap();
    writer.write(vec![1; 4 << 20].into()).await.unwrap();
    assert!(matches!(store.stat_object(KEY).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(writer.finish().await, Err(StoreError::Mismatch { .. })));
    assert_eq!(files(directory.path()), 0);

    // Killed after the bytes and before the sidecar: it was never acknowledged, so the next writer's content
    // prevails.
    store.overwrite(KEY, "left behind".into()).await.unwrap();
    assert!(matches!(store.stat_object(KEY).await, Err(StoreError::NotFound { .. })));
    let object = store.put_object(KEY, "whole".into()).await.unwrap();
    assert_eq!(store.read_object(&object).await.unwrap(), "whole");
}

fn files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever the store does, an object is absent or complete, and acknowledged content stays.
    #[test]
    fn objects_survive_a_failing_store(seed in any::<u64>(), contents in prop::collection::vec(0..3u8, 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let inner = Arc::new(InMemory::new());
            let faults = Faults { refuse_put: 30, lose_reply: 30, refuse_get: 20, ..Faults::default() };
            let faulty = Store::for_test(Arc::new(FaultStore::new(inner.clone(), faults, seed)), 1);
            let sound = Store::for_test(inner, 0);
            let mut written: Option<Bytes> = None;
            for content in contents {
                let bytes = Bytes::from(vec![content; 10]);
                if faulty.put_object(KEY, bytes.clone()).await.is_ok() {
                    prop_assert!(written.is_none() || written == Some(bytes.clone()));
                    written = Some(bytes);
                }
                match sound.stat_object(KEY).await {
                    Ok(object) => {
                        let whole = sound.read_object(&object).await.unwrap();
                        prop_assert!(written.is_none() || written == Some(whole.clone()));
                        written = Some(whole);
                    }
                    Err(StoreError::NotFound { .. }) => prop_assert!(written.is_none()),
                    Err(error) => panic!("{error}"),
                }
            }
            Ok(())
        })?;
    }
}

const TRACED: &str = "FOIL_TEST_TRACED_STORE";

/// Run under strace by the next test: writes, then acknowledges by another file.
#[tokio::test]
#[ignore = "run by writes_are_synced_before_they_are_acknowledged"]
async fn traced_writes() {
    let directory = std::env::var(TRACED).unwrap();
    let store = Store::open(&format!("{directory}/store")).unwrap();
    let said = |what: &str| std::fs::write(format!("{directory}/said-{what}"), "done").unwrap();
    store.create("meta/log/0", "record").await.unwrap();
    said("record");
    store.put_object("data/small", "small".into()).await.unwrap();
    said("small");
    store.put_object("data/large", vec![1; 9 << 20].into()).await.unwrap();
    said("large");
}

#[test]
fn writes_are_synced_before_they_are_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=openat,fsync,link,linkat,rename,renameat,renameat2", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "storage::tests::traced_writes", "--ignored", "--test-threads=1"])
        .env(TRACED, directory.path())
        .output();
    let Ok(output) = traced else {
        println!("skipped: no strace here");
        return;
    };
    let trace = std::fs::read_to_string(&log).unwrap_or_default();
    if !output.status.success() && !trace.contains("openat") {
        println!("skipped: strace may not trace here");
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines: Vec<&str> = trace.lines().collect();
    for (name, said) in
        [("meta/log/0", "said-record"), ("data/small", "said-small"), ("data/large", "said-large")]
    {
        let acknowledged = find(&lines, 0, &["openat", said]);
        let path = format!("/store/{name}");
        let file = find(&lines, 0, &["fsync(", &format!("{path}#")]);
        let placed = lines
            .iter()
            .position(|line| {
                (line.contains("link") || line.contains("rename")) && line.contains(&format!("{path}\""))
            })
            .unwrap_or_else(|| panic!("{name} was never placed in\n{trace}"));
        let parent = path.rsplit_once('/').unwrap().0;
        let entry = find(&lines, placed, &["fsync(", &format!("{parent}>")]);
        assert!(
            file < placed && placed < entry && entry < acknowledged,
            "{name}: {file} {placed} {entry} {acknowledged}"
        );
    }
}

/// The first line from `start` on that holds all of the texts.
fn find(lines: &[&str], start: usize, texts: &[&str]) -> usize {
    let found = lines[start..].iter().position(|line| texts.iter().all(|text| line.contains(text)));
    start + found.unwrap_or_else(|| panic!("nothing with {texts:?} in\n{}", lines[start..].join("\n")))
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foil_common::storage::Store;
use tokio_util::sync::CancellationToken;

use super::super::InUse;
use super::*;
use crate::clock::Clock;
use crate::driver::Settings;
use crate::job::Submitted;
use crate::job::fixture::{JOB, object, submitted};
use crate::leadership::{Election, LeadershipHandle};

const HOUR: Duration = Duration::from_secs(3600);

/// A collector in a process that leads.
async fn collector(store: &Store) -> (Collector, Handle) {
    let (handle, clock) = (LeadershipHandle::default(), Clock::start());
    let election = Election {
        store: store.clone(),
        address: String::new(),
        take_over: true,
        settings: Settings::default(),
        clock,
        handle: handle.clone(),
    };
    tokio::spawn(async move { election.run(CancellationToken::new()).await });
    let driver = loop {
        match handle.driver() {
            Ok(driver) => break driver,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    (Collector::new(store.clone(), handle, InUse::default(), clock), driver)
}

async fn put(store: &Store, keys: &[&str]) {
    for key in keys {
        store.put_object(key, "x".into()).await.unwrap();
    }
    // Makes the objects older than the current time.
    tokio::time::sleep(Duration::from_millis(3)).await;
}

async fn collected(collector: &Collector, grace: Duration, dry_run: bool) -> Vec<(String, Reason)> {
    let (sender, mut receiver) = mpsc::channel(100);
    let summary = collector.collect(grace, dry_run, Some(sender)).await.unwrap();
    let mut found = Vec::new();
    while let Some(batch) = receiver.recv().await {
        found.extend(batch.into_iter().map(|garbage| (garbage.key, garbage.reason)));
    }
    assert_eq!(summary.objects, found.len() as u64);
    found
}

async fn exist(store: &Store, keys: &[&str]) -> Vec<bool> {
    let mut found = Vec::new();
    for key in keys {
        found.push(store.stat_object(key).await.is_ok() && store.exists(key).await.unwrap());
    }
    found
}

/// A job whose start model has this file.
fn job_with(request: &str, file: &str) -> Submitted {
    let mut submitted = submitted(&[]);
    submitted.request_id = request.to_owned();
    submitted.policy.objects = vec![object(file)];
    submitted
}

#[tokio::test]
async fn what_no_job_names_is_collected_when_it_is_old_and_nobody_uses_it() {
    let store = Store::in_memory();
    let (collector, driver) = collector(&store).await;
    driver.submit(JOB.into(), job_with("r1", "inputs/named")).await.unwrap();
    let unnamed = ["inputs/unnamed", "jobs/j9/data/sft.jsonl"];
    let named = ["inputs/named", "jobs/j1/data/sft.jsonl", "jobs/j1/phases/x/a0/unfinished"];
    put(&store, &[unnamed, [named[0], named[1]]].concat()).await;
    put(&store, &[named[2]]).await;

    assert!(collected(&collector, HOUR, false).await.is_empty(), "they are young");
    let expected =
        [(unnamed[0].to_owned(), Reason::UnnamedInput), (unnamed[1].to_owned(), Reason::AbandonedSubmission)];
    assert_eq!(collected(&collector, Duration::ZERO, true).await, expected);
    assert_eq!(exist(&store, &unnamed).await, [true; 2], "a dry run deletes nothing");

    let upload = collector.in_use.hold([unnamed[0].to_owned()]).unwrap();
    let submission = collector.in_use.hold(["jobs/j9/".to_owned()]).unwrap();
    assert!(collected(&collector, Duration::ZERO, false).await.is_empty(), "they are in use");
    drop(upload);
    assert_eq!(collected(&collector, Duration::ZERO, false).await, expected[..1]);
    drop(submission);
    assert_eq!(collected(&collector, Duration::ZERO, false).await, expected[1..]);
    assert_eq!(exist(&store, &unnamed).await, [false; 2]);
    assert_eq!(exist(&store, &named).await, [true; 3]);
    let left = store.list("inputs").await.unwrap();
    assert_eq!(left.len(), 2, "sidecars go with their objects: {left:?}");
}

#[tokio::test]
async fn what_a_deleted_job_leaves_is_collected_when_nothing_inherits_it_any_more() {
    let store = Store::in_memory();
    let (collector, driver) = collector(&store).await;
    // Not below the job's phases, where the end of the job has left nothing.
    let inherited = "jobs/j1/tokenizer.json";
    driver.submit(JOB.into(), job_with("r1", "inputs/a")).await.unwrap();
    driver.submit("j2".into(), job_with("r2", inherited)).await.unwrap();
    put(&store, &[inherited, "jobs/j1/data/sft.jsonl"]).await;
    driver.unscoped().cancel(JOB).await.unwrap();
    driver.unscoped().delete(JOB, "").await.unwrap().unwrap();
    let erased = async {
        while store.exists("jobs/j1/data/sft.jsonl").await.unwrap() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), erased).await.expect("its objects are deleted");
    assert_eq!(exist(&store, &[inherited]).await, [true], "j2 inherits it");
    // As if a rank's last upload had been in flight.
    put(&store, &["jobs/j1/logs/late"]).await;
    let late = [("jobs/j1/logs/late".to_owned(), Reason::DeletedJob)];
    assert_eq!(collected(&collector, HOUR, false).await, late);
    driver.unscoped().cancel("j2").await.unwrap();
    driver.unscoped().delete("j2", "").await.unwrap().unwrap();
    assert_eq!(collected(&collector, HOUR, false).await, [(inherited.to_owned(), Reason::DeletedJob)]);
}

#[tokio::test]
async fn what_was_touched_or_named_since_the_listing_is_kept() {
    let store = Store::in_memory();
    let (collector, driver) = collector(&store).await;
    put(&store, &["inputs/gone", "inputs/named", "inputs/touched"]).await;
    let (driver, lease) = (driver, collector.leadership.leading().unwrap().1);
    let before = collector.clock.now().wall;
    let run = Run { collector: &collector, driver: driver.clone(), lease, before, dry_run: false };
    let listed = run.unnamed_inputs().await.unwrap();
    assert_eq!(listed.len(), 3);
    driver.submit(JOB.into(), job_with("r1", "inputs/named")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3)).await;
    store.touch_object("inputs/touched").await.unwrap();
    let deleted = run.delete_inputs(listed).await.unwrap();
    let deleted: Vec<&str> = deleted.iter().map(|garbage| garbage.key.as_str()).collect();
    assert_eq!(deleted, ["inputs/gone"]);
    assert_eq!(exist(&store, &["inputs/gone", "inputs/named", "inputs/touched"]).await, [false, true, true]);
}

/// Submissions of inputs that are garbage to a collection without a grace period: each submission either
/// finds its input missing before it is committed, or keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_committed_job_has_its_inputs_however_collections_race_with_it() {
    let store = Store::in_memory();
    let (collector, driver) = collector(&store).await;
    let stop = Arc::new(AtomicBool::new(false));
    let collecting = tokio::spawn({
        let (collector, stop) = (collector.clone(), Arc::clone(&stop));
        async move {
            let mut deleted = 0;
            while !stop.load(Ordering::Relaxed) {
                deleted += collector.collect(Duration::ZERO, false, None).await.unwrap().objects;
            }
            deleted
        }
    });
    let mut committed = Vec::new();
    for number in 0..300 {
        let key = format!("inputs/{number}");
        store.put_object(&key, "x".into()).await.unwrap();
        if number % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // As a submission does.
        let Ok(_hold) = collector.in_use.hold([key.clone()]) else { continue };
        if store.exists(&key).await.unwrap() {
            let id = format!("k{number}");
            driver.submit(id, job_with(&key, &key)).await.unwrap();
            committed.push(key);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let deleted = collecting.await.unwrap();
    assert!(deleted > 0 && !committed.is_empty(), "{deleted} deleted, {} committed", committed.len());
    for key in committed {
        assert_eq!(exist(&store, &[&key]).await, [true], "{key} was deleted though a job names it");
    }
}

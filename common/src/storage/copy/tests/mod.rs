mod listing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::super::fault::{FaultStore, Faults};
use super::super::log::Log;
use super::*;

const PREFIXES: [&str; 2] = ["jobs", "audit"];

/// A store whose requests yield to other tasks.
fn yielding() -> (Arc<InMemory>, Store) {
    let memory = Arc::new(InMemory::new());
    let backend = Arc::new(FaultStore::new(Arc::clone(&memory), Faults::default(), 0));
    (memory, Store::for_test(backend, 0))
}

fn content(name: u64) -> Bytes {
    format!("content of {name}").repeat(1 + usize::try_from(name).unwrap() % 7).into()
}

fn key(name: u64) -> String {
    format!("jobs/j/{name}")
}

/// Events as a service writes them: `+n` after object n was written, `-n` before it is deleted.
struct Service {
    store: Store,
    log: Log,
    random: ChaCha12Rng,
    named: Vec<u64>,
    next: u64,
}

impl Service {
    async fn start(store: Store, seed: u64) -> Self {
        let (log, _) = Log::lead(store.clone(), "a").await.unwrap();
        Self { store, log, random: ChaCha12Rng::seed_from_u64(seed), named: Vec::new(), next: 0 }
    }

    async fn act(&mut self) {
        match self.random.next_u64() % 10 {
            0..6 => {
                let name = self.next;
                self.next += 1;
                self.store.put_object(&key(name), content(name)).await.unwrap();
                self.log.append(vec![format!("+{name}").into()]).await.unwrap();
                self.named.push(name);
            }
            // One always remains, so that every copy has an object to check.
            6..9 if self.named.len() > 1 => {
                let name = self.named.swap_remove(self.random.next_u64() as usize % self.named.len());
                self.log.append(vec![format!("-{name}").into()]).await.unwrap();
                self.store.delete_object(&key(name)).await.unwrap();
            }
            _ => {
                log::compact(&self.store, |events| Ok(live(&events).into_values().collect())).await.unwrap();
            }
        }
    }
}

/// The names that remain after the events, with the event of each.
fn live(events: &[Bytes]) -> BTreeMap<u64, Bytes> {
    let mut live = BTreeMap::new();
    for event in events {
        let text = str::from_utf8(event).unwrap();
        let name: u64 = text[1..].parse().unwrap();
        if text.starts_with('+') {
            live.insert(name, event.clone());
        } else {
            live.remove(&name);
        }
    }
    live
}

#[tokio::test]
async fn a_copy_of_a_store_in_use_holds_all_that_its_log_names() {
    for _ in 0..24 {
        let seed: u64 = rand::random();
        let ((_, from), (_, to)) = (yielding(), yielding());
        let mut service = Service::start(from.clone(), seed).await;
        for _ in 0..80 {
            service.act().await;
        }
        let over = AtomicBool::new(false);
        let serve = async {
            while !over.load(Ordering::Relaxed) {
                service.act().await;
            }
        };
        let copying = async {
            let copied = copy(&from, &to, &PREFIXES, |_| {}).await.unwrap();
            over.store(true, Ordering::Relaxed);
            copied
        };
        let (copied, ()) = tokio::join!(copying, serve);

        let read = log::read(&to).await.unwrap();
        assert_eq!(copied.last_record, read.next.checked_sub(1), "seed {seed}");
        let named = live(&read.into_events());
        assert!(!named.is_empty(), "seed {seed}");
        for name in named.into_keys() {
            match to.stat_object(&key(name)).await {
                Ok(object) => {
                    assert_eq!(to.read_object(&object).await.unwrap(), content(name), "seed {seed}");
                }
                // The service may have deleted it since.
                Err(error) => assert!(!service.named.contains(&name), "seed {seed}: {error}"),
            }
        }
        // The copy is a store that a service can continue with.
        let (_, state) = Log::lead(to, "b").await.unwrap();
        assert_eq!(state.next.checked_sub(1), copied.last_record, "seed {seed}");
    }
}

#[tokio::test]
async fn a_place_with_a_log_and_a_source_without_one_are_refused() {
    let (store, empty) = (Store::in_memory(), Store::in_memory());
    Service::start(store.clone(), 0).await.act().await;
    let none = copy(&empty, &Store::in_memory(), &PREFIXES, |_| {}).await;
    assert!(matches!(none, Err(CopyError::NoLog { .. })), "{none:?}");
    copy(&store, &empty, &PREFIXES, |_| {}).await.unwrap();
    let again = copy(&store, &empty, &PREFIXES, |_| {}).await;
    assert!(matches!(again, Err(CopyError::Occupied { .. })), "{again:?}");
}

#[tokio::test]
async fn a_copy_that_broke_off_goes_on_and_has_no_log_before_its_end() {
    let (from, memory) = (Store::in_memory(), Arc::new(InMemory::new()));
    // Objects younger than the log's last record are not copied.
    from.create("audit/2026-01-01/a.jsonl", "{}\n").await.unwrap();
    let mut service = Service::start(from.clone(), 0).await;
    for _ in 0..60 {
        service.act().await;
    }
    let broken = FaultStore::new(Arc::clone(&memory), Faults::default(), 7);
    let broken = Arc::new(broken);
    let to = Store::for_test(Arc::clone(&broken) as Arc<dyn ObjectStore>, 0);
    let after_some = |_| broken.set(Faults { refuse_put: 20, ..Faults::default() });
    let error = copy(&from, &to, &PREFIXES, after_some).await.unwrap_err();
    assert!(matches!(error, CopyError::Store(StoreError::Unavailable { .. })), "{error}");
    assert!(to.list("meta/log").await.unwrap().is_empty());
    broken.set(Faults::default());
    let copied = copy(&from, &to, &PREFIXES, |_| {}).await.unwrap();
    assert_eq!(copied.objects, service.named.len() as u64 + 1);
    assert!(0 < copied.present && copied.present < copied.objects, "{copied:?}");
    assert_eq!(to.get("audit/2026-01-01/a.jsonl").await.unwrap(), "{}\n");
}

#[tokio::test]
async fn a_damaged_object_is_named() {
    let (from, to) = (Store::in_memory(), Store::in_memory());
    let mut service = Service::start(from.clone(), 0).await;
    while service.named.is_empty() {
        service.act().await;
    }
    let key = key(service.named[0]);
    let size = from.stat_object(&key).await.unwrap().size;
    from.overwrite(&key, Bytes::from(vec![b'x'; usize::try_from(size).unwrap()])).await.unwrap();
    let error = copy(&from, &to, &PREFIXES, |_| {}).await.unwrap_err();
    assert!(
        matches!(&error, CopyError::Store(StoreError::Corrupt { key: named, .. }) if *named == key),
        "{error}"
    );
    assert!(to.list("meta/log").await.unwrap().is_empty());
}

#[tokio::test]
async fn other_content_under_the_same_key_is_no_copy() {
    let (from, to) = (Store::in_memory(), Store::in_memory());
    let mut service = Service::start(from.clone(), 0).await;
    while service.named.is_empty() {
        service.act().await;
    }
    to.put_object(&key(service.named[0]), Bytes::from_static(b"of another store")).await.unwrap();
    let error = copy(&from, &to, &PREFIXES, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains(&key(service.named[0])), "{error}");
    assert!(to.list("meta/log").await.unwrap().is_empty());
}

#[tokio::test]
async fn the_rest_of_a_broken_write_is_left_behind() {
    let (from, to) = (Store::in_memory(), Store::in_memory());
    let limit = usize::try_from(MAX_PLAIN_BYTES).unwrap();
    from.create("jobs/j/rest", vec![7; limit + 1]).await.unwrap();
    from.create("jobs/j/whole", vec![7; limit]).await.unwrap();
    // Objects younger than the log's last record are not copied either.
    let mut service = Service::start(from.clone(), 0).await;
    while service.named.is_empty() {
        service.act().await;
    }
    copy(&from, &to, &PREFIXES, |_| {}).await.unwrap();
    assert!(to.exists("jobs/j/whole").await.unwrap() && !to.exists("jobs/j/rest").await.unwrap());
}

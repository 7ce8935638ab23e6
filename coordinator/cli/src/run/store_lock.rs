//! The lock of the store given by `--store`: a run takes over the leadership of its store, so no other
//! coordinator may be using it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use foil_common::storage::Store;
use foil_common::storage::log::Heartbeat;
use tokio::time::sleep;
use url::Url;

use foil_coordinator::lease::LeadershipTimeouts;

const LOCK: &str = ".run.lock";

/// Held while a run uses its store.
#[derive(Debug)]
pub(super) struct StoreLock {
    /// Released when the process ends. `None` if the store is not a directory.
    _lock: Option<File>,
}

impl StoreLock {
    /// Refuses a store that another run or a coordinator is using.
    pub(super) async fn take(location: &str) -> Result<Self> {
        let store = Store::open(location)?;
        let lock = directory(location).map(|directory| lock(&directory, &store)).transpose()?;
        if let Some(address) = leader(&store, LeadershipTimeouts::default().heartbeat_interval).await? {
            bail!(
                "the store {} belongs to the coordinator at {address}, which is running; submit the job there with `foil \
                 submit --coordinator {address}`, or give another --store",
                store.location()
            );
        }
        Ok(Self { _lock: lock })
    }
}

fn directory(location: &str) -> Option<PathBuf> {
    if !location.contains("://") {
        return Some(Path::new(location).to_owned());
    }
    Url::parse(location).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

fn lock(directory: &Path, store: &Store) -> Result<File> {
    let cannot = || format!("cannot use the store {}; give another with --store", store.location());
    fs::create_dir_all(directory).with_context(cannot)?;
    let lock = File::create(directory.join(LOCK)).with_context(cannot)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another `foil run` is using the store {}; wait for it, or give another --store",
                store.location()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

/// The address of the store's leader, if it sends heartbeats.
async fn leader(store: &Store, interval: Duration) -> Result<Option<String>> {
    let mut before: Option<(u64, Heartbeat)> = None;
    for _ in 0..6 {
        let now = Heartbeat::latest(store).await?.filter(|(_, heartbeat)| !heartbeat.released);
        let Some((term, now)) = now else { return Ok(None) };
        if before.as_ref().is_some_and(|(known, last)| (*known, last.counter) != (term, now.counter)) {
            let unknown = || "an unknown address".to_owned();
            return Ok(Some(Some(now.address).filter(|address| !address.is_empty()).unwrap_or_else(unknown)));
        }
        before = Some((term, now));
        sleep(interval / 2).await;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn a_store_is_used_by_one_run_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        for location in
            [directory.path().display().to_string(), format!("file://{}", directory.path().display())]
        {
            let held = StoreLock::take(&location).await.unwrap();
            let refused =
                StoreLock::take(&directory.path().display().to_string()).await.unwrap_err().to_string();
            assert!(refused.contains("another `foil run` is using the store"), "{refused}");
            drop(held);
        }
    }

    #[tokio::test]
    async fn a_running_coordinator_is_detected_and_a_dead_one_is_not_waited_for() {
        let store = Store::in_memory();
        assert_eq!(leader(&store, BEAT).await.unwrap(), None, "there was no leader yet");
        let mut heartbeat = Heartbeat { address: "http://a:1".into(), counter: 1, released: false };
        heartbeat.write(&store, 3).await.unwrap();
        assert_eq!(leader(&store, BEAT).await.unwrap(), None, "the leader is dead");
        let (beating, mut alive) = (store.clone(), heartbeat.clone());
        let beats = tokio::spawn(async move {
            loop {
                alive.counter += 1;
                alive.write(&beating, 3).await.unwrap();
                sleep(BEAT).await;
            }
        });
        assert_eq!(leader(&store, BEAT).await.unwrap().as_deref(), Some("http://a:1"));
        beats.abort();
        heartbeat.released = true;
        heartbeat.write(&store, 4).await.unwrap();
        assert_eq!(leader(&store, BEAT).await.unwrap(), None, "the leader has stopped gracefully");
    }
}

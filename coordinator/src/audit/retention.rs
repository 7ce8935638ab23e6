//! Deletion of the audit log's objects in the store, by day.

use std::time::{Duration, SystemTime};

use foil_common::storage::{Store, StoreError};

use super::PREFIX;
use crate::clock::Clock;
use crate::leadership::LeadershipHandle;

/// Interval between two checks.
const PERIOD: Duration = Duration::from_secs(6 * 3600);
/// Delay before the first check of a process, provided that it leads by then.
const FIRST: Duration = Duration::from_secs(60);
/// Maximum number of objects collected by one listing.
const BATCH: usize = 10_000;
const DAY: Duration = Duration::from_secs(86_400);

/// Deletes the objects of days that ended before a time.
#[derive(Debug, Clone)]
pub struct AuditRetention {
    store: Store,
    retention: Duration,
}

impl AuditRetention {
    pub fn new(store: Store, retention: Duration) -> Self {
        Self { store, retention }
    }

    /// Deletes periodically, while this process leads, until `ended` completes.
    pub(crate) async fn run(
        self,
        leadership: LeadershipHandle,
        clock: Clock,
        ended: impl Future<Output = ()>,
    ) {
        tokio::pin!(ended);
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = &mut ended => return,
                () = tokio::time::sleep(std::mem::replace(&mut pause, PERIOD)) => {}
            }
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(clock.now().wall);
            let leads = || leadership.driver().is_ok();
            match self.delete_old(now, leads).await {
                Ok(0) => {}
                Ok(objects) => tracing::info!(objects, "deleted old objects of the audit log"),
                Err(error) => tracing::warn!(%error, "old objects of the audit log could not be deleted"),
            }
        }
    }

    /// Deletes the objects of all days that ended longer ago than the retention period; returns their number.
    /// The current day is never among them. Stops when `leads` returns false.
    async fn delete_old(&self, now: SystemTime, leads: impl Fn() -> bool) -> Result<usize, StoreError> {
        let Some(before) = now.checked_sub(self.retention) else { return Ok(0) };
        let mut deleted = 0;
        loop {
            if !leads() {
                return Ok(deleted);
            }
            let old = self.store.scan(PREFIX, Vec::new, |old, found| {
                if old.len() < BATCH && ended_at(&found.key).is_some_and(|ended| ended <= before) {
                    old.push(found.key);
                }
            });
            let old = old.await?;
            for key in &old {
                if !leads() {
                    return Ok(deleted);
                }
                self.store.delete(key).await?;
                deleted += 1;
            }
            if old.len() < BATCH {
                return Ok(deleted);
            }
        }
    }
}

/// The end of the day of an object `audit/DAY/ID.jsonl`; none for any other key.
fn ended_at(key: &str) -> Option<SystemTime> {
    let (day, name) = key.strip_prefix(PREFIX)?.strip_prefix('/')?.split_once('/')?;
    if !name.ends_with(".jsonl") || name.contains('/') {
        return None;
    }
    humantime::parse_rfc3339(&format!("{day}T00:00:00Z")).ok()?.checked_add(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    async fn keys(store: &Store) -> Vec<String> {
        let mut keys: Vec<String> =
            store.list("audit").await.unwrap().into_iter().map(|listed| listed.key).collect();
        keys.sort();
        keys
    }

    #[tokio::test]
    async fn whole_days_go_when_the_retention_is_over_and_the_current_one_stays() {
        let store = Store::in_memory();
        let all = [
            "audit/2026-01-01/01k.jsonl",
            "audit/2026-01-01/01m.jsonl",
            "audit/2026-01-02/01n.jsonl",
            "audit/2026-01-03/01p.jsonl",
            // Not part of the audit log, so it is kept.
            "audit/2026-01-01/notes.txt",
            "audit/old/01q.jsonl",
        ];
        for key in all {
            store.create(key, "x").await.unwrap();
        }
        let days = |days: u32| AuditRetention::new(store.clone(), DAY * days);
        let always = || true;
        assert_eq!(days(1).delete_old(at("2026-01-02T23:59:59Z"), always).await.unwrap(), 0);
        assert_eq!(days(1).delete_old(at("2026-01-03T00:00:00Z"), || false).await.unwrap(), 0, "no leader");
        assert_eq!(days(1).delete_old(at("2026-01-03T00:00:00Z"), always).await.unwrap(), 2);
        assert_eq!(keys(&store).await, [&all[4..5], &all[2..4], &all[5..6]].concat());
        let moment = AuditRetention::new(store.clone(), Duration::from_secs(1));
        assert_eq!(moment.delete_old(at("2026-01-03T23:59:59Z"), always).await.unwrap(), 1);
        assert_eq!(
            keys(&store).await,
            [&all[4..5], &all[3..4], &all[5..6]].concat(),
            "the current day is kept"
        );
        let long = AuditRetention::new(store.clone(), Duration::MAX);
        assert_eq!(long.delete_old(at("2026-01-03T23:59:59Z"), always).await.unwrap(), 0);
    }
}

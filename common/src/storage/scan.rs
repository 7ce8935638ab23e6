//! Listings with ages, for counting objects and finding garbage.

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};

use super::health::Ask;
use super::object::SIDECAR;
use super::{Store, StoreError};

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// Time of the last write by the store's clock, in milliseconds since the Unix epoch.
    pub modified: u64,
}

impl Store {
    /// Folds all keys below `prefix`, in no particular order and without holding all of them in memory. A
    /// failed listing restarts from `init`.
    pub async fn scan<T: Send>(
        &self,
        prefix: &str,
        init: impl Fn() -> T + Send + Sync,
        fold: impl Fn(&mut T, Scanned) + Send + Sync,
    ) -> Result<T, StoreError> {
        let (init, fold) = (&init, &fold);
        self.with_retries("list", Ask::read(prefix), |path| async move {
            let mut folded = init();
            let mut listing = self.backend().list(Some(&path));
            while let Some(meta) = listing.try_next().await? {
                if let Some(key) = self.key_of(&meta.location) {
                    fold(&mut folded, Scanned { key, size: meta.size, modified: modified(&meta) });
                }
            }
            Ok(folded)
        })
        .await
    }

    /// The time at which a hashed object was last written or touched; `None` if it does not exist.
    pub async fn object_age(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let mut newest = None;
        for key in [key.to_owned(), format!("{key}{SIDECAR}")] {
            let meta = self
                .with_retries("head", Ask::read(&key), |path| async move { self.backend().head(&path).await })
                .await;
            newest = match meta {
                Ok(meta) => newest.max(Some(modified(&meta))),
                Err(StoreError::NotFound { .. }) => newest,
                Err(error) => return Err(error),
            };
        }
        Ok(newest)
    }
}

pub(super) fn modified(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[tokio::test]
    async fn a_scan_tells_sizes_and_a_touched_object_is_young_again() {
        let store = Store::in_memory();
        store.put_object("inputs/a", "abc".into()).await.unwrap();
        store.put_object("inputs-of-others", "x".into()).await.unwrap();
        let sizes = store.scan("inputs", BTreeMap::new, |sizes, found: Scanned| {
            sizes.insert(found.key, found.size);
        });
        let sizes = sizes.await.unwrap();
        assert_eq!(sizes.keys().collect::<Vec<_>>(), ["inputs/a", "inputs/a.b3"]);
        assert_eq!(sizes["inputs/a"], 3);

        let before = store.object_age("inputs/a").await.unwrap().unwrap();
        assert_eq!(store.object_age("inputs/b").await.unwrap(), None);
        let digest = store.stat_object("inputs/a").await.unwrap();
        loop {
            store.touch_object("inputs/a").await.unwrap();
            if store.object_age("inputs/a").await.unwrap().unwrap() > before {
                break;
            }
        }
        assert_eq!(store.stat_object("inputs/a").await.unwrap(), digest);
        assert!(matches!(store.touch_object("inputs/b").await, Err(StoreError::NotFound { .. })));
    }
}

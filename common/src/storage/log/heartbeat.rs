//! The leader's heartbeat: `meta/leader/{term:020}`, overwritten periodically. It is only a hint: the log
//! determines who leads.

use serde::{Deserialize, Serialize};

use super::LogError;
use crate::storage::{Store, StoreError};

const PREFIX: &str = "meta/leader";

/// A leader's sign of life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// URL for clients and workers; empty if it is unknown.
    pub address: String,
    /// Increases with every heartbeat.
    pub counter: u64,
    /// The leader has stopped gracefully, so that no standby has to wait for it.
    pub released: bool,
}

fn key(term: u64) -> String {
    format!("{PREFIX}/{term:020}")
}

impl Heartbeat {
    pub async fn write(&self, store: &Store, term: u64) -> Result<(), StoreError> {
        // Strings and numbers always have a JSON form.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        store.overwrite(&key(term), bytes.into()).await
    }

    /// The latest heartbeat of the highest term, if there is one.
    pub async fn latest(store: &Store) -> Result<Option<(u64, Self)>, LogError> {
        let listed = store.list(PREFIX).await?;
        let Some((key, term)) = listed
            .last()
            .and_then(|listed| Some((listed.key.clone(), listed.key.rsplit('/').next()?.parse().ok()?)))
        else {
            return Ok(None);
        };
        let bytes = match store.get(&key).await {
            // A newer leader has just deleted it.
            Err(StoreError::NotFound { .. }) => return Ok(None),
            read => read?,
        };
        let heartbeat = serde_json::from_slice(&bytes)
            .map_err(|error| LogError::Corrupt { key, reason: error.to_string() })?;
        Ok(Some((term, heartbeat)))
    }

    /// Deletes heartbeats of terms before `term`.
    pub async fn delete_before(store: &Store, term: u64) -> Result<(), StoreError> {
        let current = key(term);
        for old in store.list(PREFIX).await?.iter().filter(|listed| listed.key < current) {
            store.delete(&old.key).await?;
        }
        Ok(())
    }
}

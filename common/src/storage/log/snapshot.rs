//! Snapshots: the state after a prefix of the log, so that a replay need not start at the first record.
//!
//! Snapshot `n` is the object `meta/snapshot/{n:020}` and stands for records 0 to `n`. It depends only on
//! these records, so that all writers write the same bytes. The newest two are kept, with the records after
//! the older one: a damaged newest snapshot only costs time.

use bytes::Bytes;

use super::{LogError, framed};
use crate::storage::{Store, StoreError};

const PREFIX: &str = "meta/snapshot";
const MAGIC: &str = "FOILSNP1";

/// The state after records 0 to `seq`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Snapshot {
    #[prost(uint64, tag = "1")]
    pub(super) seq: u64,
    /// Term of the last leader elected until then.
    #[prost(uint64, tag = "2")]
    pub(super) term: u64,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) events: Vec<Bytes>,
}

/// The name of the snapshot for records up to `seq`.
pub(super) fn key(seq: u64) -> String {
    format!("{PREFIX}/{seq:020}")
}

/// The numbers of all snapshots, ascending.
pub(super) async fn numbers(store: &Store) -> Result<Vec<u64>, StoreError> {
    let listed = store.list(PREFIX).await?;
    Ok(listed.iter().filter_map(|listed| listed.key.rsplit('/').next()?.parse().ok()).collect())
}

/// The newest readable snapshot, if there is one.
pub(super) async fn newest(store: &Store) -> Result<Option<Snapshot>, LogError> {
    // A compaction may delete listed snapshots; then there are newer ones.
    for _ in 0..16 {
        let numbers = numbers(store).await?;
        let Some(last) = numbers.last() else { return Ok(None) };
        match newest_of(store, &numbers).await {
            Err(LogError::Store(StoreError::NotFound { .. })) => {}
            Ok(None) => {
                let reason = "neither it nor the one before can be read".to_owned();
                return Err(LogError::Corrupt { key: key(*last), reason });
            }
            found => return found,
        }
    }
    Err(LogError::Corrupt { key: PREFIX.to_owned(), reason: "what is listed there is not there".to_owned() })
}

async fn newest_of(store: &Store, numbers: &[u64]) -> Result<Option<Snapshot>, LogError> {
    for seq in numbers.iter().rev() {
        let name = key(*seq);
        match framed::decode::<Snapshot>(MAGIC, &store.get(&name).await?) {
            Ok(snapshot) if snapshot.seq == *seq => return Ok(Some(snapshot)),
            Ok(snapshot) => tracing::error!(key = name, says = snapshot.seq, "snapshot under a wrong name"),
            Err(error) => {
                metrics::counter!("foil_snapshot_verify_failures_total").increment(1);
                tracing::error!(key = name, %error, "damaged snapshot, using the previous one");
            }
        }
    }
    Ok(None)
}

/// Writes a snapshot; one that exists already is the same.
pub(super) async fn write(store: &Store, snapshot: Snapshot) -> Result<(), StoreError> {
    let (key, framed) = (key(snapshot.seq), framed::encode(MAGIC, &snapshot));
    // Both take the memory of all events.
    drop(snapshot);
    store.create(&key, framed).await.map(drop)
}

/// A snapshot's frame around any body, for tests of what lies behind the checksum.
pub fn frame(body: &[u8]) -> Bytes {
    framed::encode_body(MAGIC, body)
}

//! Snapshots: the state after a prefix of the log, so that a replay need not start at the first record.
//!
//! Snapshot `n` is the object `meta/snapshot/{n:020}` and stands for records 0 to `n`. It depends only on
//! these records, so that all writers write the same bytes. The newest two are kept, with the records after
//! the older one: a damaged newest snapshot only costs time.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

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

/// The tag of [`Snapshot::events`].
const EVENTS_TAG: u32 = 3;
/// Size from which an event is a separate part; copying a smaller one costs less than a separate write.
const SHARED_BYTES: usize = 4096;

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

/// Writes a snapshot. An existing one has the same content.
pub(super) async fn write(store: &Store, snapshot: Snapshot) -> Result<(), StoreError> {
    let key = key(snapshot.seq);
    store.create(&key, framed::join(MAGIC, parts(snapshot))).await.map(drop)
}

/// The encoded snapshot, in parts that share the memory of its events, of which there may be many megabytes.
fn parts(snapshot: Snapshot) -> Vec<Bytes> {
    let Snapshot { seq, term, events } = snapshot;
    let mut own = BytesMut::from(Snapshot { seq, term, events: Vec::new() }.encode_to_vec().as_slice());
    let mut parts = Vec::new();
    for event in events {
        encode_key(EVENTS_TAG, WireType::LengthDelimited, &mut own);
        encode_varint(event.len() as u64, &mut own);
        if event.len() < SHARED_BYTES {
            own.extend_from_slice(&event);
        } else {
            parts.extend([own.split().freeze(), event]);
        }
    }
    parts.push(own.freeze());
    parts
}

/// A snapshot's frame around any body, for tests of the parsing after the checksum.
pub fn frame(body: &[u8]) -> Bytes {
    framed::encode_body(MAGIC, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_encoded_message() {
        for count in [0, 1, 50] {
            let event = |_| Bytes::from(vec![rand::random(); rand::random_range(0..3 * SHARED_BYTES)]);
            let events = (0..count).map(event).collect();
            let snapshot = Snapshot { seq: rand::random(), term: rand::random(), events };
            let framed = framed::encode(MAGIC, &snapshot);
            let joined = Bytes::from(framed::join(MAGIC, parts(snapshot.clone())));
            assert_eq!(joined, framed);
            assert_eq!(framed::decode::<Snapshot>(MAGIC, &joined).unwrap(), snapshot);
        }
    }
}

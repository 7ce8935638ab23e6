//! One record of the log, framed by [`super::framed`] with `FOILLOG1`. Its events are opaque here.

use bytes::Bytes;

use super::framed::{self, FrameError};

const MAGIC: &str = "FOILLOG1";

/// One record of the log: one append of a leader.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// The term of the leader that wrote it.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Its number in the log, which is also its name in the store.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Random for each append: distinguishes a leader's own write from another's.
    #[prost(bytes = "bytes", tag = "3")]
    pub nonce: Bytes,
    #[prost(oneof = "Entry", tags = "4, 5")]
    pub entry: Option<Entry>,
}

/// The content of a record.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Entry {
    /// The writer is the leader from here on; its term is the record's.
    #[prost(message, tag = "4")]
    LeaderElected(LeaderElected),
    #[prost(message, tag = "5")]
    Events(Events),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaderElected {
    /// Name of the leader, for people.
    #[prost(string, tag = "1")]
    pub leader: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Events {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub events: Vec<Bytes>,
}

impl Record {
    pub fn encode_framed(&self) -> Bytes {
        framed::encode(MAGIC, self)
    }

    pub fn decode_framed(bytes: &Bytes) -> Result<Self, FrameError> {
        let record: Self = framed::decode(MAGIC, bytes)?;
        if record.entry.is_none() {
            return Err(FrameError::Unreadable("it has no entry of a known kind".to_owned()));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Record> {
        let event = prop::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from);
        let entry = prop_oneof![
            ".{0,12}".prop_map(|leader| Entry::LeaderElected(LeaderElected { leader })),
            prop::collection::vec(event, 0..5).prop_map(|events| Entry::Events(Events { events })),
        ];
        (any::<u64>(), any::<u64>(), any::<[u8; 16]>(), entry).prop_map(|(term, seq, nonce, entry)| Record {
            term,
            seq,
            nonce: Bytes::copy_from_slice(&nonce),
            entry: Some(entry),
        })
    }

    proptest! {
        #[test]
        fn a_record_survives_its_encoding(record in records()) {
            prop_assert_eq!(Record::decode_framed(&record.encode_framed()).unwrap(), record);
        }

        #[test]
        fn one_flipped_bit_is_always_detected(record in records(), place in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = record.encode_framed().to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= 1u8 << bit;
            prop_assert!(Record::decode_framed(&bytes.into()).is_err());
        }

        #[test]
        fn a_torn_record_is_always_detected(record in records(), place in any::<prop::sample::Index>()) {
            let bytes = record.encode_framed();
            prop_assert!(Record::decode_framed(&bytes.slice(..place.index(bytes.len()))).is_err());
        }
    }
}

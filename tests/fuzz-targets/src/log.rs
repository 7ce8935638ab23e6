//! Fuzz targets for the readers of the store: records and snapshots of the log, and the events in them.

use bytes::Bytes;
use foil_common::storage::Store;
use foil_common::storage::log::{self, LogState, Record};
use foil_coordinator::job::{Event, JobState, compact_events};
use prost::Message;

use super::Verdict;

/// A record, once as it is and once as the body of a frame with a valid checksum.
pub(super) fn record(input: &[u8]) -> Verdict {
    let framed = Record::decode_framed(&Bytes::copy_from_slice(input));
    let record = framed.ok().or_else(|| Record::decode(input).ok().filter(|record| record.entry.is_some()));
    let Some(record) = record else { return Verdict::Refused };
    let again = Record::decode_framed(&record.encode_framed()).expect("a record can be read back");
    assert!(again == record, "a record changes as it is written");
    // A whole log with only this record.
    let _ = read(&[(log::key(0), record.encode_framed())]);
    Verdict::Accepted
}

/// A store whose newest snapshot is this input. Damaged snapshots are skipped, and no state is made up.
pub(super) fn snapshot(input: &[u8]) -> Verdict {
    let key = |number: u64| format!("meta/snapshot/{number:020}");
    let framed = log::frame_snapshot(input);
    let own = read(&[(key(7), Bytes::copy_from_slice(input))]).or_else(|| read(&[(key(7), framed)]));
    own.map(|state| {
        assert_eq!(state.next, 8, "a snapshot stands for the records up to its number");
        state.into_events().len()
    })
    .into()
}

/// Reads a log of these objects; `None` if it is rejected.
fn read(objects: &[(String, Bytes)]) -> Option<LogState> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let store = Store::in_memory();
        for (key, bytes) in objects {
            store.create(key, bytes.clone()).await.expect("a store in memory");
        }
        log::read(&store).await.ok()
    })
}

/// Events of a job, one after the other, as a log stores them. Those that are legal in this order lead to a
/// state, and the log's compaction leads to the same state.
pub(super) fn event(input: &[u8]) -> Verdict {
    let mut left = input;
    let mut events: Vec<Event> = Vec::new();
    while !left.is_empty() && events.len() < 64 {
        let mut reader = left;
        let Ok(event) = rmp_serde::from_read::<_, Event>(&mut reader) else { break };
        let bytes = rmp_serde::to_vec_named(&event).expect("an event can be written");
        let again: Event = rmp_serde::from_slice(&bytes).expect("a written event can be read");
        // Compares bytes rather than values, because a NaN is not equal to itself.
        assert!(
            rmp_serde::to_vec_named(&again).expect("an event") == bytes,
            "an event changes as it is written"
        );
        events.push(event);
        left = reader;
    }
    let Some(state) = replay(&events) else { return Verdict::Refused };
    let compacted = compact_events(events);
    let again = replay(&compacted).expect("a compacted log can be replayed");
    assert_eq!((again.revision, again.status.name()), (state.revision, state.status.name()));
    Verdict::Accepted
}

/// The state of the first event's job after all events, or `None` if one of them is illegal.
fn replay(events: &[Event]) -> Option<JobState> {
    let (first, rest) = events.split_first()?;
    let foil_coordinator::job::Change::Submitted(submitted) = &first.change else { return None };
    let mut state = JobState::submitted(&first.job, first.at, (**submitted).clone()).ok()?;
    for event in rest {
        if event.job != first.job {
            return None;
        }
        state.apply(event).ok()?;
    }
    Some(state)
}

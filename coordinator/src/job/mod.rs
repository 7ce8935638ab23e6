//! A job as a pure state machine: events in the log, the state they replay to, and its view on the wire.

mod alarms;
mod artifacts;
mod compact;
mod decide;
pub mod event;
#[cfg(test)]
pub(crate) mod fixture;
mod garbage;
mod lineage;
mod log_writers;
pub mod pages;
mod past;
mod pins;
mod results;
pub mod rows;
pub mod state;
#[cfg(test)]
mod tests;
mod timeline;
mod trace;
pub mod view;

pub use alarms::{alarms, recent_alarms};
pub use artifacts::{find_artifact, find_committed, last_artifact};
pub use compact::{Compaction, TOMBSTONES_KEPT, compact_events};
pub use decide::{decide, end_of_timeout, timed_out};
pub use event::{
    Cause, CauseClass, Change, ChunkDone, Committed, Detail, Event, Outcome, Pin, RankStarted, Submitted,
    Tombstone, spec_hash,
};
pub use garbage::GarbageSet;
pub use lineage::{named_inputs, origins};
pub use log_writers::{LogWriter, LogWriters};
pub use past::{PastEvent, PastJob, events, retained};
pub use pins::Pins;
pub use state::{JobState, JobStatus, StateError, Times};
pub use timeline::{AttemptEnd, AttemptSpan, Span, SpanEnd, Timeline};
pub use trace::JobTrace;

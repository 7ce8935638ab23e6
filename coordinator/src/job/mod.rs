//! A job's life as a pure state machine: events in the log, the state they add up to, and how it looks on the wire.

mod artifacts;
mod decide;
pub mod event;
#[cfg(test)]
pub(crate) mod fixture;
mod fold;
pub mod pages;
mod results;
pub mod rows;
pub mod state;
mod sweep;
#[cfg(test)]
mod tests;
pub mod view;

pub use artifacts::{find_artifact, find_committed, last_artifact};
pub use decide::decide;
pub use event::{
    Cause, CauseClass, Change, ChunkDone, Committed, Detail, Event, Outcome, RankStarted, Submitted,
    spec_hash,
};
pub use fold::fold;
pub use state::{ATTEMPTS_WITHOUT_COMMIT, JobState, Life, StateError};
pub use sweep::Sweep;

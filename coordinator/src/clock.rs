//! Time as a value: it is passed to decisions, so that tests can advance it instead of sleeping.

#![expect(clippy::disallowed_methods, reason = "this is the clock")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since an arbitrary start; for deadlines.
    pub mono: Duration,
    /// Milliseconds since the Unix epoch; for timestamps.
    pub wall: u64,
}

impl Now {
    /// A reading later by `by` on both clocks.
    pub fn after(self, by: Duration) -> Self {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self { mono: self.mono + by, wall: self.wall.saturating_add(millis) }
    }

    /// Time since an earlier monotonic reading.
    pub fn since(self, earlier: Duration) -> Duration {
        self.mono.saturating_sub(earlier)
    }
}

/// The machine's clocks, or those of a runtime whose time a test controls.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Wall-clock time at the start, if the wall clock follows the monotonic one.
    epoch: Option<u64>,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: Instant::now(), epoch: None }
    }

    /// A wall clock that starts at `epoch` milliseconds and advances with the monotonic clock.
    pub fn starting_at(epoch: u64) -> Self {
        Self { start: Instant::now(), epoch: Some(epoch) }
    }

    pub fn now(&self) -> Now {
        let mono = self.start.elapsed();
        let wall = match self.epoch {
            Some(epoch) => Duration::from_millis(epoch) + mono,
            None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        };
        Now { mono, wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Milliseconds since the Unix epoch as a protobuf timestamp.
pub fn timestamp(millis: u64) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000).unwrap_or_default() * 1_000_000,
    }
}

//! How a worker process ends, as its parent sees it.

use std::process::ExitCode;

/// The exit codes of `foil-worker`; clap's 2 for wrong usage and Rust's 101 for a panic come beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Told to end.
    Done = 0,
    /// An error that the log names.
    Failed = 1,
    /// The process that started this one is gone.
    Orphaned = 3,
    /// The coordinator's stream ended.
    CoordinatorLost = 4,
    /// The coordinator no longer knows this attempt or session.
    Stale = 5,
    /// A task panicked; its failure was reported.
    TaskPanicked = 6,
    /// SIGTERM or SIGINT, after the ranks were stopped.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

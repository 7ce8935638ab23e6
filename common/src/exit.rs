//! Exit codes of `foil-worker`'s processes: the worker exits with them, and the coordinator diagnoses
//! failures by them.

use std::process::ExitCode;

use crate::shutdown::Cause;

/// The exit codes of `foil-worker`, besides clap's 2 for wrong usage and Rust's 101 for a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Exited on request.
    Done = 0,
    /// An error, which is in the log.
    Failed = 1,
    /// The process that started this one has exited.
    Orphaned = 3,
    /// There was no coordinator for too long, or it rejected this process.
    CoordinatorLost = 4,
    /// The coordinator no longer knows this attempt or session.
    Stale = 5,
    /// A task panicked; its failure was reported.
    TaskPanicked = 6,
    /// SIGHUP, after the ranks were stopped.
    HungUp = 129,
    /// SIGINT, after the ranks were stopped.
    Interrupted = 130,
    /// SIGTERM, after the ranks were stopped; for a rank, any signal that asked it to stop.
    Terminated = 143,
}

impl Exit {
    const ALL: [Self; 9] = [
        Self::Done,
        Self::Failed,
        Self::Orphaned,
        Self::CoordinatorLost,
        Self::Stale,
        Self::TaskPanicked,
        Self::HungUp,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// The meaning of an exit code; `None` if it is not one of these.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(*exit as u8) == code)
    }
}

impl From<Cause> for Exit {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::HangUp => Self::HungUp,
            Cause::Interrupt => Self::Interrupted,
            Cause::Terminate => Self::Terminated,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_signals_are_those_of_shells() {
        for cause in [Cause::HangUp, Cause::Interrupt, Cause::Terminate] {
            assert_eq!(Exit::from(cause) as u8, cause.exit_code());
        }
    }

    #[test]
    fn exit_codes_are_distinct_and_known() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(i32::from(exit as u8)), Some(exit));
        }
        assert_eq!([2, 101, -1].map(Exit::from_code), [None; 3]);
    }
}

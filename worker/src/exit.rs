//! Exit codes of the worker's processes.

use std::process::ExitCode;

use foil_common::shutdown::Cause;

/// The exit codes of `foil-worker`, besides clap's 2 for wrong usage and Rust's 101 for a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Told to exit.
    Done = 0,
    /// An error that the log names.
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
}

//! How a worker process ends, as its parent sees it.

use std::process::ExitCode;

use foil_common::shutdown::Cause;

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
    /// SIGHUP, after the ranks were stopped.
    HungUp = 129,
    /// SIGINT, the same.
    Interrupted = 130,
    /// SIGTERM, the same; of a rank, any signal that asked it to end.
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
    fn an_agent_exits_as_shells_report_its_signal() {
        for cause in [Cause::HangUp, Cause::Interrupt, Cause::Terminate] {
            assert_eq!(Exit::from(cause) as u8, cause.exit_code());
        }
    }
}

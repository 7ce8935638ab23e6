use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::super::{MAX_PAUSE, broke, is_unavailable, retry_after, timed_out};

/// Retry timeout for a store that is unavailable or full.
const STORE_PATIENCE: Duration = Duration::from_secs(3600);

/// Retry timeout for the coordinator.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(120);

/// The error of a transfer.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("the coordinator has no object {key}")]
    NotFound { key: String },
    #[error("this attempt is no longer the job's current one (writing {key}): {message}")]
    Stale { key: String, message: String },
    #[error("the coordinator cannot be reached (transferring {key}): {}; check that it runs and try again", status.message())]
    Unavailable { key: String, status: Box<Status> },
    #[error("the coordinator cannot transfer {key} now: {}", status.message())]
    Waiting { key: String, status: Box<Status> },
    #[error("the transfer of {key} is too slow: {}", status.message())]
    Slow { key: String, status: Box<Status> },
    #[error("the coordinator refused {key}: {} ({:?})", status.message(), status.code())]
    Refused { key: String, status: Box<Status> },
    #[error("checksum mismatch for {key}: expected {expected}, got {found}")]
    Corrupt { key: String, expected: String, found: String },
    #[error("{} changed while it was read; leave it alone and try again", path.display())]
    Changed { path: PathBuf },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

impl TransferError {
    pub(super) fn from_status(key: &str, status: Status) -> Self {
        let key = key.to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound { key },
            Code::Aborted => Self::Stale { key, message: status.message().to_owned() },
            // Sent by the coordinator: its store is unavailable or full, too many transfers are in progress,
            // or the tenant makes too many requests.
            Code::Unavailable if !broke(&status) => Self::Waiting { key, status: Box::new(status) },
            Code::ResourceExhausted if retry_after(&status).is_some() => {
                Self::Waiting { key, status: Box::new(status) }
            }
            _ if timed_out(&status) => Self::Slow { key, status: Box::new(status) },
            _ if is_unavailable(&status) => Self::Unavailable { key, status: Box::new(status) },
            _ => Self::Refused { key, status: Box::new(status) },
        }
    }

    /// True if the same transfer may succeed later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Waiting { .. } | Self::Unavailable { .. } | Self::Slow { .. })
    }

    pub(super) fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::Unauthenticated)
    }

    /// The pause before a retry: at least what the coordinator asks for, within bounds.
    pub(super) fn pause(&self, pause: Duration) -> Duration {
        match self {
            Self::Waiting { status, .. } => pause + retry_after(status).unwrap_or_default().min(MAX_PAUSE),
            _ => pause,
        }
    }

    /// Whether to retry again, after having retried for `tried`.
    pub(super) fn may_pass(&self, tried: Duration) -> bool {
        match self {
            Self::Waiting { .. } => tried < STORE_PATIENCE,
            Self::Unavailable { .. } | Self::Slow { .. } => tried < COORDINATOR_PATIENCE,
            _ => false,
        }
    }
}

//! Collection of garbage that cannot be identified from a single job's events: inputs that no job refers to,
//! and remains of deleted jobs and of submissions that were never committed. Also computes the store's usage.
//!
//! A collection never deletes an object that is about to be referred to. There are three such cases:
//!
//! 1. *A client has uploaded an input and not yet submitted its job.* Each upload renews the input's age,
//!    even if the input already exists, and inputs younger than the grace period are kept.
//! 2. *An upload or a submission is in progress.* It [holds](InUse::hold) its keys from before it checks them
//!    until its job is in the log; held keys are not condemned, and condemned keys cannot be held.
//! 3. *A job was committed since the listing.* After the keys are condemned, the driver is asked again
//!    whether a job refers to them, and the store for their age.
//!
//! Uploads, submissions and collections all run in the leading process. A leader whose lease expires during a
//! collection stops. Only a process suspended between its last check of the lease and the deletion of a key
//! could still delete an input that was uploaded again in between, under a later leader. Its job would then
//! fail and name the missing input; no result would be wrong.

mod garbage;
mod in_use;
mod kind;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use foil_common::storage::{Store, StoreError};
use tokio::sync::Mutex;

pub use self::garbage::{Garbage, Reason, Summary};
pub use self::in_use::{BeingDeleted, Hold, InUse};
pub use self::kind::{Kind, PREFIXES, job_prefix};
pub use self::usage::{Amount, Usage};
use crate::clock::Clock;
use crate::driver::Stopped;
use crate::leadership::{LeadershipHandle, NotLeading};

/// The default age below which inputs that no job refers to, and remains of unfinished submissions, are kept.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Computes usage and collects garbage. Cheap to clone; at most one clone collects at a time.
#[derive(Debug, Clone)]
pub struct Collector {
    store: Store,
    leadership: LeadershipHandle,
    in_use: InUse,
    clock: Clock,
    turn: Arc<Mutex<()>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("a collection is in progress")]
    Busy,
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller has stopped waiting for the result.
    #[error("the caller is gone")]
    Abandoned,
}

impl Collector {
    pub fn new(store: Store, leadership: LeadershipHandle, in_use: InUse, clock: Clock) -> Self {
        Self { store, leadership, in_use, clock, turn: Arc::default() }
    }

    /// Collects every `period` while this process leads, until `ended` completes.
    pub async fn collect_every(self, period: Duration, ended: impl Future<Output = ()>) {
        tokio::pin!(ended);
        loop {
            tokio::select! {
                () = &mut ended => return,
                () = tokio::time::sleep(period) => {}
            }
            match self.collect(GRACE, false, None).await {
                Ok(_) | Err(CollectError::NotLeading(_) | CollectError::Stopped(_) | CollectError::Busy) => {}
                Err(error) => tracing::warn!(%error, "garbage in the store could not be collected"),
            }
        }
    }
}

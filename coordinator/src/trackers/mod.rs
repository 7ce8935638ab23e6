//! Experiment trackers: a job's metrics in TensorBoard, MLflow and Kubeflow Trainer.
//!
//! Everything is read from the coordinator's log and the artifacts that it names. The leader alone delivers
//! it, in log order: each value of a metric arrives once, whichever process dies in between.
//!
//! - [`source`] returns what follows a position in the log, and [`points`] converts it to points.
//! - A [`delivery::Session`] sends them to a tracker, after asking it what has arrived already.
//! - [`leader`] runs the deliveries. Failed deliveries are retried, even long after the job's end. A tracker
//!   that is unavailable, slow or returns nonsense delays only its own deliveries.
//!
//! [`Config`] reads the address of a tracker and the coordinator's credentials for it from the coordinator's
//! environment; jobs only name trackers. Nor can a job make the coordinator write files: TensorBoard's event
//! files are objects in the store.

mod batch;
mod board;
mod config;
mod delivery;
mod health;
mod http;
mod kubeflow;
mod leader;
mod mlflow;
mod names;
mod points;
mod samples;
mod settings;
mod source;
mod tensorboard;

use std::time::Duration;

use foil_common::storage::{Store, StoreError};
use foil_proto::v1;

pub use self::board::Board;
pub(crate) use self::config::variable;
pub use self::config::{Config, ConfigError, SECRET_VARIABLES};
use self::delivery::{Context, Target};
use self::kubeflow::TrainJob;
use self::leader::{Destination, Leader};
use self::mlflow::Api;
use crate::clock::Clock;
use crate::leadership::LeadershipHandle;
use crate::rpc::results::Feed;

/// Interval between two checks of whether this process leads.
const LEADERSHIP_POLL: Duration = Duration::from_millis(500);

/// The sources that deliveries read, and the board on which they report their status.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) leadership: LeadershipHandle,
    pub(crate) feed: Feed,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) board: Board,
}

/// The trackers of a coordinator.
#[derive(Debug)]
pub(crate) struct Trackers {
    sources: Sources,
    destinations: Vec<Destination>,
}

impl Trackers {
    /// # Errors
    /// A tracker's certificates cannot be used.
    pub(crate) fn new(config: &Config, sources: Sources) -> Result<Self, String> {
        let mut destinations = vec![Destination::Points(Target::TensorBoard)];
        if let Some(config) = &config.mlflow {
            tracing::info!(url = config.url, "jobs may be reported to MLflow");
            if config.credential.is_some() && config.url.starts_with("http://") {
                tracing::warn!(
                    "MLFLOW_TRACKING_URI is no https:// address: the credential is sent in clear text"
                );
            }
            destinations.push(Destination::Points(Target::Mlflow(Api::new(config)?)));
        }
        if let Some(config) = &config.kubeflow {
            tracing::info!(url = %config.url, "jobs may be reported to Kubeflow Trainer");
            destinations.push(Destination::Progress(TrainJob::new(config)?));
        }
        Ok(Self { sources, destinations })
    }

    /// Delivers whenever this process leads, until `ended` completes.
    pub(crate) async fn run(self, ended: impl Future<Output = ()>) {
        tokio::pin!(ended);
        loop {
            tokio::select! {
                () = &mut ended => return,
                () = self.lead() => {}
            }
        }
    }

    /// Delivers during one term, or waits briefly if this process does not lead.
    async fn lead(&self) {
        let Sources { leadership, feed, store, .. } = &self.sources;
        match leadership.leading() {
            Ok((driver, lease)) => {
                let cx = Context { driver, feed: feed.clone(), store: store.clone(), lease };
                Leader::new(&self.sources, cx, self.destinations.clone()).run().await;
            }
            Err(_) => tokio::time::sleep(LEADERSHIP_POLL).await,
        }
    }
}

/// A job's TensorBoard event files, starting after the first `skip`.
pub(crate) async fn event_files(
    store: &Store,
    job: &str,
    skip: usize,
) -> Result<Vec<v1::Object>, StoreError> {
    tensorboard::files(store, job, skip).await
}

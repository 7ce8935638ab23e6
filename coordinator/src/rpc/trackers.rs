//! The Trackers service: delivery status of a job's experiment trackers, and TensorBoard's event files.

use foil_common::spec::Tracker;
use foil_common::storage::Store;
use foil_proto::v1::{self, trackers_server::Trackers};
use tonic::{Request, Response, Status};

use super::auth::caller;
use super::status::{no_job, not_leading, stopped, store_unavailable};
use crate::job::JobState;
use crate::leadership::LeadershipHandle;
use crate::trackers::{Board, Config, event_files, variable};

/// The Trackers service.
#[derive(Debug, Clone)]
pub struct TrackersService {
    leadership: LeadershipHandle,
    store: Store,
    config: Config,
    board: Board,
}

impl TrackersService {
    pub fn new(leadership: LeadershipHandle, store: Store, config: Config, board: Board) -> Self {
        Self { leadership, store, config, board }
    }

    async fn status(&self, job: &str, tracker: Tracker) -> Result<v1::TrackerStatus, Status> {
        let status = self.board.status(&self.store, job, tracker).await;
        let mut status = status.map_err(|error| store_unavailable(&error))?;
        if !status.complete && !self.config.has(tracker) {
            status.problem = format!(
                "the coordinator that leads lacks {} in its environment; give all coordinators the same",
                variable(tracker)
            );
        }
        Ok(status)
    }
}

#[tonic::async_trait]
impl Trackers for TrackersService {
    async fn get_trackers(
        &self,
        request: Request<v1::GetTrackersRequest>,
    ) -> Result<Response<v1::GetTrackersResponse>, Status> {
        let caller = caller(&request)?;
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?.for_user(&caller);
        let v1::GetTrackersRequest { job_id, after_event_files } = request.into_inner();
        let config = self.config.clone();
        let named = move |state: &JobState| -> Vec<Tracker> {
            let trackers = &state.spec.trackers;
            let is_meant = |tracker: &Tracker| {
                trackers.require(*tracker) || (trackers.include(*tracker) && config.has(*tracker))
            };
            Tracker::ALL.iter().copied().filter(is_meant).collect()
        };
        let found = driver.inspect(&job_id, named).await.map_err(stopped)?;
        let named = found.ok_or_else(|| no_job(&job_id))?;
        let mut response = v1::GetTrackersResponse::default();
        for tracker in named {
            if tracker == Tracker::TensorBoard {
                let files = event_files(&self.store, &job_id, after_event_files as usize).await;
                response.event_files = files.map_err(|error| store_unavailable(&error))?;
            }
            response.trackers.push(self.status(&job_id, tracker).await?);
        }
        Ok(Response::new(response))
    }
}

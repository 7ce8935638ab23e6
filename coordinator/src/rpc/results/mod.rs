//! The Results service: what pages and reports show about a job. Everything is read from committed artifacts
//! and the job's state; nothing is stored.
//!
//! Every size is bounded: how much of the store is read at a time ([`read`]), how much of it is cached
//! ([`cache`]), the size of messages, and the number of calls.

mod cache;
mod catalog;
mod chunk;
mod completions;
mod curves;
mod detail;
mod distributions;
mod feed;
mod index;
mod order;
mod query;
mod read;
mod steps;
mod timeline;
mod tokens;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use foil_common::storage::Store;
use foil_proto::v1::{self, results_server::Results};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Request, Response, Status};
use tonic_types::ErrorDetails;

use self::completions::Completions;
use self::distributions::Distributions;
pub(crate) use self::feed::Feed;
use self::query::Query;
use self::read::Reader;
use self::steps::Steps;
use super::auth::caller;
use super::status::{RETRY_AFTER, not_leading, status};
use crate::driver::UserHandle;
use crate::leadership::LeadershipHandle;

/// Number of calls handled concurrently; a page makes several at the same time.
const CONCURRENT_CALLS: usize = 16;
/// How long further calls wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// The Results service.
#[derive(Debug, Clone)]
pub struct ResultsService {
    leadership: LeadershipHandle,
    completions: Completions,
    distributions: Distributions,
    steps: Steps,
    calls: Arc<Semaphore>,
}

impl ResultsService {
    pub fn new(leadership: LeadershipHandle, store: Store) -> Self {
        let reader = Reader::new(store);
        let completions = Completions::new(reader.clone());
        Self {
            leadership,
            distributions: Distributions::new(completions.clone()),
            completions,
            steps: Steps::new(reader),
            calls: Arc::new(Semaphore::new(CONCURRENT_CALLS)),
        }
    }

    /// The results in the form that experiment trackers read.
    pub(crate) fn feed(&self) -> Feed {
        Feed {
            reader: self.completions.reader.clone(),
            completions: self.completions.clone(),
            distributions: self.distributions.clone(),
        }
    }

    /// The driver as the caller sees it, and a permit to handle the call.
    async fn admit<T>(&self, request: &Request<T>) -> Result<(UserHandle, OwnedSemaphorePermit), Status> {
        let caller = caller(request)?;
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.calls).acquire_owned()).await;
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?;
        Ok((driver.for_user(&caller), permit))
    }
}

fn busy() -> Status {
    let problem = format!("{CONCURRENT_CALLS} calls of this service are being answered already; try again");
    let mut details = ErrorDetails::with_quota_failure_violation("results", problem.clone());
    details.set_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, "BUSY", problem, details)
}

#[tonic::async_trait]
impl Results for ResultsService {
    async fn get_steps(
        &self,
        request: Request<v1::GetStepsRequest>,
    ) -> Result<Response<v1::GetStepsResponse>, Status> {
        let (driver, _permit) = self.admit(&request).await?;
        self.steps.get(&driver, request.into_inner()).await.map(Response::new)
    }

    async fn list_completions(
        &self,
        request: Request<v1::ListCompletionsRequest>,
    ) -> Result<Response<v1::ListCompletionsResponse>, Status> {
        let (driver, _permit) = self.admit(&request).await?;
        let query = Query::parse(request.into_inner())?;
        self.completions.list(&driver, &query).await.map(Response::new)
    }

    async fn get_completion(
        &self,
        request: Request<v1::GetCompletionRequest>,
    ) -> Result<Response<v1::GetCompletionResponse>, Status> {
        let (driver, _permit) = self.admit(&request).await?;
        detail::get(&self.completions, &driver, request.into_inner()).await.map(Response::new)
    }

    async fn get_distributions(
        &self,
        request: Request<v1::GetDistributionsRequest>,
    ) -> Result<Response<v1::GetDistributionsResponse>, Status> {
        let (driver, _permit) = self.admit(&request).await?;
        self.distributions.get(&driver, request.into_inner()).await.map(Response::new)
    }

    async fn get_timeline(
        &self,
        request: Request<v1::GetTimelineRequest>,
    ) -> Result<Response<v1::GetTimelineResponse>, Status> {
        let (driver, _permit) = self.admit(&request).await?;
        timeline::get(&driver, request.into_inner()).await.map(Response::new)
    }
}

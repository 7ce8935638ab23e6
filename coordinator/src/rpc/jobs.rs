//! The Jobs service.

use std::pin::Pin;
use std::sync::Arc;

use foil_common::spec;
use foil_proto::v1::{self, job_event, jobs_server::Jobs};
use futures::stream::{self, Stream, StreamExt};
use prost::Message;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::limits::{bounded_warnings, check_spec};
use super::lineage;
use super::status::{bad_field, bad_input, bad_spec, no_job, not_leading, other_spec, stopped, too_large};
use crate::driver::{Found, Handle, Query, Subscription};
use crate::job::pages::{self, Mark, PAGE_BYTES, Page};
use crate::job::{JobState, Submitted};
use crate::leadership::{Desk, NotLeading};
use crate::lease::Lease;
use crate::plan;
use crate::resolve::{Made, Request as InputRequest, Resolver};
use foil_common::plural::counted;

const PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 1000;
const LONGEST_REQUEST_ID: usize = 128;

/// The service; data is resolved here, everything else is the driver's.
#[derive(Debug, Clone)]
pub struct JobsService {
    desk: Desk,
    resolver: Resolver,
}

impl JobsService {
    pub fn new(desk: Desk, resolver: Resolver) -> Self {
        Self { desk, resolver }
    }

    /// A page of one of a job's parts.
    async fn part<T: Send + 'static>(
        &self,
        request: v1::ListPartsRequest,
        page: fn(&JobState, Mark, usize, usize) -> Page<T>,
    ) -> Result<Page<T>, Status> {
        let v1::ListPartsRequest { job_id, page_size, page_token } = request;
        let from = match page_token.as_str() {
            "" => Mark::default(),
            token => token.parse().map_err(|_| bad_token())?,
        };
        let size = if page_size == 0 { usize::MAX } else { page_size as usize };
        let driver = self.driver()?;
        let found = driver.look(&job_id, move |state| page(state, from, size, PAGE_BYTES)).await;
        found.map_err(stopped)?.ok_or_else(|| no_job(&job_id))
    }

    fn driver(&self) -> Result<Handle, Status> {
        self.desk.driver().map_err(|why| not_leading(&why))
    }

    async fn dry_run(&self, job: &spec::Job, made: &Made) -> Result<v1::SubmitResponse, Status> {
        let request = InputRequest::new(&new_id(), job, made, false);
        let resolved = self.resolver.resolve(request).await.map_err(|error| bad_input(&error))?;
        let phases = plan::bounded(job, &resolved.datasets).map_err(|error| too_large(&error))?;
        let mut warnings = resolved.warnings;
        warnings.extend(self.lacking_devices(job).await?);
        Ok(v1::SubmitResponse {
            job: None,
            resolved: Some(job.into()),
            warnings: bounded_warnings(warnings),
            plan: Some(wire_plan(&phases, resolved.summaries)),
        })
    }

    async fn lacking_devices(&self, job: &spec::Job) -> Result<Option<String>, Status> {
        let kind = job.resources.device.name();
        let connected = self.driver()?.devices(kind).await.map_err(stopped)?;
        Ok(too_few_devices(job.resources.ranks, kind, connected))
    }

    async fn commit(
        &self,
        job: &spec::Job,
        made: &Made,
        request_id: String,
        spec_hash: String,
    ) -> Result<v1::SubmitResponse, Status> {
        let id = new_id();
        let request = InputRequest::new(&id, job, made, true);
        let resolved = self.resolver.resolve(request).await.map_err(|error| bad_input(&error))?;
        let phases = plan::bounded(job, &resolved.datasets).map_err(|error| too_large(&error))?;
        let plan = wire_plan(&phases, resolved.summaries);
        let submitted = Submitted {
            request_id: request_id.clone(),
            spec_hash: spec_hash.clone(),
            spec: job.into(),
            plan,
            datasets: resolved.datasets,
            policy: resolved.policy,
            reward: resolved.reward,
        };
        let mut warnings = resolved.warnings;
        warnings.extend(self.lacking_devices(job).await?);
        let found = self.driver()?.submit(id, submitted).await.map_err(stopped)?;
        same(found, &request_id, &spec_hash, bounded_warnings(warnings))
    }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let v1::SubmitRequest { spec, request_id, dry_run } = request.into_inner();
        let driver = self.driver()?;
        let wire = spec.ok_or_else(|| bad_field("spec", "a job needs a specification"))?;
        check_spec(&wire)?;
        let spec_hash = blake3::hash(&wire.encode_to_vec()).to_hex().to_string();
        if !dry_run {
            if request_id.is_empty() || request_id.len() > LONGEST_REQUEST_ID {
                let problem =
                    format!("it must have 1 to {LONGEST_REQUEST_ID} characters: a retry with it is safe");
                return Err(bad_field("request_id", &problem));
            }
            if let Some(found) = driver.find(&request_id).await.map_err(stopped)? {
                return same(found, &request_id, &spec_hash, Vec::new()).map(Response::new);
            }
        }
        let mut job = spec::Job::try_from(wire).map_err(|error| bad_spec(&error))?;
        job.require_uploaded().map_err(|error| bad_spec(&error))?;
        let made = lineage::settle(&mut job, &driver).await?;
        let response = match dry_run {
            true => self.dry_run(&job, &made).await?,
            false => self.commit(&job, &made, request_id, spec_hash).await?,
        };
        Ok(Response::new(response))
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let id = request.into_inner().id;
        let job = self.driver()?.get(&id).await.map_err(stopped)?;
        job.map(Response::new).ok_or_else(|| no_job(&id))
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest { page_size, page_token, name, id_prefix } = request.into_inner();
        let size = if page_size == 0 { PAGE } else { page_size.min(LARGEST_PAGE) } as usize;
        let after = (!page_token.is_empty()).then_some(page_token);
        let driver = self.driver()?;
        if let Some(token) = &after
            && driver.look(token, |_| ()).await.map_err(stopped)?.is_none()
        {
            return Err(bad_token());
        }
        let page = driver.list(Query { size, after, name, id_prefix }).await.map_err(stopped)?;
        let next_page_token = page.next.unwrap_or_default();
        Ok(Response::new(v1::ListJobsResponse { jobs: page.jobs, next_page_token }))
    }

    async fn list_phases(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListPhasesResponse>, Status> {
        let page = self.part(request.into_inner(), pages::phases).await?;
        let (phases, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListPhasesResponse { phases, next_page_token }))
    }

    async fn list_rounds(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListRoundsResponse>, Status> {
        let page = self.part(request.into_inner(), pages::rounds).await?;
        let (rounds, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListRoundsResponse { rounds, next_page_token }))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let page = self.part(request.into_inner(), pages::artifacts).await?;
        let (artifacts, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListArtifactsResponse { artifacts, next_page_token }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::JobEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchJobRequest { id, after_revision } = request.into_inner();
        let (driver, lease) = self.desk.leading().map_err(|why| not_leading(&why))?;
        let subscription = driver.watch(&id, after_revision).await.map_err(stopped)?;
        let subscription = subscription.ok_or_else(|| no_job(&id))?;
        Ok(Response::new(Box::pin(events(subscription, lease))))
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let id = request.into_inner().id;
        let job = self.driver()?.cancel(&id).await.map_err(stopped)?;
        job.map(Response::new).ok_or_else(|| no_job(&id))
    }
}

fn bad_token() -> Status {
    bad_field("page_token", "it is not a token of an earlier page")
}

/// Empty where nothing follows.
fn token(next: Option<Mark>) -> String {
    next.map(|mark| mark.to_string()).unwrap_or_default()
}

/// Sorts by time of submission.
fn new_id() -> String {
    ulid::Ulid::new().to_string().to_lowercase()
}

/// Begins the warning that a job waits for workers.
const LACKING_DEVICES: &str = "resources.ranks: ";

/// A job waits for as many devices as it has ranks; the cluster may grow until then.
fn too_few_devices(ranks: u32, kind: &str, connected: usize) -> Option<String> {
    (connected < ranks as usize).then(|| {
        let (ranks, devices) = (counted(ranks, "rank"), counted(connected, "such device"));
        format!(
            "{LACKING_DEVICES}the job wants {ranks} on {kind}, and the workers connected now have {devices}; it waits until \
             there are more"
        )
    })
}

/// Whether a warning tells of the workers there were, rather than of the job.
pub fn is_of_workers(warning: &str) -> bool {
    warning.starts_with(LACKING_DEVICES)
}

fn wire_plan(phases: &[plan::Phase], datasets: Vec<v1::DatasetSummary>) -> v1::Plan {
    v1::Plan { phases: phases.iter().map(Into::into).collect(), datasets }
}

/// The job of a request id, if it is the same job.
fn same(
    found: Found,
    request_id: &str,
    spec_hash: &str,
    warnings: Vec<String>,
) -> Result<v1::SubmitResponse, Status> {
    if found.spec_hash != spec_hash {
        return Err(other_spec(request_id, &found.job.id));
    }
    Ok(v1::SubmitResponse {
        resolved: Some(found.submitted.spec),
        plan: Some(found.submitted.plan),
        job: Some(found.job),
        warnings,
    })
}

/// Ends after the job's last event, or with an error where the reader is too slow or the coordinator stops or may no
/// longer speak for the leader.
fn events(
    subscription: Subscription,
    lease: Lease,
) -> impl Stream<Item = Result<v1::JobEvent, Status>> + Send {
    let past = stream::iter(subscription.past).map(|event| Ok(unshared(event)));
    let future = stream::unfold((subscription.future, lease), |(receiver, lease)| async move {
        let mut receiver = receiver?;
        let next = tokio::select! {
            next = receiver.recv() => next,
            () = lease.lapsed() => return Some((Err(not_leading(&NotLeading::Lapsed)), (None, lease))),
        };
        match next {
            Ok(event) => {
                let last = ends(&event);
                Some((Ok(unshared(event)), ((!last).then_some(receiver), lease)))
            }
            Err(RecvError::Closed) => Some((Err(stopped(crate::driver::Stopped)), (None, lease))),
            Err(RecvError::Lagged(missed)) => Some((Err(too_slow(missed)), (None, lease))),
        }
    });
    past.chain(future)
}

fn unshared(event: Arc<v1::JobEvent>) -> v1::JobEvent {
    Arc::unwrap_or_clone(event)
}

fn ends(event: &v1::JobEvent) -> bool {
    let Some(job_event::Event::Job(job)) = &event.event else { return false };
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

fn too_slow(missed: u64) -> Status {
    let message = format!("this reader fell {missed} events behind; watch again from the last revision seen");
    let details = ErrorDetails::with_quota_failure_violation("watch", message.clone());
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_the_cluster_has_not_are_told() {
        assert_eq!(too_few_devices(2, "cpu", 2), None);
        let told = too_few_devices(80, "cuda", 8).unwrap();
        assert!(told.contains("wants 80 ranks on cuda") && told.contains("have 8 such devices"), "{told}");
        assert!(is_of_workers(&told));
    }
}

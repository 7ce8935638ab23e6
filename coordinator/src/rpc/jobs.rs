//! The Jobs service.

use std::pin::Pin;

use foil_common::spec;
use foil_common::storage::Store;
use foil_proto::v1::{self, jobs_server::Jobs};
use futures::stream::Stream;
use tonic::{Request, Response, Status};

use super::auth::{Caller, caller, may_change, only_admins};
use super::deletion::{not_deleted, refused};
use super::device_warning::device_warning;
use super::inputs::Inputs;
use super::limits::{bounded_warnings, check_spec};
use super::lineage;
use super::listing;
use super::logs::{Logs, LogsStream};
use super::status::{
    bad_field, bad_input, bad_spec, bad_token, no_job, not_leading, not_submitted, other_spec, stopped,
    too_large,
};
use super::submission::{Submission, traceparent};
use super::watch::events;
use crate::auth::Role;
use crate::clock::Clock;
use crate::collector::InUse;
use crate::driver::{Found, Query, SubmitError, UserHandle};
use crate::job::pages::{self, Cursor, PAGE_BYTES, Page};
use crate::job::{self, JobState, Submitted};
use crate::leadership::LeadershipHandle;
use crate::plan;
use crate::resolve::{ModelArtifacts, Request as InputRequest, Resolver};
use crate::tenant::Tenant;
use crate::trackers;

const MAX_REQUEST_ID_BYTES: usize = 128;

/// The Jobs service: resolves inputs itself and passes everything else to the driver.
#[derive(Debug, Clone)]
pub struct JobsService {
    leadership: LeadershipHandle,
    resolver: Resolver,
    inputs: Inputs,
    logs: Logs,
    clock: Clock,
    trackers: trackers::Config,
}

impl JobsService {
    pub fn new(
        leadership: LeadershipHandle,
        resolver: Resolver,
        store: Store,
        in_use: InUse,
        clock: Clock,
    ) -> Self {
        let logs = Logs::new(store.clone());
        let trackers = trackers::Config::default();
        Self { leadership, resolver, inputs: Inputs::new(store, in_use), logs, clock, trackers }
    }

    /// Sets the experiment trackers that jobs may name.
    #[must_use]
    pub fn with_trackers(self, trackers: trackers::Config) -> Self {
        Self { trackers, ..self }
    }

    /// A page of one part of a job.
    async fn part<T: Send + 'static>(
        &self,
        request: Request<v1::ListPartsRequest>,
        page: fn(&JobState, Cursor, usize, usize) -> Page<T>,
    ) -> Result<Page<T>, Status> {
        let driver = self.driver(&caller(&request)?)?;
        let v1::ListPartsRequest { job_id, page_size, page_token } = request.into_inner();
        let from = match page_token.as_str() {
            "" => Cursor::default(),
            token => token.parse().map_err(|_| bad_token())?,
        };
        let size = if page_size == 0 { usize::MAX } else { page_size as usize };
        let found = driver.inspect(&job_id, move |state| page(state, from, size, PAGE_BYTES)).await;
        found.map_err(stopped)?.ok_or_else(|| no_job(&job_id))
    }

    /// The driver as the caller sees it.
    fn driver(&self, caller: &Caller) -> Result<UserHandle, Status> {
        let driver = self.leadership.driver().map_err(|why| not_leading(&why))?;
        Ok(driver.for_user(caller))
    }

    async fn dry_run(
        &self,
        driver: &UserHandle,
        job: &spec::Job,
        models: &ModelArtifacts,
        caller: &Caller,
    ) -> Result<v1::SubmitResponse, Status> {
        let request = InputRequest::new(&new_id(), job, models, false).of_tenant(&caller.tenant);
        let resolved = self.resolver.resolve(request).await.map_err(|error| bad_input(&error))?;
        let phases = plan::bounded(job, &resolved.datasets).map_err(|error| too_large(&error))?;
        let mut warnings = resolved.warnings;
        warnings.extend(device_warning(driver, job).await?);
        Ok(v1::SubmitResponse {
            job: None,
            resolved: Some(job.into()),
            warnings: bounded_warnings(warnings),
            plan: Some(wire_plan(&phases, resolved.summaries)),
        })
    }

    async fn commit(
        &self,
        job: &spec::Job,
        models: &ModelArtifacts,
        caller: &Caller,
        submission: Submission,
    ) -> Result<v1::SubmitResponse, Status> {
        let Submission { request_id, spec_hash, traceparent, received_at } = submission;
        // Checked before the inputs are read; the driver checks again.
        self.driver(caller)?.check_submission().await.map_err(not_submitted)?;
        let id = new_id();
        // Until the job is in the log, nothing else keeps its inputs from being collected as garbage.
        let _inputs = self.inputs.hold(&id, job, &caller.tenant)?;
        let request = InputRequest::new(&id, job, models, true).of_tenant(&caller.tenant);
        let resolved = self.resolver.resolve(request).await.map_err(|error| bad_input(&error))?;
        let _files = self.inputs.hold_files(&resolved).await?;
        let phases = plan::bounded(job, &resolved.datasets).map_err(|error| too_large(&error))?;
        let plan = wire_plan(&phases, resolved.summaries);
        let submitted = Submitted {
            request_id: request_id.clone(),
            spec_hash: spec_hash.clone(),
            spec: Some(Box::new(job.into())),
            plan,
            datasets: resolved.datasets,
            policy: resolved.policy,
            reward: resolved.reward,
            tenant: caller.tenant.to_string(),
            owner: caller.name.clone(),
            traceparent,
            received_at,
            warnings: bounded_warnings(resolved.warnings),
        };
        // Reading the inputs takes a while, so another coordinator may lead by then.
        let driver = self.driver(caller)?;
        let shortage = device_warning(&driver, job).await?;
        let found = driver.submit(id, submitted).await.map_err(|error| match error {
            SubmitError::Refused(why) => refused(&request_id, &why),
            other => not_submitted(other),
        })?;
        caller.changes_by(&format!("job/{}", found.job.id), &request_id);
        existing(found, &request_id, &spec_hash, shortage)
    }
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let received_at = self.clock.now().wall;
        let caller = caller(&request)?;
        let driver = self.driver(&caller)?;
        let traceparent = traceparent(request.metadata());
        let v1::SubmitRequest { spec, request_id, dry_run } = request.into_inner();
        let wire = spec.ok_or_else(|| bad_field("spec", "a job needs a specification"))?;
        check_spec(&wire)?;
        let spec_hash = job::spec_hash(&wire);
        if !dry_run {
            if request_id.is_empty() || request_id.len() > MAX_REQUEST_ID_BYTES {
                let problem =
                    format!("it must have 1 to {MAX_REQUEST_ID_BYTES} characters: a retry with it is safe");
                return Err(bad_field("request_id", &problem));
            }
            if let Some(found) = driver.find(&request_id).await.map_err(stopped)? {
                return existing(found, &request_id, &spec_hash, None).map(Response::new);
            }
        }
        let mut job = spec::Job::try_from(wire).map_err(|error| bad_spec(&error))?;
        job.require_uploaded().map_err(|error| bad_spec(&error))?;
        if let Some(lacking) = self.trackers.refusal(&job.trackers) {
            return Err(bad_field("spec.trackers.report_to", &lacking));
        }
        let models = lineage::resolve_models(&mut job, &driver, &caller.tenant).await?;
        let response = match dry_run {
            true => self.dry_run(&driver, &job, &models, &caller).await?,
            false => {
                let submission = Submission { request_id, spec_hash, traceparent, received_at };
                self.commit(&job, &models, &caller, submission).await?
            }
        };
        Ok(Response::new(response))
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let driver = self.driver(&caller(&request)?)?;
        let id = request.into_inner().id;
        let job = driver.get(&id).await.map_err(stopped)?;
        job.map(Response::new).ok_or_else(|| no_job(&id))
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let caller = caller(&request)?;
        let driver = self.driver(&caller)?;
        let request = request.into_inner();
        let tenant = listed_tenant(&caller, &request.tenant, request.all_tenants)?;
        let owner = request.mine.then(|| caller.name.clone());
        let filters = listing::filters(&request);
        let query = Query { tenant, owner, ..listing::query(request)? };
        if let Some(after) = &query.after
            && !driver.is_known(after).await.map_err(stopped)?
        {
            return Err(bad_token());
        }
        let page = driver.list(query).await.map_err(stopped)?;
        let next_page_token = page.next.map(|id| listing::token(&id, &filters)).unwrap_or_default();
        Ok(Response::new(v1::ListJobsResponse { jobs: page.jobs, next_page_token }))
    }

    async fn list_phases(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListPhasesResponse>, Status> {
        let page = self.part(request, pages::phases).await?;
        let (phases, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListPhasesResponse { phases, next_page_token }))
    }

    async fn list_rounds(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListRoundsResponse>, Status> {
        let page = self.part(request, pages::rounds).await?;
        let (rounds, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListRoundsResponse { rounds, next_page_token }))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListPartsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let page = self.part(request, pages::artifacts).await?;
        let (artifacts, next_page_token) = (page.items, token(page.next));
        Ok(Response::new(v1::ListArtifactsResponse { artifacts, next_page_token }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::JobEvent, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let v1::WatchJobRequest { id, after_revision } = request.into_inner();
        let (driver, lease) = self.leadership.leading().map_err(|why| not_leading(&why))?;
        let subscription = driver.for_user(&caller).watch(&id, after_revision).await.map_err(stopped)?;
        let subscription = subscription.ok_or_else(|| no_job(&id))?;
        Ok(Response::new(Box::pin(events(subscription, lease))))
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let caller = caller(&request)?;
        let driver = self.driver(&caller)?;
        let id = request.into_inner().id;
        caller.changes(&format!("job/{id}"));
        let permitted =
            driver.inspect(&id, move |state| may_change(&caller, &state.id, &state.submitted)).await;
        permitted.map_err(stopped)?.ok_or_else(|| no_job(&id))??;
        let job = driver.cancel(&id).await.map_err(stopped)?;
        job.map(Response::new).ok_or_else(|| no_job(&id))
    }

    type LogsStream = LogsStream;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<LogsStream>, Status> {
        let caller = caller(&request)?;
        self.logs.stream(request.into_inner(), &caller, &self.leadership).await.map(Response::new)
    }

    async fn delete(&self, request: Request<v1::DeleteJobRequest>) -> Result<Response<v1::Job>, Status> {
        let caller = caller(&request)?;
        let driver = self.driver(&caller)?;
        let id = request.into_inner().id;
        caller.changes(&format!("job/{id}"));
        let name = caller.name.clone();
        let permitted =
            driver.inspect(&id, move |state| may_change(&caller, &state.id, &state.submitted)).await;
        permitted.map_err(stopped)?.transpose()?;
        let deleted = driver.delete(&id, &name).await.map_err(stopped)?;
        deleted.map(Response::new).map_err(|error| not_deleted(&id, &error))
    }
}

/// The tenant whose jobs are listed; none for all.
fn listed_tenant(caller: &Caller, tenant: &str, all_tenants: bool) -> Result<Option<Tenant>, Status> {
    let wanted = match tenant {
        "" => caller.tenant.clone(),
        named => named.parse().map_err(|problem: String| bad_field("tenant", &problem))?,
    };
    let is_admin = caller.role == Role::Admin;
    match (is_admin, all_tenants) {
        (true, true) => Ok(None),
        (true, false) => Ok(Some(wanted)),
        (false, false) if wanted == caller.tenant => Ok(Some(wanted)),
        (false, _) => Err(only_admins("list the jobs of other tenants")),
    }
}

/// Page token; empty if no page follows.
fn token(next: Option<Cursor>) -> String {
    next.map(|cursor| cursor.to_string()).unwrap_or_default()
}

/// A new job id; ids sort by time of submission.
fn new_id() -> String {
    ulid::Ulid::new().to_string().to_lowercase()
}

fn wire_plan(phases: &[plan::Phase], datasets: Vec<v1::DatasetSummary>) -> v1::Plan {
    v1::Plan { phases: phases.iter().map(Into::into).collect(), datasets }
}

/// The response for the job of a request id, if it has the same specification: with its original warnings,
/// even for a caller that retries because a response was lost, and one about devices.
fn existing(
    found: Found,
    request_id: &str,
    spec_hash: &str,
    shortage: Option<String>,
) -> Result<v1::SubmitResponse, Status> {
    if found.spec_hash != spec_hash {
        return Err(other_spec(request_id, &found.job.id));
    }
    Ok(v1::SubmitResponse {
        resolved: found.job.spec.clone(),
        plan: found.job.plan.clone(),
        warnings: found.job.warnings.iter().cloned().chain(shortage).collect(),
        job: Some(found.job),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_repeated_has_the_warnings_of_its_job() {
        let kept = "data.golden: 1 duplicate row is left out".to_owned();
        let found = || Found {
            spec_hash: "h".into(),
            job: v1::Job { warnings: vec![kept.clone()], ..Default::default() },
        };
        let told = |shortage: Option<&str>| {
            let response = existing(found(), "r", "h", shortage.map(str::to_owned)).unwrap();
            (response.warnings, response.job.unwrap().warnings)
        };
        assert_eq!(told(None), (vec![kept.clone()], vec![kept.clone()]));
        // A shortage of devices at submission is not a property of the job.
        let shortage = "resources.ranks: the job wants 8";
        assert_eq!(told(Some(shortage)), (vec![kept.clone(), shortage.to_owned()], vec![kept.clone()]));
        assert!(existing(found(), "r", "other", None).is_err());
    }
}

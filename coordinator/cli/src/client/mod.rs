//! The client of the coordinator's API.

mod lookup;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use backon::{ExponentialBuilder, Retryable};
use foil_common::rpc::{self, LeaderChannel};
use foil_proto::v1;
use foil_proto::v1::access_client::AccessClient;
use foil_proto::v1::jobs_client::JobsClient;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::client_args::ClientArgs;
use crate::{problem, stdout, traceparent};

/// Deadline of a short request, including retries.
const DEADLINE: Duration = Duration::from_secs(20);
/// Retry timeout of an unavailable coordinator: longer than a failover.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
/// Retry timeout of requests that the coordinator defers.
const PUT_OFF_TIMEOUT: Duration = Duration::from_secs(60);
/// Time before a note says that the coordinator does not answer yet.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// Time after which the client fails over to another coordinator, if there are several.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of jobs of a page.
const PAGE_SIZE: u32 = 1000;
/// Deadline of a submission, which reads and splits all of a job's data.
const SUBMIT_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub(crate) struct Client {
    jobs: JobsClient<LeaderChannel>,
    line: LeaderChannel,
    /// Deadline of short requests.
    deadline: Duration,
}

impl ClientArgs {
    /// A client of the coordinators, which connects at the first request.
    pub(crate) fn connect(&self) -> anyhow::Result<Client> {
        let connection = self.connection()?;
        Ok(Client::new(rpc::connect_with(&connection.urls.join(","), &connection.credentials())?))
    }
}

impl Client {
    /// A client of the coordinators at `urls`; it connects at the first request.
    pub(crate) fn connect(urls: &str) -> Result<Self> {
        Ok(Self::new(rpc::connect(urls)?))
    }

    pub(crate) fn new(line: LeaderChannel) -> Self {
        Self { jobs: JobsClient::new(line.clone()), line, deadline: DEADLINE }
    }

    pub(crate) fn line(&self) -> LeaderChannel {
        self.line.clone()
    }

    pub(crate) async fn submit(&self, request: v1::SubmitRequest) -> Result<v1::SubmitResponse> {
        let submit = |mut jobs: JobsClient<LeaderChannel>, mut request: Request<v1::SubmitRequest>| {
            traceparent::add_to(request.metadata_mut());
            async move { jobs.submit(request).await }
        };
        self.unary(SUBMIT_DEADLINE, request, submit).await.map_err(|status| self.user_error(&status))
    }

    /// The job with all its parts.
    pub(crate) async fn get(&self, id: &str) -> Result<v1::Job> {
        let job = self.try_get(id).await?;
        let job = job.with_context(|| format!("there is no job {id}; `foil list` shows all jobs"))?;
        self.complete(job).await
    }

    /// Fetches page by page the parts that were too large for one message.
    pub(crate) async fn complete(&self, mut job: v1::Job) -> Result<v1::Job> {
        for part in std::mem::take(&mut job.omitted) {
            match part.as_str() {
                "plan" => job.plan.get_or_insert_default().phases = self.phases(&job.id).await?,
                "rounds" => job.rounds = self.rounds(&job.id).await?,
                "artifacts" => job.artifacts = self.artifacts(&job.id).await?,
                other => bail!(
                    "the coordinator left {other} out of job {}, which this version of foil cannot ask for; use the \
                     coordinator's own version",
                    job.id
                ),
            }
        }
        Ok(job)
    }

    async fn phases(&self, job: &str) -> Result<Vec<v1::PhasePlan>> {
        self.pages(job, |mut jobs, request| async move {
            let page = jobs.list_phases(request).await?.into_inner();
            Ok(tonic::Response::new((page.phases, page.next_page_token)))
        })
        .await
    }

    async fn rounds(&self, job: &str) -> Result<Vec<v1::RoundResult>> {
        self.pages(job, |mut jobs, request| async move {
            let page = jobs.list_rounds(request).await?.into_inner();
            Ok(tonic::Response::new((page.rounds, page.next_page_token)))
        })
        .await
    }

    async fn artifacts(&self, job: &str) -> Result<Vec<v1::Artifact>> {
        let parts = self.pages(job, |mut jobs, request| async move {
            let page = jobs.list_artifacts(request).await?.into_inner();
            Ok(tonic::Response::new((page.artifacts, page.next_page_token)))
        });
        Ok(join_pages(parts.await?))
    }

    async fn pages<T, F>(
        &self,
        job: &str,
        call: impl Fn(JobsClient<LeaderChannel>, Request<v1::ListPartsRequest>) -> F,
    ) -> Result<Vec<T>>
    where
        F: Future<Output = Result<tonic::Response<(Vec<T>, String)>, Status>>,
    {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListPartsRequest { job_id: job.to_owned(), page_size: 0, page_token };
            let (items, next) =
                self.unary(self.deadline, request, &call).await.map_err(|status| self.user_error(&status))?;
            all.extend(items);
            if next.is_empty() {
                return Ok(all);
            }
            page_token = next;
        }
    }

    /// The job, limited to what fits in one message. `None` if it does not exist.
    pub(crate) async fn try_get(&self, id: &str) -> Result<Option<v1::Job>> {
        let request = v1::GetJobRequest { id: id.to_owned() };
        let answer =
            self.unary(self.deadline, request, |mut jobs, request| async move { jobs.get(request).await });
        match answer.await {
            Ok(job) => Ok(Some(job)),
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
            Err(status) => Err(self.user_error(&status)),
        }
    }

    pub(crate) async fn cancel(&self, id: &str) -> Result<v1::Job> {
        let request = v1::CancelJobRequest { id: id.to_owned() };
        self.unary(self.deadline, request, |mut jobs, request| async move { jobs.cancel(request).await })
            .await
            .map_err(|status| self.user_error(&status))
    }

    /// A short request to any service of the coordinator.
    pub(crate) async fn ask<Q, A, F>(
        &self,
        request: Q,
        call: impl Fn(LeaderChannel, Request<Q>) -> F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let answer = self.unary(self.deadline, request, |_, request| call(self.line(), request));
        answer.await.map_err(|status| self.user_error(&status))
    }

    /// Checks that a coordinator answers.
    pub(crate) async fn reach(&self) -> Result<()> {
        let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
        let answer =
            self.unary(self.deadline, request, |mut jobs, request| async move { jobs.list(request).await });
        answer.await.map(drop).map_err(|status| self.user_error(&status))
    }

    /// All jobs of the caller's tenant, newest first.
    pub(crate) async fn list(&self) -> Result<Vec<v1::Job>> {
        Ok(self.rows(v1::ListJobsRequest::default(), usize::MAX).await?.0)
    }

    /// Who the caller is to the coordinator.
    pub(crate) async fn who_am_i(&self) -> Result<v1::WhoAmIResponse> {
        let ask = |line, request| async move { AccessClient::new(line).who_am_i(request).await };
        self.ask(v1::WhoAmIRequest {}, ask).await
    }

    /// At most `limit` jobs of a listing, newest first, and the token of the page after them; empty if there
    /// are no more.
    pub(crate) async fn rows(
        &self,
        request: v1::ListJobsRequest,
        limit: usize,
    ) -> Result<(Vec<v1::Job>, String)> {
        let mut jobs: Vec<v1::Job> = Vec::new();
        let mut page_token = request.page_token.clone();
        loop {
            let page_size = u32::try_from(limit - jobs.len()).unwrap_or(u32::MAX).min(PAGE_SIZE);
            let request = v1::ListJobsRequest { page_size, page_token, ..request.clone() };
            let page = self
                .unary(self.deadline, request, |mut jobs, request| async move { jobs.list(request).await })
                .await
                .map_err(|status| self.user_error(&status))?;
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit {
                // Ids start with the time of submission.
                jobs.sort_by(|a, b| b.id.cmp(&a.id));
                return Ok((jobs, page_token));
            }
        }
    }

    /// Events after `after_revision`, up to the job's last.
    pub(crate) async fn watch(
        &self,
        id: &str,
        after_revision: u64,
    ) -> Result<tonic::Streaming<v1::JobEvent>, Status> {
        let request = v1::WatchJobRequest { id: id.to_owned(), after_revision };
        let mut jobs = self.jobs.clone();
        match tokio::time::timeout(self.deadline, jobs.watch(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::unavailable(format!("{} does not answer", self.line.url()))),
        }
    }

    /// The error of a status, with the coordinator's message for users.
    pub(crate) fn user_error(&self, status: &Status) -> anyhow::Error {
        let urls = self.line.urls();
        if rpc::leader_of(status).is_some() {
            return anyhow::anyhow!("no coordinator leads: {} (asked at {urls})", status.message());
        }
        if rpc::is_unavailable(status) {
            return anyhow::anyhow!(
                "no coordinator answers at {urls}: {}; start one with `foil serve`, or name another with --coordinator or \
                 FOIL_COORDINATOR",
                rpc::unreached(status)
            );
        }
        match (status.code(), problem::text(status)) {
            (Code::DeadlineExceeded, _) => {
                anyhow::anyhow!(
                    "{urls} accepts connections but did not answer in time; the coordinator may be stopped or overloaded, or \
                     another program listens there"
                )
            }
            (Code::InvalidArgument, message) => Refused { class: class_of(status), message }.into(),
            (_, message) => anyhow::Error::msg(message),
        }
    }

    /// One request, retried while the coordinator is unavailable, within `deadline`: all requests are
    /// idempotent.
    async fn unary<Q, A, F>(
        &self,
        deadline: Duration,
        request: Q,
        call: impl Fn(JobsClient<LeaderChannel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let has_others = self.line.urls().contains(',');
        let turn = if has_others && deadline == self.deadline { FAILOVER_TIMEOUT } else { deadline };
        let began = Instant::now();
        let attempt = || async {
            let url = self.line.url();
            let left = deadline.saturating_sub(began.elapsed());
            let answer = call(self.jobs.clone(), rpc::request(request.clone(), left));
            let answer = tokio::time::timeout(turn.min(left), answer).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(""))) {
                Err(status) if rpc::timed_out(&status) && has_others && began.elapsed() < deadline => {
                    self.line.fail_over(&url);
                    Err(Status::unavailable(format!("{url} does not answer")))
                }
                Err(status) if rpc::timed_out(&status) => Err(Status::deadline_exceeded("")),
                answer => answer.map(tonic::Response::into_inner),
            }
        };
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_millis(500))
            .without_max_times()
            .with_jitter();
        let mut has_noted = false;
        let note = |status: &Status, _| {
            let is_put_off = rpc::retry_after(status).is_some();
            if (is_put_off || began.elapsed() > QUIET_PERIOD) && !std::mem::replace(&mut has_noted, true) {
                match is_put_off {
                    true => stdout::note(&format!("{}; waiting", status.message())),
                    false => stdout::note(&format!("no answer from {} yet, retrying", self.line.urls())),
                }
            }
        };
        let is_retryable = |status: &Status| {
            if let Some(wait) = rpc::retry_after(status) {
                return began.elapsed() + wait < deadline.min(PUT_OFF_TIMEOUT);
            }
            // Another coordinator may have a valid certificate.
            let may_pass = has_others || !rpc::failed_handshake(status);
            rpc::is_unavailable(status) && may_pass && began.elapsed() < RETRY_TIMEOUT
        };
        let pause = |status: &Status, pause: Option<Duration>| {
            pause.map(|pause| pause + rpc::retry_after(status).unwrap_or_default())
        };
        attempt.retry(pauses).when(is_retryable).adjust(pause).notify(note).await
    }
}

/// A request that the coordinator refused as invalid.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    /// `user` or `data`, like the class of a job's failure.
    pub(crate) class: &'static str,
    message: String,
}

/// The class of a refusal: `data` if the status names a field of the specification's data.
fn class_of(status: &Status) -> &'static str {
    let fields = status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default();
    if fields.iter().any(|violation| violation.field.starts_with("spec.data")) { "data" } else { "user" }
}

/// Joins artifacts that continue from one page to the next.
fn join_pages(parts: Vec<v1::Artifact>) -> Vec<v1::Artifact> {
    let mut whole: Vec<v1::Artifact> = Vec::new();
    for part in parts {
        match whole.last_mut().filter(|last| last.name == part.name && last.phase == part.phase) {
            Some(last) => last.objects.extend(part.objects),
            None => whole.push(part),
        }
    }
    whole
}

/// Whether the job has ended.
pub(crate) fn is_ended(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_coordinator_that_accepts_connections_and_never_answers_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                taken.push(socket);
            }
        });
        for urls in [url.clone(), format!("{url},{url}")] {
            let began = Instant::now();
            let client = Client { deadline: Duration::from_millis(300), ..Client::connect(&urls).unwrap() };
            let error = client.list().await.unwrap_err().to_string();
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            assert!(error.contains("answer"), "{error}");
        }
    }
}

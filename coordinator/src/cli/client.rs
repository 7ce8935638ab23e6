//! The coordinator's public API, as the commands use it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use backon::{ExponentialBuilder, Retryable};
use foil_common::rpc::{self, Line};
use foil_proto::v1;
use foil_proto::v1::jobs_client::JobsClient;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::output;

const DEADLINE: Duration = rpc::UNARY_DEADLINE;
/// For a coordinator to answer: longer than a standby takes to become the leader.
const PATIENCE: Duration = Duration::from_secs(15);
/// Of several coordinators, one that does not answer for so long is left for the next.
const TURN: Duration = Duration::from_secs(4);
/// Submitting reads and splits all of a job's data.
const SUBMIT_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub(crate) struct Client {
    jobs: JobsClient<Line>,
    line: Line,
}

impl Client {
    /// The connection is made at the first request.
    pub(crate) fn connect(urls: &str) -> Result<Self> {
        let line = rpc::connect(urls)?;
        Ok(Self { jobs: JobsClient::new(line.clone()), line })
    }

    pub(crate) fn line(&self) -> Line {
        self.line.clone()
    }

    pub(crate) async fn submit(&self, request: v1::SubmitRequest) -> Result<v1::SubmitResponse> {
        self.unary(SUBMIT_DEADLINE, request, |mut jobs, request| async move { jobs.submit(request).await })
            .await
            .map_err(|status| self.plain(&status))
    }

    pub(crate) async fn get(&self, id: &str) -> Result<v1::Job> {
        self.try_get(id)
            .await?
            .with_context(|| format!("there is no job {id}; `foil list` shows those there are"))
    }

    async fn try_get(&self, id: &str) -> Result<Option<v1::Job>> {
        let request = v1::GetJobRequest { id: id.to_owned() };
        let answer =
            self.unary(DEADLINE, request, |mut jobs, request| async move { jobs.get(request).await });
        match answer.await {
            Ok(job) => Ok(Some(job)),
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
            Err(status) => Err(self.plain(&status)),
        }
    }

    pub(crate) async fn cancel(&self, id: &str) -> Result<v1::Job> {
        let request = v1::CancelJobRequest { id: id.to_owned() };
        self.unary(DEADLINE, request, |mut jobs, request| async move { jobs.cancel(request).await })
            .await
            .map_err(|status| self.plain(&status))
    }

    /// Whether a coordinator answers.
    pub(crate) async fn reach(&self) -> Result<()> {
        let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
        let answer =
            self.unary(DEADLINE, request, |mut jobs, request| async move { jobs.list(request).await });
        answer.await.map(drop).map_err(|status| self.plain(&status))
    }

    /// All jobs, newest first.
    pub(crate) async fn list(&self) -> Result<Vec<v1::Job>> {
        let mut jobs = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListJobsRequest { page_size: 100, page_token };
            let page = self
                .unary(DEADLINE, request, |mut jobs, request| async move { jobs.list(request).await })
                .await
                .map_err(|status| self.plain(&status))?;
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                // Ids begin with the time of submission.
                jobs.sort_by(|a, b| b.id.cmp(&a.id));
                return Ok(jobs);
            }
        }
    }

    /// The job a user means: by id, by the beginning of an id, or the newest of a name.
    pub(crate) async fn find(&self, text: &str) -> Result<v1::Job> {
        if let Some(job) = self.try_get(text).await? {
            return Ok(job);
        }
        let jobs = self.list().await?;
        let id = pick(text, &jobs)?;
        self.get(&id).await
    }

    /// Events after `after_revision`, until the job's last.
    pub(crate) async fn watch(
        &self,
        id: &str,
        after_revision: u64,
    ) -> Result<tonic::Streaming<v1::JobEvent>, Status> {
        let request = v1::WatchJobRequest { id: id.to_owned(), after_revision };
        Ok(self.jobs.clone().watch(request).await?.into_inner())
    }

    /// A status as a user reads it: what the coordinator says, without the transport's words around it.
    pub(crate) fn plain(&self, status: &Status) -> anyhow::Error {
        let urls = self.line.urls();
        if rpc::leader_of(status).is_some() {
            return anyhow::anyhow!("no coordinator leads: {} (asked at {urls})", status.message());
        }
        if rpc::is_unavailable(status) {
            return anyhow::anyhow!(
                "no coordinator answers at {urls}; start one with `foil serve`, or name another with --coordinator or \
                 FOIL_COORDINATOR"
            );
        }
        match (status.code(), status.message()) {
            (Code::DeadlineExceeded, _) => {
                anyhow::anyhow!("the coordinator at {urls} did not answer in time")
            }
            (code, "") => anyhow::anyhow!("the coordinator answered {code:?}"),
            (Code::InvalidArgument, message) => {
                Refused { class: class_of(status), message: message.to_owned() }.into()
            }
            (_, message) => anyhow::Error::msg(message.to_owned()),
        }
    }

    /// One request with a deadline, tried again while the coordinator is unavailable: all are safe to repeat.
    async fn unary<Q, A, F>(
        &self,
        deadline: Duration,
        request: Q,
        call: impl Fn(JobsClient<Line>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let has_others = self.line.urls().contains(',');
        let turn = if has_others && deadline == DEADLINE { TURN } else { deadline };
        let attempt = || async {
            let url = self.line.url();
            let answer = call(self.jobs.clone(), rpc::request(request.clone(), deadline));
            match tokio::time::timeout(turn, answer).await {
                Ok(answer) => answer.map(tonic::Response::into_inner),
                Err(_) if has_others => {
                    self.line.leave(&url);
                    Err(Status::unavailable(format!("{url} does not answer")))
                }
                Err(_) => Err(Status::deadline_exceeded("")),
            }
        };
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_millis(500))
            .without_max_times()
            .with_total_delay(Some(PATIENCE))
            .with_jitter();
        let mut is_told = false;
        let tell = |_: &Status, _| {
            if !std::mem::replace(&mut is_told, true) {
                output::note(&format!("no answer from {} yet, trying again", self.line.urls()));
            }
        };
        attempt.retry(pauses).when(rpc::is_unavailable).notify(tell).await
    }
}

/// What a user asked for cannot be done as it stands.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    /// user or data, as a job's failure has it.
    pub(crate) class: &'static str,
    message: String,
}

/// Whose fault it is: that of the data where the status names a field of the specification's data.
fn class_of(status: &Status) -> &'static str {
    let fields = status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default();
    if fields.iter().any(|violation| violation.field.starts_with("spec.data")) { "data" } else { "user" }
}

fn pick(text: &str, jobs: &[v1::Job]) -> Result<String> {
    if let Some(job) = jobs.iter().find(|job| job.name == text) {
        return Ok(job.id.clone());
    }
    let begun: Vec<&v1::Job> = jobs.iter().filter(|job| job.id.starts_with(text)).collect();
    match begun.as_slice() {
        [job] => Ok(job.id.clone()),
        [] => bail!("there is no job {text}; `foil list` shows those there are"),
        several => bail!("{} jobs' ids begin with {text}; give more of it", several.len()),
    }
}

/// Whether nothing more will happen to the job.
pub(crate) fn is_ended(job: &v1::Job) -> bool {
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_name_or_by_the_beginning_of_its_id() {
        let job = |id: &str, name: &str| v1::Job { id: id.into(), name: name.into(), ..Default::default() };
        let jobs = [job("03-a", "a"), job("02-b", "b"), job("01-a", "a")];
        assert_eq!(pick("a", &jobs).unwrap(), "03-a");
        assert_eq!(pick("02", &jobs).unwrap(), "02-b");
        assert!(pick("0", &jobs).unwrap_err().to_string().contains("3 jobs"));
        assert!(pick("x", &jobs).unwrap_err().to_string().contains("no job x"));
    }
}

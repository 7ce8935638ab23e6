//! Requests of clients: submissions, list pages, and watches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use foil_common::rpc;
use foil_proto::v1;
use foil_proto::v1::jobs_client::JobsClient;
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::Latencies;

/// Number of concurrent submissions while nothing is timed.
const PARALLEL: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE: u32 = 50;

/// A client over one connection, and the address of its coordinator.
#[derive(Clone)]
pub(crate) struct Client(JobsClient<rpc::LeaderChannel>, String);

impl Client {
    pub(crate) fn connect(url: &str) -> Result<Self> {
        Ok(Self(JobsClient::new(rpc::connect(url)?), url.to_owned()))
    }

    /// The specification of a job, with its inputs uploaded.
    pub(crate) async fn spec(&self, id: &str) -> Result<v1::JobSpec> {
        let request = rpc::request(v1::GetJobRequest { id: id.to_owned() }, PATIENCE);
        let job = self.0.clone().get(request).await?.into_inner();
        job.spec.context("a job has a specification")
    }

    /// Submits a job that stays queued, because no agent has the device that it requests.
    async fn submit(&self, spec: &v1::JobSpec) -> Result<Duration> {
        let request_id = format!("{:032x}", fastrand::u128(..));
        let request = v1::SubmitRequest { spec: Some(spec.clone()), request_id, ..Default::default() };
        let began = Instant::now();
        self.0.clone().submit(rpc::request(request, PATIENCE)).await?;
        Ok(began.elapsed())
    }

    pub(crate) async fn submit_many(&self, spec: &v1::JobSpec, count: usize) -> Result<()> {
        let submissions = futures::stream::iter(0..count).map(|_| self.submit(spec));
        submissions.buffer_unordered(PARALLEL).try_for_each(|_| async { Ok(()) }).await
    }

    /// Submits one job after another.
    pub(crate) async fn submit_timed(&self, spec: &v1::JobSpec, count: usize) -> Result<Latencies> {
        let mut latencies = Latencies::default();
        for _ in 0..count {
            latencies.push(self.submit(spec).await?);
        }
        Ok(latencies)
    }

    async fn page(&self, token: String) -> Result<v1::ListJobsResponse, tonic::Status> {
        let request = v1::ListJobsRequest { page_size: PAGE, page_token: token, ..Default::default() };
        Ok(self.0.clone().list(rpc::request(request, PATIENCE)).await?.into_inner())
    }

    /// Lists page after page, starting over after the last one.
    pub(crate) async fn list_timed(&self, count: usize) -> Result<Latencies> {
        let (mut latencies, mut token) = (Latencies::default(), String::new());
        for _ in 0..count {
            let began = Instant::now();
            token = self.page(token).await?.next_page_token;
            latencies.push(began.elapsed());
        }
        Ok(latencies)
    }

    /// Opens watches of the newest jobs. Each is read by a task until it ends, over its own connection, since
    /// the number of streams per connection is bounded.
    pub(crate) async fn watch_some(&self, count: usize) -> Result<Vec<JoinHandle<()>>> {
        let (mut watches, mut token) = (Vec::new(), String::new());
        while watches.len() < count {
            let page = self.page(token).await?;
            for job in page.jobs.into_iter().take(count - watches.len()) {
                let request = v1::WatchJobRequest { id: job.id, ..Default::default() };
                let mut events = Self::connect(&self.1)?.0.watch(request).await?.into_inner();
                events.message().await?.context("a watch begins with the job")?;
                watches.push(tokio::spawn(async move { while let Some(Ok(_)) = events.next().await {} }));
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        Ok(watches)
    }

    /// The number of all jobs, returned as soon as this coordinator leads.
    pub(crate) async fn count_when_led(&self, patience: Duration) -> Result<usize> {
        let since = Instant::now();
        loop {
            match self.page(String::new()).await {
                Ok(page) => return self.count(page).await,
                Err(status) if since.elapsed() > patience => bail!("no leader within {patience:?}: {status}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn count(&self, mut page: v1::ListJobsResponse) -> Result<usize> {
        let mut count = page.jobs.len();
        while !page.next_page_token.is_empty() {
            page = self.page(page.next_page_token).await?;
            count += page.jobs.len();
        }
        Ok(count)
    }
}

//! The Storage service.

use std::time::Duration;

use foil_proto::v1::{self, storage_server::Storage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::ErrorDetails;

use super::auth::{caller, may_change};
use super::deletion::not_pinned;
use super::listing;
use super::status::{RETRY_AFTER, not_leading, status, stopped, store_unavailable};
use crate::collector::{self, Amount, CollectError, Collector, Garbage, Kind, Reason, Summary, Usage};
use crate::driver::{Handle, PinChange};
use crate::leadership::LeadershipHandle;

const DEFAULT_JOBS: u32 = 20;
const MAX_JOBS: u32 = 10_000;
/// Number of batches of garbage that may wait for the caller to read them.
const BACKLOG: usize = 4;

/// The Storage service: usage, garbage and pins.
#[derive(Debug, Clone)]
pub struct StorageService {
    leadership: LeadershipHandle,
    collector: Collector,
}

impl StorageService {
    pub fn new(leadership: LeadershipHandle, collector: Collector) -> Self {
        Self { leadership, collector }
    }

    fn driver(&self) -> Result<Handle, Status> {
        self.leadership.driver().map_err(|why| not_leading(&why))
    }

    async fn change_pin(
        &self,
        request: Request<v1::PinRequest>,
        change: PinChange,
    ) -> Result<Response<v1::Job>, Status> {
        let caller = caller(&request)?;
        let driver = self.driver()?.for_user(&caller);
        let v1::PinRequest { job_id, artifact } = request.into_inner();
        caller.changes(&format!("job/{job_id}"));
        let name = caller.name.clone();
        let permitted =
            driver.inspect(&job_id, move |state| may_change(&caller, &state.id, &state.submitted)).await;
        permitted.map_err(stopped)?.transpose()?;
        let job = driver.pin(&job_id, &artifact, change, &name).await.map_err(stopped)?;
        job.map(Response::new).map_err(|error| not_pinned(&job_id, &error))
    }
}

#[tonic::async_trait]
impl Storage for StorageService {
    async fn usage(&self, request: Request<v1::UsageRequest>) -> Result<Response<v1::UsageResponse>, Status> {
        let scope = caller(&request)?.scope();
        let jobs = listing::page_size(request.into_inner().jobs, DEFAULT_JOBS, MAX_JOBS);
        let usage = self.collector.usage().await.map_err(|error| failed(&error))?;
        Ok(Response::new(wire_usage(usage.within(&scope), jobs)))
    }

    type CollectGarbageStream = ReceiverStream<Result<v1::CollectGarbageResponse, Status>>;

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        let caller = caller(&request)?;
        let v1::CollectGarbageRequest { dry_run, grace_seconds } = request.into_inner();
        self.driver()?;
        if !dry_run {
            caller.changes("garbage");
        }
        let grace = grace_seconds.map_or(collector::GRACE, Duration::from_secs);
        let collector = self.collector.clone();
        let (responses, stream) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            let (batches, mut collected) = mpsc::channel(BACKLOG);
            let collect = collector.collect(grace, dry_run, Some(batches));
            let forward = async {
                while let Some(batch) = collected.recv().await {
                    if responses.send(Ok(wire_batch(batch))).await.is_err() {
                        break;
                    }
                }
                // The collection ends once it cannot report any more.
                drop(collected);
            };
            let (ended, ()) = tokio::join!(collect, forward);
            // A caller that has disconnected needs no response.
            let _ = responses.send(ended.map(wire_summary).map_err(|error| failed(&error))).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::Job>, Status> {
        self.change_pin(request, PinChange::Pin).await
    }

    async fn unpin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::Job>, Status> {
        self.change_pin(request, PinChange::Unpin).await
    }
}

fn failed(error: &CollectError) -> Status {
    match error {
        CollectError::Busy => {
            let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            status(Code::Unavailable, "BUSY", format!("{error}; try again"), retry)
        }
        CollectError::NotLeading(why) => not_leading(why),
        CollectError::Stopped(why) => stopped(*why),
        CollectError::Store(error) if error.is_transient() => store_unavailable(error),
        CollectError::Store(error) => Status::failed_precondition(error.to_string()),
        CollectError::Abandoned => Status::cancelled(error.to_string()),
    }
}

fn wire_batch(batch: Vec<Garbage>) -> v1::CollectGarbageResponse {
    let reason = |reason| match reason {
        Reason::UnnamedInput => v1::GarbageReason::UnnamedInput,
        Reason::DeletedJob => v1::GarbageReason::DeletedJob,
        Reason::AbandonedSubmission => v1::GarbageReason::AbandonedSubmission,
    };
    let object = |garbage: Garbage| v1::GarbageObject {
        key: garbage.key,
        bytes: garbage.bytes,
        reason: reason(garbage.reason).into(),
    };
    v1::CollectGarbageResponse { objects: batch.into_iter().map(object).collect(), summary: None }
}

fn wire_summary(summary: Summary) -> v1::CollectGarbageResponse {
    let Summary { objects, bytes } = summary;
    let summary = Some(v1::GarbageSummary { objects, bytes });
    v1::CollectGarbageResponse { objects: Vec::new(), summary }
}

fn wire_kind(kind: Kind) -> i32 {
    let kind = match kind {
        Kind::Input => v1::ObjectKind::Input,
        Kind::Dataset => v1::ObjectKind::Dataset,
        Kind::Artifact => v1::ObjectKind::Artifact,
        Kind::Checkpoint => v1::ObjectKind::Checkpoint,
        Kind::Log => v1::ObjectKind::Log,
        Kind::Journal => v1::ObjectKind::Journal,
        Kind::Other => v1::ObjectKind::Other,
    };
    kind.into()
}

/// The usage, including the `listed` largest jobs.
fn wire_usage(usage: Usage, listed: usize) -> v1::UsageResponse {
    let Usage { tenants, jobs, total } = usage;
    let tenants = tenants.into_iter().map(|((tenant, kind), Amount { objects, bytes })| v1::StorageUsage {
        tenant,
        kind: wire_kind(kind),
        objects,
        bytes,
    });
    let mut jobs: Vec<_> = jobs.into_iter().collect();
    jobs.sort_by_key(|(_, job)| std::cmp::Reverse(job.bytes()));
    let omitted = jobs.len().saturating_sub(listed);
    jobs.truncate(listed);
    let jobs = jobs.into_iter().map(|(job_id, job)| v1::JobUsage {
        job_id,
        objects: job.kinds.values().map(|amount| amount.objects).sum(),
        bytes: job.bytes(),
        kinds: job
            .kinds
            .into_iter()
            .map(|(kind, Amount { objects, bytes })| v1::KindUsage { kind: wire_kind(kind), objects, bytes })
            .collect(),
        name: job.name,
        tenant: job.tenant,
    });
    v1::UsageResponse {
        tenants: tenants.collect(),
        jobs: jobs.collect(),
        objects: total.objects,
        bytes: total.bytes,
        jobs_omitted: u32::try_from(omitted).unwrap_or(u32::MAX),
    }
}

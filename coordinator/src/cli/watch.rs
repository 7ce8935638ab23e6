//! Following a job to its end.

use std::time::Duration;

use anyhow::Result;
use foil_common::rpc;
use foil_proto::v1;
use foil_proto::v1::job_event::Event;
use tokio::time::Instant;
use tonic::Status;

use super::client::{Client, is_ended};
use super::progress::Progress;

/// How long a coordinator may be away before watching gives up; the job goes on without a watcher.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shows a job's progress until its last event; gives the job as it ended. A lost stream is taken up where it broke.
pub(crate) async fn follow(client: &Client, id: &str, progress: &mut Progress) -> Result<v1::Job> {
    let mut revision = 0;
    let mut lost_since: Option<Instant> = None;
    loop {
        let status = match stream(client, id, &mut revision, &mut lost_since, progress).await {
            Ok(()) => {
                let job = client.get(id).await?;
                if is_ended(&job) {
                    return Ok(job);
                }
                Status::unavailable("the stream of events ended early")
            }
            Err(status) => status,
        };
        if !rpc::is_unavailable(&status) {
            return Err(client.plain(&status));
        }
        let since = *lost_since.get_or_insert_with(|| {
            progress.line("lost the coordinator, connecting again");
            Instant::now()
        });
        if since.elapsed() > PATIENCE {
            return Err(client
                .plain(&status)
                .context(format!("the job goes on; follow it with `foil watch {id}`")));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn stream(
    client: &Client,
    id: &str,
    revision: &mut u64,
    lost_since: &mut Option<Instant>,
    progress: &mut Progress,
) -> Result<(), Status> {
    let mut events = client.watch(id, *revision).await?;
    while let Some(event) = events.message().await? {
        *lost_since = None;
        *revision = event.revision.max(*revision);
        if let Some(event) = &event.event {
            progress.event(event);
            if matches!(event, Event::Job(job) if is_ended(job)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

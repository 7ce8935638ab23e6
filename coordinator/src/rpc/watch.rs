//! The stream of a job's events.

use std::sync::Arc;
use std::time::Duration;

use foil_proto::v1::{self, job_event};
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use super::status::{not_leading, status, stopped};
use crate::driver::Subscription;
use crate::leadership::NotLeading;
use crate::lease::Lease;

/// Stream of a job's events. Ends after the last one, or with an error if the reader is too slow, the
/// coordinator stops, or its lease expires.
pub(super) fn events(
    subscription: Subscription,
    lease: Lease,
) -> impl Stream<Item = Result<v1::JobEvent, Status>> + Send {
    let past = stream::iter(subscription.past).map(|event| Ok(owned(event)));
    let future = stream::unfold((subscription.future, lease), |(receiver, lease)| async move {
        let mut receiver = receiver?;
        let next = tokio::select! {
            next = receiver.recv() => next,
            () = lease.expired() => return Some((Err(not_leading(&NotLeading::LeaseExpired)), (None, lease))),
        };
        match next {
            Ok(event) => {
                let last = ends(&event);
                Some((Ok(owned(event)), ((!last).then_some(receiver), lease)))
            }
            Err(RecvError::Closed) => Some((Err(stopped(crate::driver::Stopped)), (None, lease))),
            Err(RecvError::Lagged(missed)) => Some((Err(too_slow(missed)), (None, lease))),
        }
    });
    past.chain(future)
}

fn owned(event: Arc<v1::JobEvent>) -> v1::JobEvent {
    Arc::unwrap_or_clone(event)
}

fn ends(event: &v1::JobEvent) -> bool {
    let Some(job_event::Event::Job(job)) = &event.event else { return false };
    matches!(job.state(), v1::JobState::Succeeded | v1::JobState::Failed | v1::JobState::Cancelled)
}

fn too_slow(missed: u64) -> Status {
    let message = format!("this reader fell {missed} events behind; watch again from the last revision seen");
    let mut details = ErrorDetails::with_quota_failure_violation("watch", message.clone());
    details.set_retry_info(Some(Duration::ZERO));
    status(Code::ResourceExhausted, "WATCH_TOO_SLOW", message, details)
}

//! gRPC statuses of the Artifacts service, with google.rpc details.

use std::collections::HashMap;
use std::time::Duration;

use foil_common::storage::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(super) use crate::rpc::status::bad_field;
use crate::rpc::status::{DOMAIN, STALE_ATTEMPT, echo, short, status};

/// Delay after which a client should retry.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The same while the store is full, when an operator must free space.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(60);

pub(super) fn busy(problem: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, "BUSY", format!("{problem}; try again"), details)
}

pub(super) fn too_slow(problem: &str) -> Status {
    let details = ErrorDetails::with_quota_failure_violation("upload", problem);
    status(Code::DeadlineExceeded, "UPLOAD_TOO_SLOW", problem, details)
}

pub(super) fn not_found(key: &str) -> Status {
    let key = &echo(key);
    let message = format!("there is no object {key}");
    let details = ErrorDetails::with_resource_info("object", key, "", message.clone());
    status(Code::NotFound, "OBJECT_NOT_FOUND", message, details)
}

pub(super) fn stale(job_id: &str, attempt: u32, current: Option<u32>) -> Status {
    let job_id = &echo(job_id);
    let message = match current {
        Some(current) => format!("attempt {attempt} of job {job_id} is stale: attempt {current} runs now"),
        None => format!("attempt {attempt} of job {job_id} is stale: the job does not run"),
    };
    let metadata = HashMap::from([("job_id".to_owned(), job_id.clone())]);
    let details = ErrorDetails::with_error_info(STALE_ATTEMPT, DOMAIN, metadata);
    Status::with_error_details(Code::Aborted, message, details)
}

/// Status for a writer that is not a rank of its job.
pub(super) fn unauthenticated(job_id: &str) -> Status {
    let message = format!(
        "only ranks of job {} may write its objects, and this writer has not proven to be one",
        echo(job_id)
    );
    status(Code::PermissionDenied, "NOT_A_RANK", message, ErrorDetails::new())
}

/// Status for an agent that is not a rank of a running attempt.
pub(super) fn no_rank() -> Status {
    let message = "only ranks of a running attempt may read with an agent's credentials, and this reader has not proven to be one";
    status(Code::PermissionDenied, "NOT_A_RANK", message, ErrorDetails::new())
}

/// Status for an agent that uploads an input.
pub(super) fn only_users() -> Status {
    let message = "an agent's credentials cannot upload inputs; use those of a user";
    status(Code::PermissionDenied, "ROLE_REQUIRED", message, ErrorDetails::new())
}

pub(super) fn from_store(error: &StoreError) -> Status {
    let message = short(error.to_string());
    match error {
        StoreError::BadKey { reason, .. } => bad_field("key", reason),
        StoreError::NotFound { key, .. } => not_found(key),
        StoreError::Conflict { key, .. } => {
            let details = ErrorDetails::with_resource_info("object", key, "", message.clone());
            status(Code::AlreadyExists, "OBJECT_EXISTS", message, details)
        }
        StoreError::Mismatch { .. } => {
            let details = ErrorDetails::with_bad_request_violation("data", message.clone());
            status(Code::DataLoss, "CHECKSUM_MISMATCH", message, details)
        }
        StoreError::Corrupt { .. } => status(Code::DataLoss, "OBJECT_CORRUPT", message, ErrorDetails::new()),
        StoreError::NoSpace { location, .. } => {
            let mut details = ErrorDetails::with_quota_failure_violation(location, "the store is full");
            details.set_retry_info(Some(FULL_RETRY_AFTER));
            status(Code::ResourceExhausted, "STORE_FULL", message, details)
        }
        StoreError::Unavailable { .. } => busy(&message),
        StoreError::Denied { .. }
        | StoreError::NoBucket { .. }
        | StoreError::Open { .. }
        | StoreError::NotExclusive { .. } => Status::failed_precondition(message),
    }
}

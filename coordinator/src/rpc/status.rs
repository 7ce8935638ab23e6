//! Statuses of the Jobs and Workers services, with google.rpc details.

use std::collections::HashMap;
use std::time::Duration;

use foil_common::rpc;
use foil_common::spec::SpecError;
use foil_common::storage::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::collector::BeingDeleted;
use crate::driver::core::NotAdmitted;
use crate::driver::{Stopped, SubmitError};
use crate::leadership::NotLeading;
use crate::plan::TooLarge;
use crate::resolve::ResolveError;
use crate::schedule::ProtocolError;
use crate::tenant::{QuotaExceeded, RateExceeded};

/// Domain of `ErrorInfo`, whose `reason` clients and ranks use to distinguish errors. proto/README.md lists
/// the reasons.
pub(crate) const DOMAIN: &str = "foil";
pub(crate) const STALE_ATTEMPT: &str = "STALE_ATTEMPT";
pub(crate) const RATE_EXCEEDED: &str = "RATE_EXCEEDED";
const INVALID_FIELD: &str = "INVALID_FIELD";
const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
/// Delay after which a client should retry.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Size limit of a message; the details repeat it.
const MESSAGE_BYTES: usize = 1024;
/// Size limit of the caller's own text within a message.
const ECHO_BYTES: usize = 256;

/// Truncates a text between characters, and marks it as truncated.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    const MARK: &str = "…";
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes.saturating_sub(MARK.len())));
        text.push_str(MARK);
    }
}

/// A message truncated to a length that all clients accept.
pub(crate) fn short(message: impl Into<String>) -> String {
    let mut message = message.into();
    cut(&mut message, MESSAGE_BYTES);
    message
}

/// The caller's own text, truncated but recognizable in a message.
pub(crate) fn echo(text: &str) -> String {
    let mut text = text.to_owned();
    cut(&mut text, ECHO_BYTES);
    text
}

/// A status whose `ErrorInfo` gives the reason.
pub(crate) fn status(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    mut details: ErrorDetails,
) -> Status {
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

pub(super) fn bad_token() -> Status {
    bad_field("page_token", "it is not a token of an earlier page, asked for with the same filters")
}

pub(crate) fn bad_field(field: &str, problem: &str) -> Status {
    let problem = &short(problem);
    let details = ErrorDetails::with_bad_request_violation(field, problem);
    status(Code::InvalidArgument, INVALID_FIELD, format!("{field}: {problem}"), details)
}

pub(crate) fn bad_spec(error: &SpecError) -> Status {
    let field = error.field_path().map_or_else(|| "spec".to_owned(), |path| format!("spec.{path}"));
    let message = short(error.to_string());
    let details = ErrorDetails::with_bad_request_violation(echo(&field), message.clone());
    status(Code::InvalidArgument, INVALID_FIELD, message, details)
}

/// Status for label selectors that violate the syntax.
pub(crate) fn bad_label(error: &SpecError) -> Status {
    let message = short(error.to_string());
    let details = ErrorDetails::with_bad_request_violation("labels", message.clone());
    status(Code::InvalidArgument, INVALID_FIELD, message, details)
}

pub(crate) fn too_large(error: &TooLarge) -> Status {
    let message = error.to_string();
    let details =
        ErrorDetails::with_bad_request_violation(format!("spec.{}", error.field()), message.clone());
    status(Code::InvalidArgument, INVALID_FIELD, message, details)
}

/// Status for inputs that cannot be used, or that temporarily cannot be read.
pub(crate) fn bad_input(error: &ResolveError) -> Status {
    let message = short(error.to_string());
    match (error.field(), error) {
        (Some(field), _) => {
            let details = ErrorDetails::with_bad_request_violation(format!("spec.{field}"), message.clone());
            status(Code::InvalidArgument, INVALID_FIELD, message, details)
        }
        (None, ResolveError::Busy { .. }) => {
            let mut details = ErrorDetails::with_quota_failure_violation("submissions", message.clone());
            details.set_retry_info(Some(RETRY_AFTER));
            status(Code::ResourceExhausted, "TOO_MANY_SUBMISSIONS", message, details)
        }
        (None, _) if error.is_transient() => {
            let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            status(Code::Unavailable, STORE_UNAVAILABLE, message, retry)
        }
        (None, _) if error.is_store_error() => Status::failed_precondition(message),
        (None, _) => Status::internal(message),
    }
}

/// Status for a job that is not accepted.
pub(crate) fn not_submitted(error: SubmitError) -> Status {
    let exceeded = match error {
        SubmitError::Stopped(error) => return stopped(error),
        SubmitError::Quota(exceeded) => exceeded,
        SubmitError::Refused(why) => return super::deletion::refused("", &why),
    };
    quota_exceeded(&exceeded)
}

/// Status for an operation that would exceed a tenant's quota.
pub(crate) fn quota_exceeded(exceeded: &QuotaExceeded) -> Status {
    let message = short(exceeded.to_string());
    let subject = format!("tenant:{}/{}", exceeded.tenant(), exceeded.limit());
    let details = ErrorDetails::with_quota_failure_violation(subject, message.clone());
    status(Code::ResourceExhausted, "QUOTA_EXCEEDED", message, details)
}

/// Status for a call that comes too early.
pub(crate) fn rate_exceeded(exceeded: &RateExceeded) -> Status {
    let message = exceeded.to_string();
    let subject = format!("tenant:{}/requests_per_second", exceeded.tenant);
    let mut details = ErrorDetails::with_quota_failure_violation(subject, message.clone());
    details.set_retry_info(Some(exceeded.wait));
    status(Code::ResourceExhausted, RATE_EXCEEDED, message, details)
}

pub(crate) fn no_job(id: &str) -> Status {
    let id = &echo(id);
    let message = format!("there is no job {id}");
    let details = ErrorDetails::with_resource_info("job", id, "", message.clone());
    status(Code::NotFound, "JOB_NOT_FOUND", message, details)
}

pub(crate) fn other_spec(request_id: &str, job: &str) -> Status {
    let message = format!(
        "the request id {request_id} belongs to job {job} with another specification; give each submission an id of its own"
    );
    let details = ErrorDetails::with_resource_info("job", job, "", message.clone());
    status(Code::AlreadyExists, "REQUEST_ID_REUSED", message, details)
}

/// Status for an agent that may not register.
pub(crate) fn not_admitted(why: &NotAdmitted) -> Status {
    let message = why.to_string();
    match why {
        NotAdmitted::NameTaken(taken) => {
            let details =
                ErrorDetails::with_resource_info("agent", &taken.agent, &taken.host, message.clone());
            status(Code::AlreadyExists, "AGENT_NAME_TAKEN", message, details)
        }
        NotAdmitted::Loopback(_) => {
            status(Code::FailedPrecondition, "AGENT_UNREACHABLE", message, ErrorDetails::new())
        }
    }
}

/// Status for a worker of another version or build.
pub(crate) fn skewed(who: &str, skew: &str) -> Status {
    let message = format!(
        "{who} is rejected: {skew}, and a job gives the same weights on one version only; install the coordinator's \
         version there, or start the coordinator with --allow-version-skew"
    );
    status(Code::FailedPrecondition, "VERSION_SKEW", message, ErrorDetails::new())
}

/// Status for a rank whose report temporarily cannot be verified.
pub(crate) fn store_unavailable(error: &StoreError) -> Status {
    let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, STORE_UNAVAILABLE, error.to_string(), retry)
}

/// Status for a rank whose message is rejected.
pub(crate) fn rejected(error: &ProtocolError) -> Status {
    match error {
        ProtocolError::Stale { .. } => {
            let message = short(format!("{STALE_ATTEMPT}: {error}"));
            status(Code::Aborted, STALE_ATTEMPT, message, ErrorDetails::new())
        }
        ProtocolError::Invalid(problem) | ProtocolError::FalseReport(problem) => {
            bad_field("message", problem)
        }
        ProtocolError::Unauthenticated { .. } => Status::permission_denied(error.to_string()),
    }
}

/// Status for a caller that wants to use an object being deleted as garbage.
pub(crate) fn being_deleted(why: &BeingDeleted) -> Status {
    let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, "BEING_DELETED", format!("{why}; try again"), retry)
}

/// Status that redirects a caller to the leader: the details contain the leader's address, which
/// [`foil_common::rpc::leader_of`] reads.
pub(crate) fn not_leading(why: &NotLeading) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    let leader = match why {
        NotLeading::Elsewhere { leader } => HashMap::from([(rpc::LEADER.to_owned(), leader.clone())]),
        NotLeading::Unknown | NotLeading::LeaseExpired => HashMap::new(),
    };
    details.set_error_info(rpc::NOT_LEADER, DOMAIN, leader);
    Status::with_error_details(Code::Unavailable, why.to_string(), details)
}

pub(crate) fn stopped(_: Stopped) -> Status {
    let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    status(Code::Unavailable, "SHUTTING_DOWN", "the coordinator is shutting down; try again", retry)
}

//! Statuses of deletions and pins, and of the operations that they prevent.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::status::{DOMAIN, bad_field, echo, no_job, short, status};
use crate::driver::{DeleteError, Holder, PinError, Refusal};

pub(super) fn not_deleted(id: &str, error: &DeleteError) -> Status {
    match error {
        DeleteError::NoJob => no_job(id),
        DeleteError::NotEnded { state } => {
            let message = format!(
                "job {id} is {state}, and only a job that has ended can be deleted; stop it with `foil cancel {id}`, or \
                 delete it with --cancel"
            );
            precondition("JOB_NOT_ENDED", id, message)
        }
        DeleteError::Held(holders) => {
            let shown = Holder::describe_all(holders, id).join("; ");
            precondition("JOB_IN_USE", id, format!("job {id} cannot be deleted: {shown}"))
        }
    }
}

fn precondition(reason: &str, job: &str, message: String) -> Status {
    let message = short(message);
    let metadata = HashMap::from([("job_id".to_owned(), job.to_owned())]);
    let mut details = ErrorDetails::with_precondition_failure_violation(reason, job, message.clone());
    details.set_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

pub(super) fn not_pinned(id: &str, error: &PinError) -> Status {
    match error {
        PinError::NoJob => no_job(id),
        PinError::NoArtifact(message) => {
            let details = ErrorDetails::with_resource_info("artifact", id, "", message.clone());
            status(Code::NotFound, "ARTIFACT_NOT_FOUND", message.clone(), details)
        }
    }
}

/// Status for a submission that was valid when it began but is not any more.
pub(super) fn refused(request_id: &str, refusal: &Refusal) -> Status {
    match refusal {
        Refusal::RequestOfDeleted { job } => {
            let message = format!(
                "the request id {} belongs to job {job}, which was deleted; give each submission an id of its own",
                echo(request_id)
            );
            let details = ErrorDetails::with_resource_info("job", job, "", message.clone());
            status(Code::AlreadyExists, "REQUEST_ID_REUSED", message, details)
        }
        Refusal::OriginDeleted { job } => bad_field(
            "spec",
            &format!("it starts from job {job}, which was deleted while this job was submitted"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_deletion_names_who_holds_the_job() {
        let holder = |id: &str| Holder::Job {
            id: id.into(),
            name: "next".into(),
            state: "running",
            artifact: "policy@1".into(),
        };
        let pins = [("policy@2", "alice"), ("", "")]
            .map(|(artifact, by)| Holder::Pin { artifact: artifact.into(), by: by.into() });
        let mut holders = vec![holder("j2")];
        holders.extend(pins);
        let status = not_deleted("j1", &DeleteError::Held(holders.clone()));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("JOB_IN_USE", DOMAIN));
        for part in [
            "job j2 (next), which is running, starts from its policy@1",
            "its policy@2 is pinned by alice (`foil unpin j1/policy@2`)",
            "it is pinned (`foil unpin j1`)",
        ] {
            assert!(status.message().contains(part), "{}", status.message());
        }
        holders.extend((0..100).map(|number| holder(&format!("k{number}"))));
        assert!(not_deleted("j1", &DeleteError::Held(holders)).message().ends_with("; and 98 more"));
        let running = not_deleted("j1", &DeleteError::NotEnded { state: "running" });
        assert!(running.message().contains("`foil cancel j1`"), "{}", running.message());
    }
}

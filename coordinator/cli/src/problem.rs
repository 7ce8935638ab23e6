//! A coordinator's refusal as text: its message, and what its google.rpc details add.

use std::time::Duration;

use tonic::Status;
use tonic_types::StatusExt;

/// One plain text of a status.
pub(crate) fn text(status: &Status) -> String {
    let details = status.get_error_details();
    let mut parts = match status.message() {
        "" => vec![format!("the coordinator answered {:?}", status.code())],
        message => vec![message.to_owned()],
    };
    let bad = details.bad_request().map(|found| &found.field_violations).into_iter().flatten();
    add(&mut parts, bad.map(|violation| (violation.field.as_str(), violation.description.as_str())));
    let quota = details.quota_failure().map(|found| &found.violations).into_iter().flatten();
    add(&mut parts, quota.map(|violation| (violation.subject.as_str(), violation.description.as_str())));
    let unmet = details.precondition_failure().map(|found| &found.violations).into_iter().flatten();
    add(&mut parts, unmet.map(|violation| (violation.subject.as_str(), violation.description.as_str())));
    let delay = details.retry_info().and_then(|found| found.retry_delay);
    parts.extend(delay.map(|delay| format!("try again in {}", seconds(delay))));
    parts.extend(details.help().map(|found| &found.links).into_iter().flatten().map(|link| link.url.clone()));
    parts.join("; ")
}

/// Adds what the text does not contain yet.
fn add<'a>(parts: &mut Vec<String>, told: impl Iterator<Item = (&'a str, &'a str)>) {
    for (subject, description) in told {
        let said = |text: &str| text.is_empty() || parts.iter().any(|part| part.contains(text));
        match (said(subject), said(description)) {
            (_, true) => {}
            (true, false) => parts.push(description.to_owned()),
            (false, false) => parts.push(format!("{subject}: {description}")),
        }
    }
}

fn seconds(delay: Duration) -> String {
    match delay.as_secs() {
        0 => "a moment".to_owned(),
        1 => "a second".to_owned(),
        seconds @ ..120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::ErrorDetails;

    use super::*;

    fn status(message: &str, details: ErrorDetails) -> String {
        text(&Status::with_error_details(Code::ResourceExhausted, message, details))
    }

    #[test]
    fn a_quota_is_told_with_its_subject_and_when_to_try_again() {
        let mut details = ErrorDetails::new();
        details
            .add_quota_failure_violation("tenants/lab", "8 of 8 devices are in use")
            .set_retry_info(Some(Duration::from_secs(30)));
        assert_eq!(
            status("the tenant's quota is used up", details),
            "the tenant's quota is used up; tenants/lab: 8 of 8 devices are in use; try again in 30 seconds"
        );
    }

    #[test]
    fn a_precondition_and_a_field_are_told_once() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("spec.rounds", "must be at least 1")
            .add_precondition_failure_violation("JOB", "jobs/a", "it runs; cancel it first");
        assert_eq!(
            status("spec.rounds: must be at least 1", details),
            "spec.rounds: must be at least 1; jobs/a: it runs; cancel it first"
        );
    }

    #[test]
    fn a_status_without_a_word_has_its_code() {
        assert_eq!(text(&Status::new(Code::Aborted, "")), "the coordinator answered Aborted");
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_millis(100)));
        assert_eq!(status("busy", details), "busy; try again in a moment");
    }
}

//! The failure of a job, as text and as JSON.

use foil_proto::v1;
use serde_json::{Value, json};

/// Maximum number of rows in the text; the JSON has all.
const ROWS_SHOWN: usize = 64;
/// Maximum number of log lines in the text.
const LINES_SHOWN: usize = 10;

/// A failure as a message: what failed, where, and what to do; then the last log lines of the failed rank.
pub(crate) fn failure(job: &v1::Job) -> String {
    let Some(failure) = &job.failure else {
        return match job.state() {
            v1::JobState::Cancelled => format!("job {} was cancelled", job.name),
            _ => format!("job {} is {}", job.name, super::state_name(job)),
        };
    };
    let message = failure.message.trim_end_matches('.');
    let mut text = format!("job {} failed", job.name);
    // The message often names the phase itself.
    if !failure.phase.is_empty() && !message.contains(&failure.phase) {
        text += &format!(" in {}", failure.phase);
        if let Some(rank) = failure.rank {
            text += &format!(" on rank {rank}");
        }
    }
    text += &format!(": {message}");
    let has_advice = message.to_lowercase().contains(&failure.advice.to_lowercase());
    if !has_advice {
        text += &format!("; {}", failure.advice.trim_end_matches('.'));
    }
    let facts = facts(failure);
    if !facts.is_empty() {
        text += &format!("\n({facts})");
    }
    if !failure.rows.is_empty() {
        text += &format!("\nrows: {}", rows(&failure.rows));
    }
    // More would push the message out of sight.
    for line in failure.log_tail.iter().skip(failure.log_tail.len().saturating_sub(LINES_SHOWN)) {
        text += &format!("\n  | {line}");
    }
    text
}

/// The facts of a failure, for example `out_of_memory, attempt 3, step 17`.
fn facts(failure: &v1::JobFailure) -> String {
    let class = match failure.last_class.as_str() {
        "" => failure.class.clone(),
        last => format!("{}, last {last}", failure.class),
    };
    let attempt = (failure.attempt > 0).then(|| format!("attempt {}", failure.attempt));
    let step = failure.step.map(|step| format!("step {step}"));
    let chunk = failure.chunk.map(|chunk| format!("chunk {chunk}"));
    let facts = [Some(class), attempt, step, chunk].into_iter().flatten();
    facts.filter(|fact| !fact.is_empty()).collect::<Vec<_>>().join(", ")
}

fn rows(rows: &[String]) -> String {
    match rows.len().checked_sub(ROWS_SHOWN) {
        None | Some(0) => rows.join(", "),
        Some(more) => format!("{} and {more} more (see `foil get -o json`)", rows[..ROWS_SHOWN].join(", ")),
    }
}

/// The failure as JSON with all keys, `null` if unknown.
pub(super) fn json(failure: &v1::JobFailure) -> Value {
    let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let memory = failure.memory.as_ref().map(|memory| {
        json!({
            "place": memory.place,
            "requested_bytes": memory.requested_bytes,
            "peak_bytes": memory.peak_bytes,
            "limit_bytes": memory.limit_bytes,
            "free_bytes": memory.free_bytes,
        })
    });
    json!({
        "class": failure.class,
        "last_class": non_empty(&failure.last_class),
        "message": failure.message,
        "advice": failure.advice,
        "phase": non_empty(&failure.phase),
        "round": failure.round,
        "rank": failure.rank,
        "step": failure.step,
        "chunk": failure.chunk,
        "attempt": failure.attempt,
        "failed_attempts": failure.failed_attempts,
        "signal": non_empty(&failure.signal),
        "rows": failure.rows,
        "memory": memory,
        "log_tail": failure.log_tail,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{LocalArtifacts, summary};
    use super::*;

    fn failed(failure: v1::JobFailure) -> v1::Job {
        let mut job = super::super::tests::finished_job();
        job.set_state(v1::JobState::Failed);
        v1::Job { failure: Some(failure), ..job }
    }

    #[test]
    fn a_failure_says_what_failed_where_and_what_to_do() {
        let job = failed(v1::JobFailure {
            class: "nonfinite".into(),
            message: "the loss is not finite at step 3".into(),
            advice: "lower reward_step.learning_rate".into(),
            phase: "r01.reward.train".into(),
            rank: Some(1),
            log_tail: vec!["loss NaN".into()],
            round: 1,
            step: Some(3),
            attempt: 2,
            failed_attempts: 1,
            rows: vec!["human pair 5".into(), "golden answer 7".into()],
            ..Default::default()
        });
        assert_eq!(
            failure(&job),
            "job letters failed in r01.reward.train on rank 1: the loss is not finite at step 3; lower \
             reward_step.learning_rate\n(nonfinite, attempt 2, step 3)\nrows: human pair 5, golden answer 7\n  | loss NaN"
        );
        let json = summary(&job, &LocalArtifacts::default(), 1.0);
        assert_eq!(json["state"], "failed");
        let error = &json["error"];
        assert_eq!(
            (&error["class"], &error["step"], &error["round"]),
            (&json!("nonfinite"), &json!(3), &json!(1))
        );
        assert_eq!(error["rows"], json!(["human pair 5", "golden answer 7"]));
        assert_eq!((&error["signal"], &error["memory"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn a_poison_job_reports_its_last_failure() {
        let memory = v1::MemoryShortage { place: "host".into(), limit_bytes: Some(7), ..Default::default() };
        let job = failed(v1::JobFailure {
            class: "no_progress".into(),
            last_class: "out_of_memory".into(),
            message: "3 attempts ended without a commit".into(),
            attempt: 3,
            signal: "SIGKILL".into(),
            memory: Some(memory),
            ..Default::default()
        });
        assert!(failure(&job).contains("(no_progress, last out_of_memory, attempt 3)"), "{}", failure(&job));
        let error = &summary(&job, &LocalArtifacts::default(), 1.0)["error"];
        assert_eq!((&error["signal"], &error["last_class"]), (&json!("SIGKILL"), &json!("out_of_memory")));
        assert_eq!((&error["memory"]["place"], &error["memory"]["limit_bytes"]), (&json!("host"), &json!(7)));
    }
}

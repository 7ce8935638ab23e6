//! Checks of the coordinators: reachability, leadership, versions, and clocks compared with this machine's.

use std::time::{Duration, Instant, SystemTime};

use foil_common::rpc;
use foil_common::version;
use foil_proto::v1;
use foil_proto::v1::jobs_client::JobsClient;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::finding::Finding;
use crate::config::Connection;
use crate::problem;

const CHECK: &str = "coordinator";
const DEADLINE: Duration = Duration::from_secs(10);
/// Clock skew that is tolerated: the date of an answer has whole seconds.
const TOLERATED_SKEW: Duration = Duration::from_secs(5);
/// Clock skew at which certificates and tokens of one machine are not valid on the other.
const BAD_SKEW: Duration = Duration::from_secs(60);

/// Answer of one coordinator.
#[derive(Debug)]
pub(super) struct Answer {
    url: String,
    outcome: Result<(), Status>,
    took: Duration,
    /// Time of arrival, by this machine's clock.
    at: SystemTime,
    /// Time of the answer, by the coordinator's clock.
    date: Option<SystemTime>,
    /// Version and build.
    version: Option<String>,
}

impl Answer {
    /// Whether a coordinator answered, even if it is a standby or refuses this client.
    pub(super) fn is_reached(&self) -> bool {
        self.date.is_some()
    }

    pub(super) fn leads(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// Asks each coordinator separately, so that an unreachable one among several is noticed.
pub(super) async fn ask_all(connection: &Connection) -> Vec<Answer> {
    let mut answers = Vec::new();
    for url in &connection.urls {
        answers.push(ask(url, connection).await);
    }
    answers
}

async fn ask(url: &str, connection: &Connection) -> Answer {
    let began = Instant::now();
    let (outcome, metadata) = match rpc::connect_with(url, &connection.credentials()) {
        Err(error) => (Err(Status::invalid_argument(error.to_string())), MetadataMap::new()),
        Ok(channel) => {
            let request = v1::ListJobsRequest { page_size: 1, ..Default::default() };
            let mut jobs = JobsClient::new(channel);
            let answer = tokio::time::timeout(DEADLINE, jobs.list(rpc::request(request, DEADLINE))).await;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("it did not answer in time"))) {
                Ok(answer) => (Ok(()), answer.metadata().clone()),
                Err(status) => {
                    let metadata = status.metadata().clone();
                    (Err(status), metadata)
                }
            }
        }
    };
    let told = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    Answer {
        url: url.to_owned(),
        outcome,
        took: began.elapsed(),
        at: SystemTime::now(),
        date: told("date").and_then(|date| httpdate::parse_http_date(date).ok()),
        version: told(version::HEADER).map(str::to_owned),
    }
}

/// Judges the answers. A standby is as good as a leader, if some coordinator leads.
pub(super) fn findings(answers: &[Answer]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = answers.iter().map(reached).collect();
    let leads = answers.iter().any(Answer::leads);
    if !leads && answers.iter().any(stands_by) {
        let advice = "wait for the election, or start the leader again; its log says why it ended";
        findings.push(Finding::fail(CHECK, "no coordinator leads", advice));
    }
    findings.extend(answers.iter().filter_map(skew));
    findings.extend(answers.iter().filter_map(clock));
    findings
}

fn stands_by(answer: &Answer) -> bool {
    answer.outcome.as_ref().is_err_and(|status| rpc::leader_of(status).is_some())
}

fn reached(answer: &Answer) -> Finding {
    let Answer { url, outcome, took, .. } = answer;
    match outcome {
        Ok(()) => {
            Finding::ok(CHECK, format!("{url} leads, and answered within {:.1} ms", took.as_secs_f64() * 1e3))
        }
        Err(_) if stands_by(answer) => Finding::ok(CHECK, format!("{url} stands by")),
        Err(status) if status.code() == Code::DeadlineExceeded => Finding::fail(
            CHECK,
            format!("{url} accepts connections but does not answer"),
            "look whether the coordinator is stopped or overloaded, or another program listens there",
        ),
        Err(status) if answer.date.is_some() => Finding::fail(
            CHECK,
            format!("{url} refuses this client: {}", problem::text(status)),
            "check the token, the certificate and the context (`foil config view`)",
        ),
        Err(status) if status.code() == Code::InvalidArgument => Finding::error(CHECK, status.message()),
        Err(status) => Finding::fail(
            CHECK,
            format!("{url} cannot be reached: {}", rpc::unreached(status)),
            "start it with `foil serve`, or name another with --coordinator, FOIL_COORDINATOR or `foil config`",
        ),
    }
}

fn skew(answer: &Answer) -> Option<Finding> {
    let told = answer.version.as_ref()?;
    let (version, build) = told.split_once(' ').unwrap_or((told, ""));
    Some(match version::skew(version, build) {
        None => Finding::ok("version", format!("{} has this program's version, {version}", answer.url)),
        Some(skew) => Finding::warn(
            "version",
            format!("{}: {skew}", answer.url),
            "use one version everywhere: a job gives the same weights on one only",
        ),
    })
}

fn clock(answer: &Answer) -> Option<Finding> {
    let date = answer.date?;
    // The answer was written at some time within the round trip, and its date has no fraction of a second.
    let (earliest, latest) = (date, date + Duration::from_secs(1) + answer.took);
    let (difference, word) = match (answer.at.duration_since(latest), earliest.duration_since(answer.at)) {
        (Ok(ahead), _) => (ahead, "ahead of"),
        (_, Ok(behind)) => (behind, "behind"),
        _ => (Duration::ZERO, "with"),
    };
    let url = &answer.url;
    let message = match difference.as_secs() {
        0 => format!("this clock agrees with that of {url} to a second"),
        seconds => format!("this clock is {seconds} s {word} that of {url}"),
    };
    let advice = "synchronize both clocks (chrony, systemd-timesyncd): certificates and tokens have times";
    Some(match difference {
        bad if bad >= BAD_SKEW => Finding::fail("clock", message, advice),
        seen if seen >= TOLERATED_SKEW => Finding::warn("clock", message, advice),
        _ => Finding::ok("clock", message),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn answer(outcome: Result<(), Status>, at: u64, date: Option<u64>, version: &str) -> Answer {
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Answer {
            url: "http://h:1".into(),
            outcome,
            took: Duration::ZERO,
            at: time(at),
            date: date.map(time),
            version: (!version.is_empty()).then(|| version.to_owned()),
        }
    }

    fn level(answer: &Answer, check: &str) -> Option<Level> {
        let found = findings(std::slice::from_ref(answer));
        found.into_iter().find(|finding| finding.check == check).map(|finding| finding.level)
    }

    #[test]
    fn clocks_may_differ_by_seconds_but_not_by_minutes() {
        for (at, date, expected) in [
            (1000, 1000, Level::Ok),
            (1003, 1000, Level::Ok),
            (1010, 1000, Level::Warn),
            (1000, 1010, Level::Warn),
            (1100, 1000, Level::Fail),
            (1000, 1100, Level::Fail),
        ] {
            let answer = answer(Ok(()), at, Some(date), "");
            assert_eq!(level(&answer, "clock"), Some(expected), "{at} {date}");
        }
        assert_eq!(level(&answer(Ok(()), 1000, None, ""), "clock"), None);
    }

    #[test]
    fn another_version_is_warned_of() {
        let own = format!("{} {}", version::VERSION, version::BUILD);
        assert_eq!(level(&answer(Ok(()), 0, None, &own), "version"), Some(Level::Ok));
        assert_eq!(level(&answer(Ok(()), 0, None, "0.0.1"), "version"), Some(Level::Warn));
    }

    #[test]
    fn a_refusal_and_silence_are_told_apart() {
        let told = |answer: &Answer| reached(answer).message;
        let refused = answer(Err(Status::unauthenticated("no token")), 0, Some(0), "");
        assert!(told(&refused).contains("refuses this client: no token"));
        let silent = answer(Err(Status::deadline_exceeded("")), 0, None, "");
        assert!(told(&silent).contains("does not answer"));
        for failed in [&refused, &silent] {
            assert_eq!(level(failed, CHECK), Some(Level::Fail));
        }
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_fails_with_advice() {
        let connection = Connection::to("http://127.0.0.1:1");
        let answers = ask_all(&connection).await;
        let finding = &findings(&answers)[0];
        assert!(
            finding.level == Level::Fail && finding.message.contains("connection refused"),
            "{finding:?}"
        );
        assert!(finding.advice.as_ref().unwrap().contains("foil serve"), "{finding:?}");
    }
}

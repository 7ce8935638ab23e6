//! `foil logs`: the logs of a job's ranks.

use std::time::SystemTime;

use anyhow::Result;
use clap::Args;
use console::Style;
use foil_common::log_line::{LogLine, plain};
use foil_proto::v1;
use foil_proto::v1::jobs_client::JobsClient;
use serde_json::json;

use super::client::Client;
use super::client_args::{ClientArgs, job_reference};
use super::reconnect::Reconnect;
use super::{duration, size, stdout};

/// Fields that are not shown: the job, and what the prefix of a line shows.
const OMITTED: [&str; 3] = ["job", "attempt", "rank"];

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The job's id, a prefix of it, or the job's name (its newest job).
    #[arg(value_parser = job_reference)]
    job: String,
    /// Only lines of this phase, such as r00.sft; `foil get` shows the phases.
    #[arg(long, value_name = "PHASE", default_value = "", hide_default_value = true)]
    phase: String,
    /// Only lines of this rank.
    #[arg(long, value_name = "N")]
    rank: Option<u32>,
    /// Only lines of this attempt, from 1.
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    /// Only lines from this time on: a duration back from now, such as 10m, or a time, such as
    /// 2026-01-31T14:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only the last N lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tail: Option<u32>,
    /// Keep printing new lines until the job has ended.
    #[arg(short, long)]
    follow: bool,
    /// Print lines as they are stored: one JSON object each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn logs(args: &LogsArgs) -> Result<()> {
    let since = args.since.as_deref().map(|text| time(text, SystemTime::now())).transpose();
    let since = since.map_err(|problem| anyhow::anyhow!("--since: {problem}"))?;
    let client = args.client.connect()?;
    let job = client.find(&args.job).await?;
    let mut printer = Printer::new(args, job.spec.as_ref());
    let mut request = v1::LogsRequest {
        job_id: job.id.clone(),
        phase: args.phase.clone(),
        rank: args.rank,
        attempt: args.attempt,
        since,
        tail: args.tail.unwrap_or_default(),
        follow: args.follow,
        cursor: String::new(),
    };
    let mut reconnect = Reconnect::default();
    let end = loop {
        let status = match read(&client, &mut request, &mut printer, &mut reconnect).await? {
            Ok(end) => break end,
            Err(status) => status,
        };
        reconnect.wait(status).await.map_err(|given_up| client.user_error(&given_up.status))?;
    };
    if let Some(note) = note(&job.id, &end, args.follow, printer.lines) {
        stdout::note(&note);
    }
    Ok(())
}

/// Prints one stream, and keeps in the request where to continue.
async fn read(
    client: &Client,
    request: &mut v1::LogsRequest,
    printer: &mut Printer,
    reconnect: &mut Reconnect,
) -> Result<Result<v1::LogsEnd, tonic::Status>> {
    let mut stream = match JobsClient::new(client.line()).logs(request.clone()).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(Err(tonic::Status::unavailable("the stream of lines ended early"))),
            Err(status) => return Ok(Err(status)),
        };
        reconnect.heard();
        for line in &response.lines {
            printer.print(line)?;
        }
        request.cursor = response.cursor;
        if let Some(end) = response.end {
            return Ok(Ok(end));
        }
    }
}

struct Printer {
    json: bool,
    /// Whether lines begin with their rank, and with their attempt.
    names_rank: bool,
    attempt: Option<u32>,
    lines: u64,
}

impl Printer {
    fn new(args: &LogsArgs, spec: Option<&v1::JobSpec>) -> Self {
        let ranks = spec.and_then(|spec| spec.resources.as_ref()?.ranks).unwrap_or_default();
        Self { json: args.json, names_rank: args.rank.is_none() && ranks != 1, attempt: None, lines: 0 }
    }

    fn print(&mut self, line: &v1::RankLogLine) -> Result<()> {
        self.lines += 1;
        if self.json {
            if line.dropped_bytes == 0 {
                return Ok(stdout::line(&line.line)?);
            }
            let dropped = json!({
                "level": "WARN",
                "target": "foil",
                "attempt": line.attempt,
                "rank": line.rank,
                "message": dropped(line),
            });
            return Ok(stdout::json(&dropped)?);
        }
        if self.attempt.is_some_and(|attempt| attempt != line.attempt) {
            stdout::line(&Style::new().dim().apply_to(format!("attempt {}", line.attempt)).to_string())?;
        }
        self.attempt = Some(line.attempt);
        Ok(stdout::line(&self.text(line))?)
    }

    fn text(&self, line: &v1::RankLogLine) -> String {
        let rank = match self.names_rank {
            true => format!("{} ", color_of(line.rank).apply_to(format!("rank {}", line.rank))),
            false => String::new(),
        };
        if line.dropped_bytes > 0 {
            return format!("{rank}{}", Style::new().yellow().apply_to(dropped(line)));
        }
        let Some(parsed) = LogLine::parse(&line.line) else { return format!("{rank}{}", plain(&line.line)) };
        let level = plain(parsed.text("level"));
        let level = style_of(&level).apply_to(format!("{level:>5}"));
        format!(
            "{rank}{} {level} {}",
            Style::new().dim().apply_to(parsed.timestamp()),
            parsed.message(&OMITTED)
        )
    }
}

fn dropped(line: &v1::RankLogLine) -> String {
    format!(
        "{} of the log of rank {} of attempt {} were dropped here: it grew too large, or the store could not be written",
        size::text(line.dropped_bytes),
        line.rank,
        line.attempt
    )
}

fn color_of(rank: u32) -> Style {
    let styles = [Style::new().cyan(), Style::new().magenta(), Style::new().green(), Style::new().blue()];
    styles[rank as usize % styles.len()].clone()
}

fn style_of(level: &str) -> Style {
    match level {
        "ERROR" => Style::new().red().bold(),
        "WARN" => Style::new().yellow(),
        _ => Style::new(),
    }
}

/// Closing remark on a log that was read to its end.
fn note(job: &str, end: &v1::LogsEnd, follow: bool, lines: u64) -> Option<String> {
    let unfinished = end.unfinished.join(", ");
    match (end.state(), lines) {
        (v1::LogsState::NotStarted, _) => {
            Some(format!("job {job} has not started: it waits for devices; -f waits with it"))
        }
        (v1::LogsState::Running, 0) => {
            Some(format!("job {job} is running, and has logged nothing of this kind yet; -f follows it"))
        }
        (v1::LogsState::Running, _) if !follow => Some(format!("job {job} is still running; -f follows it")),
        (_, _) if !unfinished.is_empty() => Some(format!(
            "the end of the log of {unfinished} is missing: its agent or its host was lost, or the store could not be written"
        )),
        (v1::LogsState::Ended, 0) => Some(format!("job {job} has ended, and its logs have no such lines")),
        _ => None,
    }
}

/// A time, or a duration back from now.
fn time(text: &str, now: SystemTime) -> Result<pbjson_types::Timestamp, String> {
    if let Ok(back) = duration::duration(text) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(back);
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        return Ok(pbjson_types::Timestamp { seconds, nanos: 0 });
    }
    serde_json::from_value(json!(text)).map_err(|_| {
        format!("found {text:?}, expected a duration such as 10m, or a time such as 2026-01-31T14:00:00Z")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_shown_with_its_rank_and_without_what_is_the_same_in_all() {
        let printer = Printer { json: false, names_rank: true, attempt: None, lines: 0 };
        let text = |line: v1::RankLogLine| console::strip_ansi_codes(&printer.text(&line)).into_owned();
        let line = r#"{"time":1764400000.5,"level":"INFO","target":"t","job":"j1","rank":1,"attempt":1,"step":3,"message":"step"}"#;
        let told = v1::RankLogLine { attempt: 1, rank: 1, line: line.into(), dropped_bytes: 0 };
        assert_eq!(text(told), "rank 1 2025-11-29T07:06:40.500Z  INFO step step=3");
        let raw = v1::RankLogLine { line: "\u{1b}[2Jtorn".into(), ..Default::default() };
        assert_eq!(text(raw), "rank 0 \u{fffd}[2Jtorn");
        let dropped = v1::RankLogLine { attempt: 2, rank: 3, dropped_bytes: 2048, ..Default::default() };
        assert!(text(dropped).starts_with("rank 3 2.0 KiB of the log of rank 3 of attempt 2 were dropped"));
    }

    #[test]
    fn the_end_of_a_log_says_what_kind_of_end_it_is() {
        let end = |state: v1::LogsState, unfinished: &[&str]| v1::LogsEnd {
            state: state.into(),
            unfinished: unfinished.iter().map(|name| (*name).to_owned()).collect(),
        };
        let told = |end, lines| note("j1", &end, false, lines).unwrap_or_default();
        assert!(told(end(v1::LogsState::NotStarted, &[]), 0).contains("has not started"));
        assert!(told(end(v1::LogsState::Running, &[]), 7).contains("still running"));
        assert!(
            told(end(v1::LogsState::Ended, &["rank 1 of attempt 2"]), 7)
                .contains("rank 1 of attempt 2 is missing")
        );
        assert!(told(end(v1::LogsState::Ended, &[]), 0).contains("no such lines"));
        assert_eq!(note("j1", &end(v1::LogsState::Ended, &[]), false, 7), None);
    }

    #[test]
    fn a_time_is_absolute_or_back_from_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(time("10m", now).unwrap().seconds, 400);
        assert_eq!(time("1970-01-01T00:01:00Z", now).unwrap().seconds, 60);
        assert!(time("yesterday", now).unwrap_err().contains("10m"));
    }
}

//! Commands on jobs: list, get, artifacts, watch, cancel.

use std::time::SystemTime;

use anyhow::{Result, bail};
use foil_common::plural::counted;
use foil_common::spec;
use foil_proto::v1;
use serde_json::json;

use super::args::{JobArgs, WatchArgs};
use super::client::{Client, is_ended};
use super::client_args::ClientArgs;
use super::output::Output;
use super::progress::Progress;
use super::queue_args::ListArgs;
use super::report::{self, LocalArtifacts};
use super::{output, stdout, terminal, trackers, watch};

pub(crate) async fn list(args: &ListArgs) -> Result<()> {
    let context = || Ok::<_, anyhow::Error>(args.client.connection()?.tenant.unwrap_or_default());
    let request = args.filter.request(context)?;
    let (jobs, next) = args.client.connect()?.rows(request, args.filter.limit()).await?;
    let value = || {
        let jobs: Result<Vec<_>, _> = jobs.iter().map(report::json).collect();
        Ok(json!({ "jobs": jobs?, "next_page_token": next }))
    };
    if output::structured(args.output.format, value, || jobs.iter().map(|job| job.id.clone()))? {
        let rows = if args.output.format == Output::Wide { wide(&jobs) } else { narrow(&jobs, now()) };
        stdout::line(&report::align(&rows))?;
    }
    if !next.is_empty() {
        stdout::note(&format!("there are more jobs; the next page: --page {next}"));
    }
    Ok(())
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A line for each job that fits 80 columns if its name has at most 27 characters.
fn narrow(jobs: &[v1::Job], now: i64) -> Vec<Vec<String>> {
    let mut rows = vec![["ID", "NAME", "STATE", "DONE", "AGE"].map(str::to_owned).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.clone(),
            job.name.clone(),
            report::state_name(job),
            format!("{}/{}", job.phases_done, job.phases_total),
            job.submitted_at.as_ref().map(|at| output::age(now - at.seconds)).unwrap_or_default(),
        ]
    }));
    rows
}

fn wide(jobs: &[v1::Job]) -> Vec<Vec<String>> {
    let head = [
        "ID",
        "NAME",
        "TENANT",
        "OWNER",
        "STATE",
        "PRIORITY",
        "PHASE",
        "DONE",
        "ATTEMPT",
        "SUBMITTED",
        "STARTED",
        "ENDED",
        "LABELS",
        "WAITING",
    ];
    let or_dash = |text: String| if text.is_empty() { "–".to_owned() } else { text };
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(jobs.iter().map(|job| {
        vec![
            job.id.clone(),
            job.name.clone(),
            or_dash(job.tenant.clone()),
            or_dash(job.owner.clone()),
            report::state_name(job),
            job.priority.to_string(),
            or_dash(job.phase.clone()),
            format!("{}/{}", job.phases_done, job.phases_total),
            job.attempt.to_string(),
            or_dash(job.submitted_at.as_ref().map(time).unwrap_or_default()),
            or_dash(job.started_at.as_ref().map(time).unwrap_or_default()),
            or_dash(job.ended_at.as_ref().map(time).unwrap_or_default()),
            or_dash(labels(job)),
            or_dash(job.waiting.as_ref().map(|waiting| waiting.reason.clone()).unwrap_or_default()),
        ]
    }));
    rows
}

/// Labels as they are selected by: `key=value`, separated by commas.
fn labels(job: &v1::Job) -> String {
    let labels = job.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(",")
}

/// A time in RFC 3339, UTC, to the second.
fn time(at: &impl serde::Serialize) -> String {
    let text = serde_json::to_value(at).ok().and_then(|value| value.as_str().map(str::to_owned));
    let text = text.unwrap_or_default();
    let seconds = text.split(['.', '+', 'Z']).next().unwrap_or_default();
    if seconds.is_empty() { text } else { format!("{seconds}Z") }
}

pub(crate) async fn get(args: &JobArgs) -> Result<()> {
    let (client, job) = find(&args.job, &args.client).await?;
    if !output::structured(args.output.format, || report::json(&job), || [job.id.clone()])? {
        return Ok(());
    }
    stdout::line(&format!(
        "{}: {}, {}/{} phases done",
        job.id,
        report::state_name(&job),
        job.phases_done,
        job.phases_total
    ))?;
    if let Some(waiting) = &job.waiting {
        stdout::prose(&waiting.reason)?;
    }
    for line in scheduling(&job) {
        stdout::line(&line)?;
    }
    if let Some(expiry) = expiry(&job) {
        stdout::prose(&expiry)?;
    }
    if !job.phase.is_empty() && job.attempt > 0 {
        let progress = job.progress.as_ref().map(|told| format!(": {}", report::progress(told)));
        let progress = progress.unwrap_or_default();
        stdout::line(&format!("phase {}, attempt {}{progress}", job.phase, job.attempt))?;
    }
    for line in tracker_lines(&job, &client).await {
        stdout::line(&line)?;
    }
    let table = report::table(&job, terminal::stdout_columns());
    if !table.is_empty() {
        stdout::line(&format!("\n{table}"))?;
    }
    if job.failure.is_some() {
        stdout::line("")?;
        stdout::prose(&report::failure(&job))?;
    }
    let sources = job.plan.as_ref().map(report::sources).unwrap_or_default();
    if !sources.is_empty() {
        stdout::line(&format!("\ndata\n  {}", sources.join("\n  ")))?;
    }
    if !job.warnings.is_empty() {
        stdout::line("\nwarnings of the submission")?;
    }
    for warning in &job.warnings {
        stdout::prose(&format!("  {warning}"))?;
    }
    if let Some(spec) = &job.spec {
        stdout::line(&format!("\n{}", report::outline(spec)))?;
        let spec = spec::in_lists(serde_json::to_value(spec)?);
        stdout::line(&format!("\n{}", serde_norway::to_string(&spec)?.trim_end()))?;
    }
    if args.output.format == Output::Wide && !job.artifacts.is_empty() {
        stdout::line(&format!("\n{}", report::align(&artifact_rows(&job, true))))?;
    }
    Ok(())
}

/// Lines on the status of the job's experiment trackers; none if it is unknown.
async fn tracker_lines(job: &v1::Job, client: &Client) -> Vec<String> {
    if !job.spec.as_ref().is_some_and(trackers::any) {
        return Vec::new();
    }
    let asked = trackers::ask(&client.line(), &job.id, u32::MAX).await;
    asked.map(|answer| trackers::lines(&answer.trackers)).unwrap_or_default()
}

/// Lines on the settings of a job's place in the queue that are not the defaults.
fn scheduling(job: &v1::Job) -> impl Iterator<Item = String> {
    let priority = (job.priority != 0).then(|| format!("priority {}", job.priority));
    let labels = (!job.labels.is_empty()).then(|| format!("labels {}", labels(job)));
    let preempted = (job.preemptions > 0)
        .then(|| format!("preempted {} by jobs of higher priority", counted(job.preemptions, "time")));
    [priority, labels, preempted].into_iter().flatten()
}

/// When an ended job will be deleted, or what protects it.
fn expiry(job: &v1::Job) -> Option<String> {
    let at = time(job.expires_at.as_ref()?);
    Some(match job.kept_by.as_slice() {
        [] => format!("is deleted at {at}, by its ttl_after_finished"),
        kept_by => format!("its ttl_after_finished ends at {at}, but it is kept: {}", kept_by.join("; ")),
    })
}

pub(crate) async fn artifacts(args: &JobArgs) -> Result<()> {
    let job = find(&args.job, &args.client).await?.1;
    let format = args.output.format;
    let names = || job.artifacts.iter().map(|artifact| artifact.name.clone());
    if output::structured(format, || serde_json::to_value(&job.artifacts), names)? {
        stdout::line(&report::align(&artifact_rows(&job, format == Output::Wide)))?;
    }
    Ok(())
}

fn artifact_rows(job: &v1::Job, wide: bool) -> Vec<Vec<String>> {
    let head = ["NAME", "KIND", "FILES", "BYTES", "ROUND", "ATTEMPT", "PHASE"];
    let rows = job.artifacts.iter().map(|artifact| {
        [
            artifact.name.clone(),
            artifact.kind.clone(),
            artifact.objects.len().to_string(),
            artifact.objects.iter().map(|object| object.size).sum::<u64>().to_string(),
            artifact.round.to_string(),
            artifact.attempt.to_string(),
            artifact.phase.clone(),
        ]
    });
    let columns = if wide { head.len() } else { 4 };
    std::iter::once(head.map(str::to_owned)).chain(rows).map(|row| row[..columns].to_vec()).collect()
}

pub(crate) async fn watch(args: &WatchArgs) -> Result<()> {
    let started = std::time::Instant::now();
    let (client, job) = find(&args.job, &args.client).await?;
    let format = args.output.format;
    if !matches!(format, Output::Table | Output::Wide) {
        let job = watch::follow(&client, &job.id, &mut watch::Printer::new(format)).await?;
        return require_success(&job);
    }
    let mut progress = Progress::new(args.json);
    let job = watch::follow(&client, &job.id, &mut progress).await?;
    progress.finish();
    if args.json {
        let seconds = started.elapsed().as_secs_f64();
        stdout::json(&report::summary(&job, &LocalArtifacts::default(), seconds))?;
    } else if !job.rounds.is_empty() {
        stdout::line(&format!("\n{}\n", report::table(&job, terminal::stdout_columns())))?;
        for note in report::notes(&job) {
            stdout::prose(&format!("{note}\n"))?;
        }
        if let Some(best) = report::best(&job) {
            stdout::prose(&format!("best round   {} {}", best.round, best.text()))?;
        }
        stdout::prose(&format!("download the results with `foil pull {} DIR`", job.id))?;
    }
    require_success(&job)
}

pub(crate) async fn cancel(args: &JobArgs) -> Result<()> {
    let client = args.client.connect()?;
    let job = client.find_to_change(&args.job).await?;
    if is_ended(&job) {
        bail!("job {} has already ended: {}", job.id, report::state_name(&job));
    }
    let job = client.cancel(&job.id).await?;
    if output::structured(args.output.format, || report::json(&job), || [job.id.clone()])? {
        stdout::line(&format!("{}: {}", job.id, report::state_name(&job)))?;
    }
    Ok(())
}

/// Follows a job to its end on standard error; fails unless it succeeds.
pub(crate) async fn follow(client: &Client, job: &v1::Job, reserve_stdout: bool) -> Result<()> {
    let mut progress = Progress::new(reserve_stdout);
    let job = watch::follow(client, &job.id, &mut progress).await?;
    progress.finish();
    require_success(&job)
}

/// The failure of the job as an error, unless it succeeded.
pub(crate) fn require_success(job: &v1::Job) -> Result<()> {
    match job.state() {
        v1::JobState::Succeeded => Ok(()),
        _ => bail!(report::failure(job)),
    }
}

async fn find(job: &str, args: &ClientArgs) -> Result<(Client, v1::Job)> {
    let client = args.connect()?;
    let job = client.find(job).await?;
    Ok((client, job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiring_job_says_when_it_goes_and_what_keeps_it() {
        let mut job = v1::Job { expires_at: Some(Default::default()), ..Default::default() };
        assert_eq!(expiry(&v1::Job::default()), None);
        let told = expiry(&job).unwrap();
        assert_eq!(told, "is deleted at 1970-01-01T00:00:00Z, by its ttl_after_finished");
        job.kept_by = vec!["it is pinned by alice".into(), "and 2 more".into()];
        assert!(expiry(&job).unwrap().ends_with("but it is kept: it is pinned by alice; and 2 more"));
    }

    #[test]
    fn a_listing_fits_80_columns() {
        let mut job = v1::Job {
            id: "01m8jcg9k3v7t2x5w8y1z4a6b9".into(),
            name: "llama-7b-apo-helpful".into(),
            phase: "r02.policy.generate".into(),
            phases_done: 12,
            phases_total: 130,
            submitted_at: Some(Default::default()),
            priority: -7,
            labels: [("team".to_owned(), "nlp".to_owned()), ("z".to_owned(), String::new())].into(),
            waiting: Some(v1::JobWait { reason: "waits for 8 cuda devices".into(), ..Default::default() }),
            ..Default::default()
        };
        job.set_state(v1::JobState::Cancelling);
        let jobs = [job];
        let table = report::align(&narrow(&jobs, 3 * 86_400));
        let expected = "01m8jcg9k3v7t2x5w8y1z4a6b9  llama-7b-apo-helpful  cancelling  12/130  3d";
        assert_eq!(table.lines().nth(1), Some(expected));
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        let table = report::align(&wide(&jobs));
        for column in
            ["r02.policy.generate", "1970-01-01T00:00:00Z", "waits for 8 cuda devices", " -7 ", "team=nlp,z="]
        {
            assert!(table.contains(column), "{table}");
        }
    }
}

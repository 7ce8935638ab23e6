//! Commands on jobs: list, get, artifacts, watch, cancel.

use anyhow::{Result, bail};
use foil_proto::v1;
use serde_json::json;

use super::args::{JobArgs, ListArgs};
use super::client::{Client, is_ended};
use super::progress::Progress;
use super::report::{self, LocalArtifacts};
use super::{stdout, terminal, watch};

pub(crate) async fn list(args: &ListArgs) -> Result<()> {
    let jobs = args.client.connect()?.list().await?;
    if args.json {
        stdout::json(&json!({ "jobs": jobs.iter().map(report::json).collect::<Result<Vec<_>, _>>()? }))?;
        return Ok(());
    }
    let mut rows = vec![["ID", "NAME", "STATE", "PHASE", "DONE", "SUBMITTED"].map(str::to_owned).to_vec()];
    if jobs.iter().any(|job| job.waiting.is_some()) {
        rows[0].push("WAITING".to_owned());
    }
    for job in &jobs {
        rows.push(vec![
            job.id.clone(),
            job.name.clone(),
            report::state_name(job),
            if job.phase.is_empty() { "–".to_owned() } else { job.phase.clone() },
            format!("{}/{}", job.phases_done, job.phases_total),
            job.submitted_at.as_ref().map(time).unwrap_or_default(),
        ]);
        if let (Some(row), Some(waiting)) = (rows.last_mut(), &job.waiting) {
            row.push(waiting.reason.clone());
        }
    }
    stdout::line(&report::align(&rows))?;
    Ok(())
}

/// A time in RFC 3339, UTC, to the second.
fn time(at: &impl serde::Serialize) -> String {
    let text = serde_json::to_value(at).ok().and_then(|value| value.as_str().map(str::to_owned));
    let text = text.unwrap_or_default();
    let seconds = text.split(['.', '+', 'Z']).next().unwrap_or_default();
    if seconds.is_empty() { text } else { format!("{seconds}Z") }
}

pub(crate) async fn get(args: &JobArgs) -> Result<()> {
    let job = find(args).await?.1;
    if args.json {
        stdout::json(&report::json(&job)?)?;
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
    if !job.phase.is_empty() && job.attempt > 0 {
        let progress = job.progress.as_ref().map(|told| format!(": {}", report::progress(told)));
        let progress = progress.unwrap_or_default();
        stdout::line(&format!("phase {}, attempt {}{progress}", job.phase, job.attempt))?;
    }
    let table = report::table(&job, terminal::stdout_columns());
    if !table.is_empty() {
        stdout::line(&format!("\n{table}"))?;
    }
    if job.failure.is_some() {
        stdout::line("")?;
        stdout::prose(&report::failure(&job))?;
    }
    if let Some(spec) = &job.spec {
        stdout::line(&format!("\n{}", report::outline(spec)))?;
        stdout::line(&format!("\n{}", serde_norway::to_string(spec)?.trim_end()))?;
    }
    Ok(())
}

pub(crate) async fn artifacts(args: &JobArgs) -> Result<()> {
    let job = find(args).await?.1;
    if args.json {
        stdout::json(&serde_json::to_value(&job.artifacts)?)?;
        return Ok(());
    }
    let mut rows = vec![["NAME", "KIND", "PHASE", "FILES", "BYTES"].map(str::to_owned).to_vec()];
    for artifact in &job.artifacts {
        rows.push(vec![
            artifact.name.clone(),
            artifact.kind.clone(),
            artifact.phase.clone(),
            artifact.objects.len().to_string(),
            artifact.objects.iter().map(|object| object.size).sum::<u64>().to_string(),
        ]);
    }
    stdout::line(&report::align(&rows))?;
    Ok(())
}

pub(crate) async fn watch(args: &JobArgs) -> Result<()> {
    let started = std::time::Instant::now();
    let (client, job) = find(args).await?;
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
    if args.json {
        stdout::json(&report::json(&job)?)?;
    } else {
        stdout::line(&format!("{}: {}", job.id, report::state_name(&job)))?;
    }
    Ok(())
}

/// The failure of the job as an error, unless it succeeded.
pub(crate) fn require_success(job: &v1::Job) -> Result<()> {
    match job.state() {
        v1::JobState::Succeeded => Ok(()),
        _ => bail!(report::failure(job)),
    }
}

async fn find(args: &JobArgs) -> Result<(Client, v1::Job)> {
    let client = args.client.connect()?;
    let job = client.find(&args.job).await?;
    Ok((client, job))
}

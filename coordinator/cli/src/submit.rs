//! `foil submit`: validates a job file, uploads its inputs and submits the job.

use std::path::Path;

use anyhow::{Context, Result};
use foil_common::rpc::{LeaderChannel, artifacts};
use foil_common::spec;
use foil_proto::v1;
use ulid::Ulid;

use super::args::SubmitArgs;
use super::inputs::{self, Content, Prepared, Upload};
use super::output::Output;
use super::progress::{self, Progress};
use super::{error_location, jobs, output, paths, remote, report, stdout};
use foil_common::plural::counted;
use foil_coordinator::plan;
use foil_coordinator::resolve::{self, local};

pub(crate) async fn submit(args: &SubmitArgs) -> Result<()> {
    let settings: Vec<String> = args.job.settings.iter().cloned().chain(args.scheduling.settings()).collect();
    let mut job = load_existing(&args.job.file, &settings)?;
    let format = args.output.format;
    if args.dry_run && !args.server {
        let _downloads = remote::fetch(&mut job, &Progress::new(true)).await?;
        return dry_run(job, format).await;
    }
    let client = args.client.connect()?;
    // An upload retries for a long time while the coordinator restarts. A coordinator that is unreachable
    // from the start is reported immediately.
    client.reach().await?;
    let mut progress = Progress::new(true);
    let prepared = prepare(job, &progress).await?;
    upload(client.line(), &prepared.uploads, &progress).await?;
    progress.finish();
    let request = v1::SubmitRequest {
        spec: Some(prepared.spec),
        request_id: args.request_id.clone().unwrap_or_else(|| Ulid::new().to_string().to_lowercase()),
        dry_run: args.dry_run,
    };
    let response = client.submit(request).await?;
    warn(&response.warnings);
    let Some(job) = &response.job else { return show_plan(&response, format) };
    // Otherwise the job could not be found, and a script would submit it again.
    show_submitted(job, format)
        .with_context(|| format!("job {} is submitted, but its id could not be printed", job.id))?;
    match args.wait {
        // Standard output has the job and nothing else.
        true => jobs::follow(&client, job, true).await,
        false => Ok(()),
    }
}

fn show_submitted(job: &v1::Job, format: Output) -> Result<()> {
    match format {
        // For `JOB=$(foil submit …)`.
        Output::Table => Ok(stdout::line(&job.id)?),
        Output::Wide => Ok(stdout::line(&format!("{}  {}  {}", job.id, job.name, report::state_name(job)))?),
        _ => output::structured(format, || report::json(job), || [job.id.clone()]).map(drop),
    }
}

/// Validates everything but the available ranks, without a coordinator.
async fn dry_run(job: spec::Job, format: Output) -> Result<()> {
    let reading = tokio::task::spawn_blocking(move || {
        resolve::local_models(&job)?;
        let local = local::local(&job)?;
        let phases = plan::bounded(&job, &local.datasets())?;
        let plan = v1::Plan { phases: phases.iter().map(Into::into).collect(), datasets: local.summaries };
        let resolved = Some(v1::JobSpec::from(&job));
        Ok::<_, anyhow::Error>(v1::SubmitResponse {
            job: None,
            resolved,
            plan: Some(plan),
            warnings: local.warnings,
        })
    });
    let response = reading.await.context("reading the inputs was aborted")??;
    warn(&response.warnings);
    show_plan(&response, format)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        stdout::note(&format!("warning: {warning}"));
    }
}

/// Reads a job file and its settings; errors name the field, and the line or the setting.
pub(crate) fn load(file: &Path, settings: &[String]) -> Result<spec::Job> {
    let wire = spec::file::load(file, settings).map_err(|error| error_location::located(error, settings))?;
    Ok(spec::Job::try_from(wire)?)
}

/// Like [`load`], of a job whose local files and models must exist.
pub(crate) fn load_existing(file: &Path, settings: &[String]) -> Result<spec::Job> {
    let job = load(file, settings)?;
    paths::require(file, settings, &job)?;
    Ok(job)
}

/// Reads inputs by URL, checks the models and hashes the inputs, on a blocking thread.
pub(crate) async fn prepare(mut job: spec::Job, progress: &Progress) -> Result<Prepared> {
    let downloads = remote::fetch(&mut job, progress).await?;
    let bar = progress.spinner("reading inputs");
    let shown = bar.clone();
    let reading = tokio::task::spawn_blocking(move || {
        resolve::local_models(&job)?;
        let prepared = inputs::prepare(job, &mut |path| shown.set_message(path.display().to_string()))?;
        Ok::<_, anyhow::Error>(prepared)
    });
    let prepared = reading.await.context("reading the inputs was aborted")?;
    bar.finish_and_clear();
    Ok(Prepared { downloads, ..prepared? })
}

/// Uploads the inputs that the store does not have.
pub(crate) async fn upload(line: LeaderChannel, uploads: &[Upload], progress: &Progress) -> Result<()> {
    let total = uploads.iter().map(|upload| upload.object.size).sum();
    let bar = progress.bytes("uploading inputs", total);
    let moved = progress::moves(&bar);
    for upload in uploads {
        let object = match &upload.content {
            Content::File(path) => artifacts::upload_input(&line, path, &moved).await?,
            Content::Bytes(bytes) => {
                moved(upload.object.size);
                artifacts::upload_input_bytes(&line, bytes.clone()).await?
            }
        };
        if object.blake3 != upload.object.blake3 {
            let path = &upload.object.path;
            anyhow::bail!("{path} changed while it was read; leave it alone and submit again");
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn show_plan(response: &v1::SubmitResponse, format: Output) -> Result<()> {
    let plan = response.plan.clone().unwrap_or_default();
    let names = || plan.phases.iter().map(|phase| phase.id.clone());
    if !output::structured(format, || serde_json::to_value(response), names)? {
        return Ok(());
    }
    let mut rows = vec![["PHASE", "KIND", "WORK"].map(str::to_owned).to_vec()];
    for phase in &plan.phases {
        let work = match phase.steps {
            0 => counted(phase.chunks, "chunk"),
            steps => counted(steps, "step"),
        };
        rows.push(vec![phase.id.clone(), phase.kind.clone(), work]);
    }
    stdout::line(&report::align(&rows))?;
    let mut rows = vec![["DATA", "ROWS", "BAD"].map(str::to_owned).to_vec()];
    rows.extend(
        plan.datasets
            .iter()
            .map(|data| vec![data.name.clone(), data.rows.to_string(), data.bad_rows.to_string()]),
    );
    stdout::line(&format!("\n{}", report::align(&rows)))?;
    for line in report::sources(&plan) {
        stdout::line(&format!("  {line}"))?;
    }
    for bad in plan.datasets.iter().flat_map(|data| &data.first_bad) {
        stdout::line(&format!("  {bad}"))?;
    }
    if let Some(spec) = &response.resolved {
        let spec = spec::in_lists(serde_json::to_value(spec)?);
        stdout::line(&format!("\n{}", serde_norway::to_string(&spec)?.trim_end()))?;
    }
    Ok(())
}

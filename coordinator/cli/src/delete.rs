//! Commands that delete jobs and protect them from deletion: delete, pin, unpin.

use anyhow::Result;
use clap::Args;
use foil_proto::v1;
use foil_proto::v1::storage_client::StorageClient;

use super::client::{Client, is_ended};
use super::client_args::{ClientArgs, job_reference};
use super::output::OutputArgs;
use super::progress::Progress;
use super::{output, report, stdout, watch};

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The job's id, at least 4 characters of it, or the job's name (its newest job).
    #[arg(value_parser = job_reference)]
    job: String,
    /// Cancel the job first if it has not ended, and wait for its end.
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The job, or one of its artifacts: JOB/policy@2, or JOB/policy for the last policy.
    #[arg(value_name = "JOB[/ARTIFACT]", value_parser = job_reference)]
    what: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn delete(args: &DeleteArgs) -> Result<()> {
    let client = args.client.connect()?;
    let job = client.find_to_change(&args.job).await?;
    if args.cancel && !is_ended(&job) {
        client.cancel(&job.id).await?;
        watch::follow(&client, &job.id, &mut Progress::new(true)).await?;
    }
    let request = v1::DeleteJobRequest { id: job.id.clone() };
    let deleted: v1::Job = client
        .ask(
            request,
            |line, request| async move { v1::jobs_client::JobsClient::new(line).delete(request).await },
        )
        .await?;
    if output::structured(args.output.format, || report::json(&deleted), || [job.id.clone()])? {
        stdout::line(&format!("{}: deleted", job.id))?;
    }
    Ok(())
}

pub(crate) async fn pin(args: &PinArgs) -> Result<()> {
    let (client, request) = named(args).await?;
    let pin = |line, request| async move { StorageClient::new(line).pin(request).await };
    let job = client.ask(request, pin).await?;
    show(args, &job)
}

pub(crate) async fn unpin(args: &PinArgs) -> Result<()> {
    let (client, request) = named(args).await?;
    let unpin = |line, request| async move { StorageClient::new(line).unpin(request).await };
    let job = client.ask(request, unpin).await?;
    show(args, &job)
}

async fn named(args: &PinArgs) -> Result<(Client, v1::PinRequest)> {
    let (job, artifact) = args.what.split_once('/').unwrap_or((&args.what, ""));
    let client = args.client.connect()?;
    let job_id = client.find_to_change(job).await?.id;
    Ok((client, v1::PinRequest { job_id, artifact: artifact.to_owned() }))
}

/// Prints the pins of a job.
fn show(args: &PinArgs, job: &v1::Job) -> Result<()> {
    let name = |pin: &v1::Pin| match pin.artifact.as_str() {
        "" => job.id.clone(),
        artifact => format!("{}/{artifact}", job.id),
    };
    let names = || job.pins.iter().map(name);
    if output::structured(args.output.format, || serde_json::to_value(&job.pins), names)? {
        let pins = names().collect::<Vec<_>>().join(", ");
        let pins = if pins.is_empty() { "no pins".to_owned() } else { format!("pinned {pins}") };
        stdout::line(&format!("{}: {pins}", job.id))?;
    }
    Ok(())
}

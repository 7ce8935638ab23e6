//! `foil store`: space used in the coordinator's store, garbage collection, and copies of a store.

mod copy;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use foil_proto::v1;
use foil_proto::v1::storage_client::StorageClient;
use serde_json::{Value, json};

use self::copy::CopyArgs;
use crate::client_args::ClientArgs;
use crate::output::{Output, OutputArgs};
use crate::{duration, output, report, size, stdout};

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Shows the objects in the store and their bytes, by tenant, kind and job.
    Usage(UsageArgs),
    /// Deletes unreferenced objects: inputs that no job names, and remains of deleted jobs and of submissions
    /// that were never committed.
    Gc(GcArgs),
    /// Copies a store, even while a coordinator uses it: for a backup, or a move from a directory to a
    /// bucket. It accesses the stores directly, with credentials from the environment.
    Copy(CopyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// Number of jobs to list, those with the most bytes first.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only show what would be deleted, and why.
    #[arg(long)]
    dry_run: bool,
    /// Keep inputs and unfinished submissions younger than this. While a job is being submitted, no job
    /// names its inputs yet, and an upload may take hours.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::duration)]
    grace: Duration,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn store(command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Usage(args) => usage(args).await,
        StoreCommand::Gc(args) => gc(args).await,
        StoreCommand::Copy(args) => copy::copy(args).await,
    }
}

async fn usage(args: &UsageArgs) -> Result<()> {
    let client = args.client.connect()?;
    let count = |line, request| async move { StorageClient::new(line).usage(request).await };
    let usage = client.ask(v1::UsageRequest { jobs: args.jobs }, count).await?;
    let format = args.output.format;
    let names = || usage.jobs.iter().map(|job| job.job_id.clone());
    if !output::structured(format, || serde_json::to_value(&usage), names)? {
        return Ok(());
    }
    stdout::line(&report::align(&tenant_rows(&usage)))?;
    if !usage.jobs.is_empty() {
        stdout::line(&format!("\n{}", report::align(&job_rows(&usage, format == Output::Wide))))?;
    }
    if usage.jobs_omitted > 0 {
        stdout::line(&format!("… and {} more (--jobs)", usage.jobs_omitted))?;
    }
    let jobless = usage.jobs.iter().any(|job| job.tenant.is_empty());
    if jobless
        || usage.tenants.iter().any(|row| row.tenant.is_empty() && row.kind() != v1::ObjectKind::Journal)
    {
        stdout::prose("objects of no tenant are garbage, or will be: see `foil store gc --dry-run`")?;
    }
    Ok(())
}

fn tenant_rows(usage: &v1::UsageResponse) -> Vec<Vec<String>> {
    let mut rows = vec![["TENANT", "KIND", "OBJECTS", "SIZE"].map(str::to_owned).to_vec()];
    rows.extend(usage.tenants.iter().map(|row| {
        vec![or_dash(&row.tenant), kind_name(row.kind()), row.objects.to_string(), size::text(row.bytes)]
    }));
    rows.push(vec!["total".to_owned(), String::new(), usage.objects.to_string(), size::text(usage.bytes)]);
    rows
}

fn job_rows(usage: &v1::UsageResponse, wide: bool) -> Vec<Vec<String>> {
    const KINDS: [v1::ObjectKind; 4] =
        [v1::ObjectKind::Dataset, v1::ObjectKind::Artifact, v1::ObjectKind::Checkpoint, v1::ObjectKind::Log];
    let mut head = ["JOB", "NAME", "OBJECTS", "SIZE"].map(str::to_owned).to_vec();
    if wide {
        head.push("TENANT".to_owned());
        head.extend(KINDS.map(|kind| format!("{}S", kind_name(kind).to_uppercase())));
    }
    let row = |job: &v1::JobUsage| {
        let mut row =
            vec![job.job_id.clone(), or_dash(&job.name), job.objects.to_string(), size::text(job.bytes)];
        if wide {
            row.push(or_dash(&job.tenant));
            row.extend(KINDS.map(|kind| {
                let used = job.kinds.iter().find(|used| used.kind() == kind);
                size::text(used.map_or(0, |used| used.bytes))
            }));
        }
        row
    };
    std::iter::once(head).chain(usage.jobs.iter().map(row)).collect()
}

async fn gc(args: &GcArgs) -> Result<()> {
    let client = args.client.connect()?;
    let request =
        v1::CollectGarbageRequest { dry_run: args.dry_run, grace_seconds: Some(args.grace.as_secs()) };
    let collect = |line, request: tonic::Request<_>| async move {
        // The stream lasts as long as the collection does.
        StorageClient::new(line).collect_garbage(request.into_inner()).await
    };
    let mut stream = client.ask(request, collect).await?;
    let format = args.output.format;
    let verb = if args.dry_run { "would delete" } else { "deleted" };
    let (mut all, mut summary) = (Vec::new(), v1::GarbageSummary::default());
    while let Some(response) = stream.message().await.map_err(|status| client.user_error(&status))? {
        for object in response.objects {
            match format {
                Output::Table | Output::Wide => stdout::line(&format!(
                    "{verb} {}  {}, {}",
                    object.key,
                    size::text(object.bytes),
                    reason(object.reason())
                ))?,
                Output::Name => stdout::line(&object.key)?,
                Output::Json | Output::Yaml => all.push(json!({
                    "key": object.key,
                    "bytes": object.bytes,
                    "reason": reason(object.reason()),
                })),
            }
        }
        summary = response.summary.unwrap_or(summary);
    }
    let v1::GarbageSummary { objects, bytes } = summary;
    let value: Value = json!({ "dry_run": args.dry_run, "objects": all, "count": objects, "bytes": bytes });
    if output::structured(format, || Ok(value), || [])? {
        let plural = foil_common::plural::counted(objects, "object");
        stdout::line(&format!("{verb} {plural}, {}", size::text(bytes)))?;
    }
    Ok(())
}

fn reason(reason: v1::GarbageReason) -> &'static str {
    match reason {
        v1::GarbageReason::UnnamedInput => "an input that no job names",
        v1::GarbageReason::DeletedJob => "of a deleted job",
        v1::GarbageReason::AbandonedSubmission => "of a submission that was never committed",
        v1::GarbageReason::Unspecified => "unknown",
    }
}

fn kind_name(kind: v1::ObjectKind) -> String {
    kind.as_str_name().trim_start_matches("OBJECT_KIND_").to_lowercase()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "–".to_owned() } else { text.to_owned() }
}

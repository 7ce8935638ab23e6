//! `foil run`: runs one job on this machine, with the same coordinator and workers as on a cluster.

mod children;
pub(crate) mod directory;
pub(crate) mod lock;
mod prune;
mod store_lock;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use foil_common::shutdown::{self, Cause};
use foil_common::spec;
use foil_proto::v1;
use serde_json::{Value, json};

use self::children::{Children, Setup};
use self::directory::Directory;
use self::prune::prune_store;
use self::store_lock::StoreLock;
use super::args::{LogFormat, RunArgs};
use super::client::{Client, Refused, is_ended};
use super::inputs::{InputError, Prepared};
use super::progress::Progress;
use super::report::{self, LocalArtifacts};
use super::throughput::duration;
use super::trackers::{self, EVENT_FILES, Mirror};
use super::ui::browser;
use super::{card, jobs, results, stdout, submit, terminal, watch};
use foil_coordinator::job::spec_hash;
use foil_coordinator::rpc::is_device_warning;
use foil_coordinator::trackers::Config;

/// The outcome of a run that did not fail.
enum Outcome {
    Finished(Value),
    /// Stopped by a signal; the same command resumes.
    Stopped(Cause),
}

/// Runs the job to its end. Returns the signal if one stopped it.
pub(crate) async fn run(args: &RunArgs, log_format: LogFormat) -> Result<Option<Cause>> {
    let started = Instant::now();
    match run_job(args, log_format, started).await {
        Ok(Outcome::Finished(summary)) => {
            if args.json {
                stdout::json(&summary)?;
            }
            Ok(None)
        }
        Ok(Outcome::Stopped(cause)) => {
            if args.json {
                stdout::json(&unfinished("stopped", None, started))?;
            }
            stdout::note("stopped; the same command resumes the job");
            Ok(Some(cause))
        }
        Err(failure) => {
            if args.json {
                let summary =
                    failure.summary.unwrap_or_else(|| unfinished("failed", Some(&failure.error), started));
                stdout::json(&summary)?;
            }
            Err(failure.error)
        }
    }
}

/// A failed run, with the summary of its job if there was one.
struct Failure {
    error: anyhow::Error,
    summary: Option<Value>,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), summary: None }
    }
}

fn unfinished(state: &str, error: Option<&anyhow::Error>, started: Instant) -> Value {
    let mut summary =
        report::summary(&v1::Job::default(), &LocalArtifacts::default(), started.elapsed().as_secs_f64());
    summary["job"] = Value::Null;
    summary["name"] = Value::Null;
    summary["state"] = json!(state);
    if let Some(error) = error {
        summary["error"] = json!({ "class": class(error), "message": stdout::chain(error) });
    }
    summary
}

/// The class of a failure without a job, if it is known: user or data.
fn class(error: &anyhow::Error) -> Option<&'static str> {
    let refused = error.downcast_ref::<Refused>().map(|refused| refused.class);
    let is_users = error.is::<spec::SpecError>() || error.is::<InputError>();
    refused.or(is_users.then_some("user"))
}

async fn run_job(args: &RunArgs, log_format: LogFormat, started: Instant) -> Result<Outcome, Failure> {
    let job = load(args)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(job.name.as_str()));
    let resources = job.resources.clone();
    let mut progress = Progress::new(args.json);
    let prepared = submit::prepare(job, &progress).await?;
    let directory = Directory::open(&out, args.fresh, &prepared.spec)?;
    if let Some(summary) = directory.finished() {
        progress.finish();
        if !args.json {
            show_finished(&directory, &summary)?;
        }
        return Ok(Outcome::Finished(summary));
    }
    // The store in the output directory is locked with it.
    let _lock = match &args.store {
        Some(store) => Some(StoreLock::take(store).await?),
        None => None,
    };
    let setup = Setup {
        out: directory.path().to_owned(),
        store: args.store.clone().unwrap_or_else(|| directory.store().to_string_lossy().into_owned()),
        ranks: resources.ranks,
        device: resources.device,
        log_format,
    };
    let stop = shutdown::on_signal()?;
    let mut children = Children::start(&setup).await?;
    let client = Client::connect(children.url())?;
    let result = tokio::select! {
        result = drive_job(&client, &prepared, &directory, &mut progress, args.ui) => result,
        error = children.died() => Err(error.into()),
        () = stop.requested() => Ok(None),
    };
    progress.finish();
    directory.withdraw();
    // The downloads are complete, so the service can stop.
    let (job, artifacts) = match result {
        Ok(Some(ended)) => ended,
        Ok(None) => {
            children.stop().await;
            directory.discard();
            return Ok(Outcome::Stopped(stop.cause().unwrap_or(Cause::Terminate)));
        }
        Err(failure) => {
            children.stop().await;
            if failure.error.is::<Refused>() {
                directory.discard();
            }
            return Err(failure);
        }
    };
    children.stop().await;
    conclude(args, &directory, &job, &artifacts, started)
}

/// Loads the job file with settings and flags.
fn load(args: &RunArgs) -> Result<spec::Job> {
    let mut settings = args.job.settings.clone();
    settings.extend(args.ranks.map(|ranks| format!("resources.ranks={ranks}")));
    settings.extend(args.device.map(|device| format!("resources.device={}", device.name())));
    let mut job = submit::load_existing(&args.job.file, &settings)?;
    // A run's results are downloaded, and the same command finds its job again.
    if job.scheduling.ttl_after_finished.take().is_some() {
        stdout::note("ttl_after_finished has no effect on `foil run`, which removes its own store");
    }
    let trackers = Config::from_env()?;
    trackers.add_implied(&mut job.trackers);
    // Before the job waits for its workers.
    if let Some(lacking) = trackers.refusal(&job.trackers) {
        bail!("{}: trackers.report_to: {lacking}", args.job.file.display());
    }
    Ok(job)
}

/// The client's part: submits the job or finds it again, watches it, and downloads its results.
async fn drive_job(
    client: &Client,
    prepared: &Prepared,
    directory: &Directory,
    progress: &mut Progress,
    show_page: bool,
) -> Result<Option<(v1::Job, LocalArtifacts)>, Failure> {
    // The coordinator answers slightly before it leads, and an upload would log that. The upload itself
    // retries for longer.
    if let Err(error) = client.reach().await {
        tracing::debug!("the coordinator does not lead yet: {error:#}");
    }
    submit::upload(client.line(), &prepared.uploads, progress).await?;
    let response = client.submit(request(client, &prepared.spec).await?).await?;
    // This run's own workers may register a moment later; a job that keeps waiting says so.
    for warning in response.warnings.iter().filter(|warning| !is_device_warning(warning)) {
        progress.line(&format!("warning: {warning}"));
    }
    let job = response.job.context("the coordinator accepted the job but returned no id")?;
    directory.claim(&prepared.spec)?;
    directory.announce(&client.line().url(), &job.id);
    if job.phases_done > 0 && !is_ended(&job) {
        progress.resumes(job.phases_done);
    }
    if show_page {
        let url = format!("{}/jobs/{}", client.line().url().trim_end_matches('/'), job.id);
        progress.line(&format!("page: {url}"));
        browser::open(&url);
    }
    let job = follow(client, &job.id, &prepared.spec, directory, progress).await?;
    // The ranks ran on this machine.
    let hardware = card::hardware();
    match results::download_results(&client.line(), &job, directory.path(), &hardware, progress).await {
        Ok(artifacts) => Ok(Some((job, artifacts))),
        // The job's own failure is more important.
        Err(error) if job.state() != v1::JobState::Succeeded => {
            tracing::warn!("cannot download the results of the job: {error:#}");
            Ok(Some((job, LocalArtifacts::default())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Follows the job to its end, and a little longer if its trackers have not received everything.
async fn follow(
    client: &Client,
    id: &str,
    spec: &v1::JobSpec,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<v1::Job> {
    if !trackers::any(spec) {
        return watch::follow(client, id, progress).await;
    }
    let (line, mut mirror) = (client.line(), Mirror::new(&directory.path().join(EVENT_FILES)));
    let job = tokio::select! {
        job = watch::follow(client, id, progress) => job?,
        () = mirror.follow(&line, id) => bail!("the job's event files were followed to an end"),
    };
    mirror.finish(&line, id, progress).await;
    Ok(job)
}

/// A request that means the same job whenever the same specification is run in the same store. A failed or
/// canceled job does not count: it is run again.
async fn request(client: &Client, spec: &v1::JobSpec) -> Result<v1::SubmitRequest> {
    let jobs = client.list().await?;
    let wanted = spec_hash(spec);
    let (same, others): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.spec_blake3 == wanted);
    if let Some(other) = others.iter().find(|job| !is_ended(job)) {
        bail!(
            "the store has the unfinished job {} of another specification; give another --out or --store, or run \
             with --fresh to remove it",
            other.id
        );
    }
    let unsuccessful =
        same.iter().filter(|job| is_ended(job) && job.state() != v1::JobState::Succeeded).count();
    let hash = blake3::hash(&serde_json::to_vec(&spec::without_scheduling(spec))?).to_hex();
    let request_id = format!("run-{}-{unsuccessful}", &hash[..32]);
    Ok(v1::SubmitRequest { spec: Some(spec.clone()), request_id, dry_run: false })
}

/// Reports the outcome, and after success removes from the store what is not needed.
fn conclude(
    args: &RunArgs,
    directory: &Directory,
    job: &v1::Job,
    artifacts: &LocalArtifacts,
    started: Instant,
) -> Result<Outcome, Failure> {
    let summary = report::summary(job, artifacts, started.elapsed().as_secs_f64());
    directory.finish(&summary)?;
    if let Err(error) = jobs::require_success(job) {
        let error = anyhow!("{error:#}\nlogs: {}", directory.logs().display());
        return Err(Failure { error, summary: Some(summary) });
    }
    if !args.keep && args.store.is_none() {
        prune_store(&directory.store(), job)?;
    }
    if !args.json {
        show(directory, job, started)?;
    }
    Ok(Outcome::Finished(summary))
}

fn show(directory: &Directory, job: &v1::Job, started: Instant) -> Result<()> {
    stdout::line(&format!("\n{}\n", report::table(job, terminal::stdout_columns())))?;
    for note in report::notes(job) {
        stdout::prose(&format!("{note}\n"))?;
    }
    if let Some(best) = report::best(job) {
        let policy = directory.path().join(format!("rounds/policy@{}", best.round));
        stdout::prose(&format!("best round   {} {}", best.round, best.text()))?;
        stdout::line(&format!("             {}", policy.display()))?;
    }
    show_paths(directory)?;
    stdout::line(&format!("took         {}", duration(started.elapsed().as_secs_f64())))?;
    Ok(())
}

fn show_paths(directory: &Directory) -> Result<()> {
    let paths = [
        ("policy", "policy"),
        ("reward model", "reward"),
        ("steps", "metrics.jsonl"),
        ("samples", "samples"),
    ];
    let events = directory.path().join(EVENT_FILES);
    if events.is_dir() {
        stdout::line(&format!("{:<12} tensorboard --logdir {}", "curves", events.display()))?;
    }
    // The page of a run whose store is elsewhere is that of its coordinator.
    let has_page = directory.store().is_dir();
    for (what, name) in paths {
        stdout::line(&format!("{what:<12} {}", directory.path().join(name).display()))?;
    }
    if has_page {
        stdout::line(&format!("{:<12} foil ui {}", "page", directory.path().display()))?;
    }
    Ok(())
}

fn show_finished(directory: &Directory, summary: &Value) -> Result<()> {
    let job = summary["job"].as_str().unwrap_or_default();
    stdout::line(&format!("this job ({job}) has already finished; --fresh runs it again"))?;
    show_paths(directory)
}

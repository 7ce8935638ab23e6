//! `foil run`: one job, played on this machine by the same coordinator and workers that serve a cluster.

mod children;
mod directory;
mod hold;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use foil_common::shutdown::{self, Cause};
use foil_common::spec;
use foil_proto::v1;
use serde_json::{Value, json};

use self::children::{Children, Setup};
use self::directory::Directory;
use self::hold::Hold;
use super::args::{LogFormat, RunArgs};
use super::client::{Client, Refused, is_ended};
use super::inputs::{InputError, Prepared};
use super::progress::Progress;
use super::report::{self, LocalArtifacts};
use super::throughput::duration;
use super::{jobs, results, stdout, submit, terminal, watch};
use foil_coordinator::job::spec_hash;
use foil_coordinator::rpc::is_device_warning;

/// How a run ended, where it did not fail.
enum End {
    Finished(Value),
    /// By a signal; the same command resumes.
    Stopped(Cause),
}

/// Plays the job to its end. Gives the signal where one stopped it.
pub(crate) async fn run(args: &RunArgs, log_format: LogFormat) -> Result<Option<Cause>> {
    let started = Instant::now();
    match play(args, log_format, started).await {
        Ok(End::Finished(summary)) => {
            if args.json {
                stdout::json(&summary)?;
            }
            Ok(None)
        }
        Ok(End::Stopped(cause)) => {
            if args.json {
                stdout::json(&unfinished("stopped", None, started))?;
            }
            stdout::note("stopped; the same command resumes where it was");
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

/// A failed run; where a job was there, with its summary.
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

/// Whose fault a failure without a job is, where that is known: user or data.
fn class(error: &anyhow::Error) -> Option<&'static str> {
    let refused = error.downcast_ref::<Refused>().map(|refused| refused.class);
    let is_users = error.is::<spec::SpecError>() || error.is::<InputError>();
    refused.or(is_users.then_some("user"))
}

async fn play(args: &RunArgs, log_format: LogFormat, started: Instant) -> Result<End, Failure> {
    let job = load(args)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(job.name.as_str()));
    let resources = job.resources.clone();
    let mut progress = Progress::new(args.json);
    let prepared = submit::prepare(job, &progress).await?;
    let directory = Directory::open(&out, args.fresh, &prepared.spec)?;
    if let Some(summary) = directory.finished() {
        progress.finish();
        if !args.json {
            show_earlier(&directory, &summary)?;
        }
        return Ok(End::Finished(summary));
    }
    // The store in the output directory is held with that.
    let _hold = match &args.store {
        Some(store) => Some(Hold::take(store).await?),
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
        result = take_part(&client, &prepared, &directory, &mut progress) => result,
        error = children.died() => Err(error.into()),
        () = stop.requested() => Ok(None),
    };
    progress.finish();
    // The last downloads are done; nobody needs the service any more.
    let (job, artifacts) = match result {
        Ok(Some(ended)) => ended,
        Ok(None) => {
            children.stop().await;
            return Ok(End::Stopped(stop.cause().unwrap_or(Cause::Terminate)));
        }
        Err(failure) => {
            children.stop().await;
            return Err(failure);
        }
    };
    children.stop().await;
    close(args, &directory, &job, &artifacts, started)
}

/// The file with the flags over it.
fn load(args: &RunArgs) -> Result<spec::Job> {
    let mut settings = args.job.settings.clone();
    settings.extend(args.ranks.map(|ranks| format!("resources.ranks={ranks}")));
    settings.extend(args.device.map(|device| format!("resources.device={}", device.name())));
    submit::load(&args.job.file, &settings)
}

/// The client's part: submits the job or finds it again, watches it, and brings its results.
async fn take_part(
    client: &Client,
    prepared: &Prepared,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<Option<(v1::Job, LocalArtifacts)>, Failure> {
    // It answers a moment before it leads, and an upload would be loud about that. Where it takes long, the upload waits longer.
    if let Err(error) = client.reach().await {
        tracing::debug!("uploading to a coordinator that does not lead yet: {error:#}");
    }
    submit::upload(client.line(), &prepared.uploads, progress).await?;
    let response = client.submit(request(client, &prepared.spec).await?).await?;
    // This run's own workers may register a moment later; a job that goes on waiting says so.
    for warning in response.warnings.iter().filter(|warning| !is_device_warning(warning)) {
        progress.line(&format!("warning: {warning}"));
    }
    let job = response.job.context("the coordinator took the job but did not name it")?;
    directory.claim(&prepared.spec)?;
    if job.phases_done > 0 && !is_ended(&job) {
        progress.resumes(job.phases_done);
    }
    let job = watch::follow(client, &job.id, progress).await?;
    match results::bring(&client.line(), &job, directory.path(), progress).await {
        Ok(artifacts) => Ok(Some((job, artifacts))),
        // The job's own failure is the one to tell.
        Err(error) if job.state() != v1::JobState::Succeeded => {
            tracing::warn!("what the job made could not be brought: {error:#}");
            Ok(Some((job, LocalArtifacts::default())))
        }
        Err(error) => Err(error.into()),
    }
}

/// A request that names the same job whenever the same specification is run in the same store. A job that failed or
/// was canceled is not that job any more: it is played again.
async fn request(client: &Client, spec: &v1::JobSpec) -> Result<v1::SubmitRequest> {
    let jobs = client.list().await?;
    let wanted = spec_hash(spec);
    let (same, others): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.spec_blake3 == wanted);
    if let Some(other) = others.iter().find(|job| !is_ended(job)) {
        bail!(
            "the store holds job {}, unfinished and of another specification; give another --out or --store, or run \
             with --fresh to remove it",
            other.id
        );
    }
    let given_up = same.iter().filter(|job| is_ended(job) && job.state() != v1::JobState::Succeeded).count();
    let hash = blake3::hash(&serde_json::to_vec(spec)?).to_hex();
    let request_id = format!("run-{}-{given_up}", &hash[..32]);
    Ok(v1::SubmitRequest { spec: Some(spec.clone()), request_id, dry_run: false })
}

/// Reports, and tidies up after success.
fn close(
    args: &RunArgs,
    directory: &Directory,
    job: &v1::Job,
    artifacts: &LocalArtifacts,
    started: Instant,
) -> Result<End, Failure> {
    let summary = report::summary(job, artifacts, started.elapsed().as_secs_f64());
    directory.finish(&summary)?;
    if let Err(error) = jobs::succeed(job) {
        let error = anyhow!("{error:#}\nlogs: {}", directory.logs().display());
        return Err(Failure { error, summary: Some(summary) });
    }
    if !args.keep && args.store.is_none() {
        directory.remove_store()?;
    }
    if !args.json {
        show(directory, job, started)?;
    }
    Ok(End::Finished(summary))
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
    show_places(directory)?;
    stdout::line(&format!("took         {}", duration(started.elapsed().as_secs_f64())))?;
    Ok(())
}

fn show_places(directory: &Directory) -> Result<()> {
    let places = [
        ("policy", "policy"),
        ("reward model", "reward"),
        ("steps", "metrics.jsonl"),
        ("samples", "samples"),
    ];
    for (what, name) in places {
        stdout::line(&format!("{what:<12} {}", directory.path().join(name).display()))?;
    }
    Ok(())
}

fn show_earlier(directory: &Directory, summary: &Value) -> Result<()> {
    let job = summary["job"].as_str().unwrap_or_default();
    stdout::line(&format!("this job ({job}) is finished already; --fresh plays it anew"))?;
    show_places(directory)
}

//! Runs of an MLflow tracking server.
//!
//! The server is asked what it has: it identifies a run by the job's id in a tag, and knows the last step of
//! each of the run's metrics. Points of a metric are sent in step order, one request at a time, so everything
//! up to that last step has arrived. After a failure, or under a new leader, the server is asked again. An
//! abandoned request may arrive late. The same points have the same times whichever leader sends them, and
//! MLflow's database keeps one of equal points. Completions are [`tables`] among the run's artifacts.

mod api;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use foil_common::version::VERSION;
use serde_json::{Value, json};

pub(super) use self::api::Api;
use self::api::{FoundRun, JOB_TAG};
use self::tables::{Tables, table};
use super::batch::{Batch, JobFacts};
use super::http::{Failure, FailureKind};
use super::points::Point;
use super::samples::Completions;
use super::settings;
use super::source::Ending;
use crate::lease::Lease;
use crate::tenant::DEFAULT_TENANT;

/// MLflow's limits of a request and of the texts in it; older servers accept shorter texts.
const BATCH_POINTS: usize = 1000;
const BATCH_PARAMS: usize = 100;
const PARAM_BYTES: usize = 500;
const TAG_BYTES: usize = 5000;

/// The run of a job.
#[derive(Debug)]
pub(super) struct Run {
    api: Api,
    experiment: String,
    id: String,
    /// The last step of each metric that has arrived.
    latest: BTreeMap<String, i64>,
    /// None if the server does not accept the run's artifacts.
    tables: Option<Tables>,
    /// Why a table was not accepted. Metrics do not wait for it: the delivery fails at the job's end, and
    /// the next attempt begins with that table.
    untaken: Option<Failure>,
}

impl Run {
    /// Finds the job's run, or creates it.
    pub(super) async fn open(api: Api, job: &JobFacts, lease: &Lease) -> Result<Self, Failure> {
        let name = experiment_name(&api.default_experiment, job);
        let experiment = api.experiment(&name, lease).await?;
        let found = match find(&api, &experiment, job, lease).await? {
            Some(found) => found,
            None => {
                let id = api.create_run(&new_run(&experiment, job), lease).await?;
                api.run(&id, lease).await?
            }
        };
        if found.is_deleted {
            let why = format!("MLflow's run {} of the job is deleted; restore it to have the rest", found.id);
            return Err(Failure::new(FailureKind::Refused, why));
        }
        let FoundRun { id, has_params, latest, tables, .. } = found;
        let run = Self { api, experiment, id, latest, tables, untaken: None };
        if !has_params {
            run.log_params(job, lease).await?;
        }
        Ok(run)
    }

    /// The URL of the run's page.
    pub(super) fn page(&self) -> String {
        self.api.page(&self.experiment, &self.id)
    }

    /// Parameters never change, so sending them again is harmless.
    async fn log_params(&self, job: &JobFacts, lease: &Lease) -> Result<(), Failure> {
        let settings = settings::flat(&job.spec);
        let params: Vec<Value> = settings
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": cut(&shown(value), PARAM_BYTES) }))
            .collect();
        for params in params.chunks(BATCH_PARAMS) {
            self.api.log_batch(&json!({ "run_id": self.id, "params": params }), lease).await?;
        }
        Ok(())
    }

    /// Sends the parts of a batch that have not arrived; the end of the job comes last.
    pub(super) async fn send(&mut self, batch: &Batch, lease: &Lease) -> Result<(), Failure> {
        let missing: Vec<&Point> = batch.points.iter().filter(|point| self.lacks(point)).collect();
        for points in missing.chunks(BATCH_POINTS) {
            let metrics: Vec<Value> = points.iter().map(|point| metric(point)).collect();
            self.api.log_batch(&json!({ "run_id": self.id, "metrics": metrics }), lease).await?;
            for point in points {
                self.latest.insert(point.key.to_string(), signed(point.step));
            }
        }
        if let Some(completions) = &batch.completions {
            self.send_completions(completions, lease).await?;
        }
        let Some((at, outcome)) = &batch.ending else { return Ok(()) };
        self.end(*at, outcome, lease).await?;
        self.untaken.take().map_or(Ok(()), Err)
    }

    /// Whether the completions of a round can be sent and have not arrived.
    pub(super) fn lacks_completions(&self, round: u32) -> bool {
        // They are sent in order, because only the last round that has arrived is known.
        self.untaken.is_none() && self.tables.as_ref().is_some_and(|tables| tables.lacks(round))
    }

    async fn send_completions(&mut self, completions: &Completions, lease: &Lease) -> Result<(), Failure> {
        let round = completions.round;
        if !self.lacks_completions(round) {
            return Ok(());
        }
        let Some(tables) = &mut self.tables else { return Ok(()) };
        let put = self.api.put_artifact(&tables.path(round), &table(completions), lease).await;
        match put {
            Ok(()) => {
                let tags = tables.arrived(round).map(|(key, value)| json!({ "key": key, "value": value }));
                self.api.log_batch(&json!({ "run_id": self.id, "tags": tags }), lease).await
            }
            Err(failure) if failure.kind == FailureKind::Obsolete => Err(failure),
            Err(failure) => {
                tracing::warn!(run = self.id, round, why = failure.why, "MLflow does not accept completions");
                let why = format!("completions of round {round} on: {}", failure.why);
                self.untaken = Some(Failure::new(failure.kind, why));
                Ok(())
            }
        }
    }

    fn lacks(&self, point: &Point) -> bool {
        self.latest.get(&*point.key).is_none_or(|last| signed(point.step) > *last)
    }

    async fn end(&self, at: u64, outcome: &Ending, lease: &Lease) -> Result<(), Failure> {
        let status = match outcome {
            Ending::Succeeded => "FINISHED",
            Ending::Cancelled => "KILLED",
            Ending::Failed(why) => {
                let tag = json!({ "key": "foil.failure", "value": cut(why, TAG_BYTES) });
                self.api.log_batch(&json!({ "run_id": self.id, "tags": [tag] }), lease).await?;
                "FAILED"
            }
        };
        let body = json!({ "run_id": self.id, "status": status, "end_time": signed(at) });
        self.api.update_run(&body, lease).await
    }
}

/// The job's run on the server. If an abandoned creation request arrived late, there are two runs, and the
/// one with metrics counts.
async fn find(
    api: &Api,
    experiment: &str,
    job: &JobFacts,
    lease: &Lease,
) -> Result<Option<FoundRun>, Failure> {
    let mut first = None;
    for id in api.runs_of(experiment, &job.id, lease).await? {
        let run = api.run(&id, lease).await?;
        if !run.latest.is_empty() {
            return Ok(Some(run));
        }
        first = first.or(Some(run));
    }
    Ok(first)
}

/// Tenants share the server, so each has its own experiments.
fn experiment_name(default: &str, job: &JobFacts) -> String {
    let name = job.experiment.as_deref().unwrap_or(default);
    match job.tenant.as_str() {
        DEFAULT_TENANT => name.to_owned(),
        tenant => format!("{tenant}/{name}"),
    }
}

fn new_run(experiment: &str, job: &JobFacts) -> Value {
    let tag = |key: &str, value: &str| json!({ "key": key, "value": cut(value, TAG_BYTES) });
    let mut tags = vec![
        tag(JOB_TAG, &job.id),
        tag("foil.job_name", &job.name),
        tag("foil.tenant", &job.tenant),
        tag("foil.version", VERSION),
        tag("mlflow.source.name", "foil"),
        tag("mlflow.source.type", "JOB"),
    ];
    if !job.owner.is_empty() {
        tags.push(tag("mlflow.user", &job.owner));
    }
    tags.extend(job.labels.iter().map(|(key, value)| tag(&format!("foil.label.{key}"), value)));
    json!({
        "experiment_id": experiment,
        "run_name": job.run_name,
        "start_time": signed(job.submitted_at),
        "tags": tags,
    })
}

fn metric(point: &Point) -> Value {
    json!({ "key": &*point.key, "value": point.value, "timestamp": signed(point.at), "step": signed(point.step) })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn cut(text: &str, bytes: usize) -> String {
    const MARK: &str = "…";
    match text.len() <= bytes {
        true => text.to_owned(),
        false => format!("{}{MARK}", &text[..text.floor_char_boundary(bytes - MARK.len())]),
    }
}

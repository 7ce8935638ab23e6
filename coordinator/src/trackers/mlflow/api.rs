//! The calls of MLflow's REST API 2.0 used to deliver a run.

use std::collections::BTreeMap;

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::super::config::MlflowConfig;
use super::super::http::{Answer, Failure, FailureKind, Server};
use super::tables::Tables;
use crate::lease::Lease;

const NAME: &str = "MLflow";
const CREDENTIAL_ADVICE: &str = "check MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD, in the coordinator's environment";
/// The tag that identifies a job's run.
pub(super) const JOB_TAG: &str = "foil.job_id";

/// An MLflow server. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::trackers) struct Api {
    server: Server,
    url: String,
    pub(super) default_experiment: String,
}

/// A run as stored on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundRun {
    pub(super) id: String,
    pub(super) is_deleted: bool,
    pub(super) has_params: bool,
    /// The last step of each metric.
    pub(super) latest: BTreeMap<String, i64>,
    /// None if the server does not accept the run's artifacts.
    pub(super) tables: Option<Tables>,
}

impl Api {
    pub(in crate::trackers) fn new(config: &MlflowConfig) -> Result<Self, String> {
        let server = Server::new(NAME, config.ca.as_ref(), config.credential.clone())?;
        Ok(Self { server, url: config.url.clone(), default_experiment: config.experiment.clone() })
    }

    fn at(&self, call: &str) -> String {
        format!("{}/api/2.0/mlflow/{call}", self.url)
    }

    async fn send(&self, request: RequestBuilder, lease: &Lease) -> Result<Answer, Failure> {
        self.server.send(request, lease).await
    }

    /// The body of a successful response.
    fn good(&self, answer: Answer) -> Result<Value, Failure> {
        match answer.status {
            StatusCode::OK => Ok(answer.body),
            _ => Err(self.server.refusal(&answer, CREDENTIAL_ADVICE)),
        }
    }

    async fn post(&self, call: &str, body: &Value, lease: &Lease) -> Result<Value, Failure> {
        let answer = self.send(self.server.post(&self.at(call), body), lease).await?;
        self.good(answer)
    }

    /// The id of an experiment, which is created if none has this name.
    pub(super) async fn experiment(&self, name: &str, lease: &Lease) -> Result<String, Failure> {
        for _ in 0..2 {
            let query = [("experiment_name", name)];
            let url = self.with_query("experiments/get-by-name", &query)?;
            let answer = self.send(self.server.get(&url), lease).await?;
            if !has_code(&answer, "RESOURCE_DOES_NOT_EXIST") {
                let found = self.good(answer)?;
                if found["experiment"]["lifecycle_stage"] == "deleted" {
                    let why = format!(
                        "MLflow's experiment {name} is deleted; restore it, or name another in trackers.experiment"
                    );
                    return Err(Failure::new(FailureKind::Refused, why));
                }
                return text(&found["experiment"], "experiment_id");
            }
            let create = self.server.post(&self.at("experiments/create"), &json!({ "name": name }));
            let made = self.send(create, lease).await?;
            // Another client may have created it in the meantime.
            if !has_code(&made, "RESOURCE_ALREADY_EXISTS") {
                return text(&self.good(made)?, "experiment_id");
            }
        }
        Err(nonsense("experiments/create"))
    }

    fn with_query(&self, call: &str, query: &[(&str, &str)]) -> Result<String, Failure> {
        let url = url::Url::parse_with_params(&self.at(call), query);
        url.map(String::from).map_err(|_| nonsense(call))
    }

    /// The ids of a job's runs, in order.
    pub(super) async fn runs_of(
        &self,
        experiment: &str,
        job: &str,
        lease: &Lease,
    ) -> Result<Vec<String>, Failure> {
        let body = json!({
            "experiment_ids": [experiment],
            // Job ids contain no quotes.
            "filter": format!("tags.`{JOB_TAG}` = '{job}'"),
            "run_view_type": "ALL",
            "max_results": 20,
        });
        let found = self.post("runs/search", &body, lease).await?;
        let runs = found["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut ids = runs.iter().map(|run| text(&run["info"], "run_id")).collect::<Result<Vec<_>, _>>()?;
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) async fn create_run(&self, body: &Value, lease: &Lease) -> Result<String, Failure> {
        let made = self.post("runs/create", body, lease).await?;
        text(&made["run"]["info"], "run_id")
    }

    pub(super) async fn run(&self, id: &str, lease: &Lease) -> Result<FoundRun, Failure> {
        let url = self.with_query("runs/get", &[("run_id", id)])?;
        let answer = self.send(self.server.get(&url), lease).await?;
        let found = self.good(answer)?;
        parse_run(id, &found["run"])
    }

    pub(super) async fn log_batch(&self, body: &Value, lease: &Lease) -> Result<(), Failure> {
        self.post("runs/log-batch", body, lease).await.map(drop)
    }

    pub(super) async fn update_run(&self, body: &Value, lease: &Lease) -> Result<(), Failure> {
        self.post("runs/update", body, lease).await.map(drop)
    }

    /// Stores a file among the artifacts that the server keeps, replacing any existing one.
    pub(super) async fn put_artifact(&self, path: &str, body: &Value, lease: &Lease) -> Result<(), Failure> {
        let url = format!("{}/api/2.0/mlflow-artifacts/artifacts/{path}", self.url);
        let answer = self.send(self.server.put(&url, body), lease).await?;
        self.good(answer).map(drop)
    }

    /// The URL of a run's page.
    pub(super) fn page(&self, experiment: &str, run: &str) -> String {
        format!("{}/#/experiments/{experiment}/runs/{run}", self.url)
    }
}

fn parse_run(id: &str, run: &Value) -> Result<FoundRun, Failure> {
    let metrics = run["data"]["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
    let step = |metric: &Value| {
        // Protobuf's JSON may encode 64-bit numbers as strings.
        let step = &metric["step"];
        let step = step.as_i64().or_else(|| step.as_str()?.parse().ok()).unwrap_or_default();
        Some((metric["key"].as_str()?.to_owned(), step))
    };
    let latest = metrics.iter().map(step).collect::<Option<BTreeMap<_, _>>>();
    let tags = run["data"]["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
    let tag = |tag: &Value| Some((tag["key"].as_str()?.to_owned(), tag["value"].as_str()?.to_owned()));
    let tags = tags.iter().filter_map(tag).collect();
    let artifact_uri = run["info"]["artifact_uri"].as_str().unwrap_or_default();
    Ok(FoundRun {
        id: id.to_owned(),
        is_deleted: text(&run["info"], "lifecycle_stage")? == "deleted",
        has_params: run["data"]["params"].as_array().is_some_and(|params| !params.is_empty()),
        latest: latest.ok_or_else(|| nonsense("runs/get"))?,
        tables: Tables::of_run(artifact_uri, &tags),
    })
}

fn has_code(answer: &Answer, code: &str) -> bool {
    !answer.status.is_success() && answer.body["error_code"] == code
}

fn text(object: &Value, field: &str) -> Result<String, Failure> {
    let text = object[field].as_str().filter(|text| !text.is_empty() && text.len() <= 256);
    text.map(str::to_owned).ok_or_else(|| nonsense(field))
}

fn nonsense(what: &str) -> Failure {
    let why =
        format!("MLflow's answer lacks {what}; is MLFLOW_TRACKING_URI the address of an MLflow server?");
    Failure::new(FailureKind::Refused, why)
}

//! An MLflow server that keeps every value that it receives, even repeated ones. Unlike MLflow's own server,
//! it shows whether something is sent twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use crate::{HttpRequest, HttpServer};

/// A run.
#[derive(Debug, Clone, Default)]
pub struct SentRun {
    pub id: String,
    pub name: String,
    pub status: String,
    pub tags: BTreeMap<String, String>,
    pub params: BTreeMap<String, String>,
    /// Every value by metric and step, in order of arrival.
    pub metrics: BTreeMap<(String, i64), Vec<f64>>,
    /// Every received table by its path among the run's artifacts, including repetitions.
    pub tables: BTreeMap<String, Vec<Value>>,
}

#[derive(Debug, Default)]
struct State {
    experiments: Vec<String>,
    runs: Vec<SentRun>,
    /// Whether to answer 503 to every request.
    is_down: bool,
    requests: usize,
    /// The received values of `authorization`.
    authorizations: Vec<String>,
}

/// A server in this process that ends when it is dropped.
pub struct MlflowServer {
    server: HttpServer,
    state: Arc<Mutex<State>>,
}

impl Default for MlflowServer {
    fn default() -> Self {
        Self::start()
    }
}

impl MlflowServer {
    pub fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let of_server = Arc::clone(&state);
        let server = HttpServer::start(None, move |request| {
            let mut state = of_server.lock().expect("no panic");
            state.requests += 1;
            let authorization = request.header("authorization").unwrap_or_default().to_owned();
            state.authorizations.push(authorization);
            match state.is_down {
                true => (503, "the database is away".to_owned()),
                false => state.answer(&request),
            }
        });
        Self { server, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// Makes the server answer 503 to every request, or work again.
    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
    }

    pub fn requests(&self) -> usize {
        self.state().requests
    }

    pub fn runs(&self) -> Vec<SentRun> {
        self.state().runs.clone()
    }

    pub fn experiments(&self) -> Vec<String> {
        self.state().experiments.clone()
    }

    pub fn authorizations(&self) -> Vec<String> {
        self.state().authorizations.clone()
    }
}

fn refused(code: &str) -> (u16, String) {
    let status = if code == "RESOURCE_DOES_NOT_EXIST" { 404 } else { 400 };
    (status, json!({ "error_code": code, "message": code }).to_string())
}

impl State {
    fn answer(&mut self, request: &HttpRequest) -> (u16, String) {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let call = path.strip_prefix("/api/2.0/mlflow/").unwrap_or_default();
        let asked = query.split_once('=').map_or("", |(_, value)| value);
        let answered = match (request.method.as_str(), call) {
            ("GET", "experiments/get-by-name") => self.experiment(asked),
            ("POST", "experiments/create") => self.create_experiment(text(&body["name"])),
            ("POST", "runs/search") => Ok(self.search(text(&body["filter"]))),
            ("POST", "runs/create") => Ok(self.create(&body)),
            ("GET", "runs/get") => self.run(asked).map(|run| json!({ "run": shown(run) })),
            ("POST", "runs/log-batch") => self.log(&body),
            ("POST", "runs/update") => self.update(&body),
            ("PUT", _) => self.put(path, body),
            _ => Err("ENDPOINT_NOT_FOUND"),
        };
        match answered {
            Ok(body) => (200, body.to_string()),
            Err(code) => refused(code),
        }
    }

    fn experiment(&self, name: &str) -> Result<Value, &'static str> {
        let name = name.replace('+', " ").replace("%2F", "/");
        let at = self.experiments.iter().position(|known| *known == name);
        let at = at.ok_or("RESOURCE_DOES_NOT_EXIST")?;
        Ok(json!({ "experiment": { "experiment_id": at.to_string(), "lifecycle_stage": "active" } }))
    }

    fn create_experiment(&mut self, name: &str) -> Result<Value, &'static str> {
        if self.experiments.iter().any(|known| known == name) {
            return Err("RESOURCE_ALREADY_EXISTS");
        }
        self.experiments.push(name.to_owned());
        Ok(json!({ "experiment_id": (self.experiments.len() - 1).to_string() }))
    }

    fn search(&self, filter: &str) -> Value {
        let wanted = filter.split('\'').nth(1).unwrap_or_default();
        let found = self.runs.iter().filter(|run| run.tags.get("foil.job_id").is_some_and(|id| id == wanted));
        json!({ "runs": found.map(shown).collect::<Vec<_>>() })
    }

    fn create(&mut self, body: &Value) -> Value {
        let run = SentRun {
            id: format!("{:032}", self.runs.len()),
            name: text(&body["run_name"]).to_owned(),
            status: "RUNNING".to_owned(),
            tags: pairs(&body["tags"]),
            ..SentRun::default()
        };
        self.runs.push(run.clone());
        json!({ "run": shown(&run) })
    }

    fn run(&mut self, id: &str) -> Result<&mut SentRun, &'static str> {
        self.runs.iter_mut().find(|run| run.id == id).ok_or("RESOURCE_DOES_NOT_EXIST")
    }

    fn log(&mut self, body: &Value) -> Result<Value, &'static str> {
        let metrics = body["metrics"].as_array().cloned().unwrap_or_default();
        if metrics.len() > 1000 || body["params"].as_array().is_some_and(|params| params.len() > 100) {
            return Err("INVALID_PARAMETER_VALUE");
        }
        let run = self.run(text(&body["run_id"]))?;
        for metric in metrics {
            let key = (text(&metric["key"]).to_owned(), metric["step"].as_i64().expect("a step"));
            run.metrics.entry(key).or_default().push(metric["value"].as_f64().expect("a value"));
        }
        run.params.extend(pairs(&body["params"]));
        run.tags.extend(pairs(&body["tags"]));
        Ok(json!({}))
    }

    fn put(&mut self, path: &str, body: Value) -> Result<Value, &'static str> {
        let path = path.strip_prefix("/api/2.0/mlflow-artifacts/artifacts/0/").ok_or("ENDPOINT_NOT_FOUND")?;
        let (id, path) = path.split_once("/artifacts/").ok_or("INVALID_PARAMETER_VALUE")?;
        self.run(id)?.tables.entry(path.to_owned()).or_default().push(body);
        Ok(json!({}))
    }

    fn update(&mut self, body: &Value) -> Result<Value, &'static str> {
        let run = self.run(text(&body["run_id"]))?;
        text(&body["status"]).clone_into(&mut run.status);
        Ok(json!({}))
    }
}

fn shown(run: &SentRun) -> Value {
    let mut latest: BTreeMap<&str, i64> = BTreeMap::new();
    for (key, step) in run.metrics.keys() {
        latest.insert(key, *step);
    }
    let metrics: Vec<Value> =
        latest.iter().map(|(key, step)| json!({ "key": key, "step": step, "value": 0.0 })).collect();
    let params: Vec<Value> =
        run.params.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    let tags: Vec<Value> =
        run.tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    json!({
        "info": {
            "run_id": run.id,
            "lifecycle_stage": "active",
            "artifact_uri": format!("mlflow-artifacts:/0/{}/artifacts", run.id),
        },
        "data": { "metrics": metrics, "params": params, "tags": tags },
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn pairs(list: &Value) -> BTreeMap<String, String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |item: &Value| (text(&item["key"]).to_owned(), text(&item["value"]).to_owned());
    items.iter().map(pair).collect()
}

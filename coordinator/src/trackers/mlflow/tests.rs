//! Delivery of a run to a server that fails partway; every request is recorded.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use foil_proto::v1;
use tokio::net::TcpListener;

use super::super::config::MlflowConfig;
use super::*;
use crate::clock::Clock;
use crate::job::fixture;

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// The server answers with 503.
    Refused,
    /// The request takes effect, but its response is lost.
    Unanswered,
}

#[derive(Debug, Default)]
struct State {
    /// Tags and values as received, including duplicates.
    tags: Vec<(String, String)>,
    metrics: Vec<(String, i64)>,
    statuses: Vec<Value>,
    tables: Vec<(String, Value)>,
    has_run: bool,
    /// The request to fail: by the end of its path, after this many others with the same end.
    fault: Option<(&'static str, usize, Fault)>,
}

impl State {
    /// The fault to apply to this request.
    fn fault(&mut self, path: &str) -> Option<Fault> {
        let (_, left, fault) = self.fault.as_mut().filter(|(end, ..)| path.ends_with(*end))?;
        match left.checked_sub(1) {
            Some(less) => {
                *left = less;
                None
            }
            None => {
                let fault = *fault;
                self.fault = None;
                Some(fault)
            }
        }
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let call = path.trim_start_matches("/api/2.0/");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
        match (method, call) {
            ("GET", "mlflow/experiments/get-by-name") => {
                json!({ "experiment": { "experiment_id": "7", "lifecycle_stage": "active" } })
            }
            ("POST", "mlflow/runs/search") => match self.has_run {
                true => json!({ "runs": [self.run()] }),
                false => json!({}),
            },
            ("POST", "mlflow/runs/create") => {
                self.has_run = true;
                json!({ "run": self.run() })
            }
            ("GET", "mlflow/runs/get") => json!({ "run": self.run() }),
            ("POST", "mlflow/runs/log-batch") => {
                let metric = |metric: &Value| (text(&metric["key"]), metric["step"].as_i64().unwrap());
                self.metrics.extend(list("metrics").iter().map(metric));
                self.tags.extend(list("tags").iter().map(|tag| (text(&tag["key"]), text(&tag["value"]))));
                json!({})
            }
            ("POST", "mlflow/runs/update") => {
                self.statuses.push(json!([body["status"], body["end_time"], self.metrics.len()]));
                json!({})
            }
            ("PUT", call) => {
                let path = call.strip_prefix("mlflow-artifacts/artifacts/").unwrap();
                self.tables.push((path.to_owned(), body.clone()));
                json!({})
            }
            other => panic!("{other:?}"),
        }
    }

    fn run(&self) -> Value {
        let latest: BTreeMap<&String, i64> = self.metrics.iter().map(|(key, step)| (key, *step)).collect();
        let metrics: Vec<Value> =
            latest.iter().map(|(key, step)| json!({ "key": key, "step": step })).collect();
        let tags: Vec<Value> =
            self.tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        json!({
            "info": { "run_id": "r1", "lifecycle_stage": "active", "artifact_uri": "mlflow-artifacts:/7/r1/artifacts" },
            "data": { "metrics": metrics, "tags": tags, "params": [{ "key": "rounds", "value": "2" }] },
        })
    }
}

struct Server {
    state: Arc<Mutex<State>>,
    api: Api,
    lease: Lease,
}

impl Server {
    async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let of_server = Arc::clone(&state);
        let answer = move |request: Request| async move {
            let (parts, body) = request.into_parts();
            let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let mut state = of_server.lock().unwrap();
            let fault = state.fault(parts.uri.path());
            if fault == Some(Fault::Refused) {
                return (StatusCode::SERVICE_UNAVAILABLE, String::new());
            }
            let answer = state.answer(parts.method.as_str(), parts.uri.path(), &body);
            match fault {
                None => (StatusCode::OK, answer.to_string()),
                Some(_) => (StatusCode::BAD_GATEWAY, "<html>".to_owned()),
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        let config = MlflowConfig { url, credential: None, ca: None, experiment: "foil".into() };
        let clock = Clock::start();
        let lease = Lease::new(clock, clock.now().mono + Duration::from_secs(600));
        Self { state, api: Api::new(&config).unwrap(), lease }
    }

    async fn open(&self) -> Run {
        let job = JobFacts::of(&fixture::state(&[]));
        Run::open(self.api.clone(), &job, &self.lease).await.unwrap()
    }

    async fn send(&self, run: &mut Run, batch: &Batch) -> Result<(), Failure> {
        run.send(batch, &self.lease).await
    }

    fn fail(&self, path: &'static str, after: usize, fault: Fault) {
        self.state.lock().unwrap().fault = Some((path, after, fault));
    }
}

/// Two metrics for each of these steps, in step order.
fn points(steps: std::ops::RangeInclusive<u64>) -> Vec<Point> {
    let point = |key: &str, step| Point { key: key.into(), step, value: 0.5, at: 1000 * step };
    steps.flat_map(|step| [point("loss", step), point("kl", step)]).collect()
}

fn ending(outcome: Ending) -> Batch {
    Batch { ending: Some((9000, outcome)), ..Batch::default() }
}

fn completions(round: u32) -> Completions {
    let text = |text: &str| Some(v1::Text { text: text.into(), bytes: text.len() as u64 });
    let completion =
        v1::Completion { round, text: text("ab!"), tokens: 4, reward: Some(0.25), ..Default::default() };
    let row = v1::CompletionRow {
        prompt_id: 11,
        prompt: vec![v1::ChatMessage { role: "user".into(), text: text("sort: b a") }],
        completions: vec![completion],
        ..Default::default()
    };
    Completions { round, at: 5000, rows: vec![row] }
}

#[tokio::test]
async fn no_step_is_sent_twice_after_a_failure_in_the_middle_of_a_batch() {
    // 2,600 points in three requests.
    let all = points(1..=1300);
    let expected: BTreeMap<(String, i64), usize> =
        all.iter().map(|point| ((point.key.to_string(), signed(point.step)), 1)).collect();
    for fault in [Fault::Refused, Fault::Unanswered] {
        for request in 0..3 {
            let server = Server::start().await;
            let batch = Batch { points: all.clone(), ..ending(Ending::Succeeded) };
            server.fail("runs/log-batch", request, fault);
            let failure = server.send(&mut server.open().await, &batch).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Away, "{failure}");
            assert!(server.state.lock().unwrap().statuses.is_empty(), "the end comes last");
            server.send(&mut server.open().await, &batch).await.unwrap();
            let state = server.state.lock().unwrap();
            let mut found: BTreeMap<(String, i64), usize> = BTreeMap::new();
            state.metrics.iter().for_each(|point| *found.entry(point.clone()).or_default() += 1);
            assert!(found == expected, "{fault:?} of request {request}: {} points", state.metrics.len());
            assert_eq!(state.statuses, [json!(["FINISHED", 9000, 2600])]);
        }
    }
}

#[tokio::test]
async fn a_session_sends_what_comes_next_and_nothing_again() {
    let server = Server::start().await;
    let mut run = server.open().await;
    for steps in [1..=3, 2..=5] {
        server.send(&mut run, &Batch { points: points(steps), ..Batch::default() }).await.unwrap();
    }
    let steps: Vec<i64> = server.state.lock().unwrap().metrics.iter().map(|(_, step)| *step).collect();
    assert_eq!(steps, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
}

#[tokio::test]
async fn the_end_of_a_job_is_the_status_of_its_run() {
    for (outcome, status, tags) in [
        (Ending::Succeeded, "FINISHED", vec![]),
        (Ending::Cancelled, "KILLED", vec![]),
        (
            Ending::Failed("nonfinite: the loss".into()),
            "FAILED",
            vec![("foil.failure", "nonfinite: the loss")],
        ),
    ] {
        let server = Server::start().await;
        let batch = Batch { points: points(1..=1), ..ending(outcome) };
        server.fail("runs/update", 0, Fault::Refused);
        server.send(&mut server.open().await, &batch).await.unwrap_err();
        assert!(server.state.lock().unwrap().statuses.is_empty());
        server.send(&mut server.open().await, &batch).await.unwrap();
        let state = server.state.lock().unwrap();
        assert_eq!(state.statuses, [json!([status, 9000, 2])]);
        let mut found: Vec<_> =
            state.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        found.dedup();
        assert_eq!(found, tags, "{status}");
    }
}

#[tokio::test]
async fn a_round_has_one_table_of_completions() {
    let server = Server::start().await;
    let mut run = server.open().await;
    for round in [0, 1, 1] {
        let batch = Batch { completions: Some(completions(round)), ..Batch::default() };
        server.send(&mut run, &batch).await.unwrap();
    }
    let again = server.open().await;
    assert!(!again.lacks_completions(1) && again.lacks_completions(2));
    let state = server.state.lock().unwrap();
    let table = |round: u32| {
        let columns = ["round", "prompt_id", "prompt", "completion", "reward", "gold", "kl", "tokens"];
        let row = json!([round, 11, "user: sort: b a\n", "ab!", 0.25, null, null, 4]);
        json!({ "columns": columns, "data": [row] })
    };
    let path = |round: u32| format!("7/r1/artifacts/completions/round-{round:04}.json");
    assert_eq!(state.tables, [(path(0), table(0)), (path(1), table(1))]);
    let listed = state.tags.iter().rfind(|(key, _)| key == "mlflow.loggedArtifacts").unwrap();
    let entry = |round: u32| json!({ "path": format!("completions/round-{round:04}.json"), "type": "table" });
    assert_eq!(serde_json::from_str::<Value>(&listed.1).unwrap(), json!([entry(0), entry(1)]));
}

#[tokio::test]
async fn metrics_do_not_wait_for_a_table_that_is_not_taken_and_the_next_try_sends_it() {
    let server = Server::start().await;
    let batch = |round: u32| Batch {
        points: points(u64::from(round)..=u64::from(round)),
        completions: Some(completions(round)),
        ..Batch::default()
    };
    server.fail("round-0001.json", 0, Fault::Refused);
    let mut run = server.open().await;
    server.send(&mut run, &batch(1)).await.unwrap();
    server.send(&mut run, &batch(2)).await.unwrap();
    let failure = server.send(&mut run, &ending(Ending::Succeeded)).await.unwrap_err();
    assert!(failure.why.starts_with("completions of round 1 on: MLflow answers 503"), "{failure}");
    assert!(server.state.lock().unwrap().tables.is_empty(), "their order is preserved");
    let mut run = server.open().await;
    for batch in [batch(1), batch(2), ending(Ending::Succeeded)] {
        server.send(&mut run, &batch).await.unwrap();
    }
    let state = server.state.lock().unwrap();
    let rounds: Vec<_> = state.tables.iter().map(|(_, table)| table["data"][0][0].clone()).collect();
    assert_eq!(rounds, [json!(1), json!(2)]);
    assert_eq!(state.metrics.len(), 4, "each point once");
    assert_eq!(state.statuses, vec![json!(["FINISHED", 9000, 4]); 2]);
}

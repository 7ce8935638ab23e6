//! Experiment trackers end to end: each value of the log arrives once, even if leaders die and trackers are
//! unavailable. A failing tracker does not affect a job.
//!
//! Uses TensorBoard's own reader if a Python with tensorboard is available (`FOIL_TEST_PYTHON`, or
//! `.venv-peers`, see scripts/fixtures/setup-peers), and MLflow's own server if `mlflow` is available
//! (`FOIL_TEST_MLFLOW`, or `.venv-peers/bin/mlflow`).

// Skipped tests print the reason.
#![allow(clippy::print_stderr)]

mod logged;
mod mlflow;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use foil_tests::{
    Ca, HttpServer, MlflowServer, NO_ANSWER, Process, Run, SentRun, Service, foil, foil_worker, wait_for,
};
use serde_json::Value;

use self::logged::{Values, assert_same, logged_phases, logged_steps};

/// Delays phases, so that they can be observed on fast machines too.
const HOLD: &str = "gang.join=delay@*,phase.generate=delay@*";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A Python with a package.
fn python(package: &str) -> Option<Command> {
    let named = std::env::var_os("FOIL_TEST_PYTHON").map(PathBuf::from);
    let program = named.unwrap_or_else(|| root().join(".venv-peers/bin/python"));
    let imports = Command::new(&program).args(["-c", &format!("import {package}")]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(Command::new(program));
    }
    eprintln!("skipped: a Python with {package}, named by FOIL_TEST_PYTHON");
    None
}

fn json_of(mut command: Command) -> Value {
    let Output { status, stdout, stderr } = command.output().expect("Python starts");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).expect("JSON")
}

/// Reads event files with TensorBoard's own reader.
const READ_EVENTS: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
texts, hparams = {}, {}
for tag in tags["tensors"]:
    plugin = events.SummaryMetadata(tag).plugin_data
    if plugin.plugin_name == "text":
        texts[tag] = [[e.step, e.tensor_proto.string_val[0].decode()] for e in events.Tensors(tag)]
    if plugin.plugin_name == "hparams":
        data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
        for name, value in data.session_start_info.hparams.items():
            hparams[name] = getattr(value, value.WhichOneof("kind"))
        if data.HasField("session_end_info"):
            hparams["status"] = data.session_end_info.status
print(json.dumps({
    "scalars": {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "histograms": {tag: [[e.step, e.histogram_value.num, e.histogram_value.sum, sum(e.histogram_value.bucket)]
                         for e in events.Histograms(tag)] for tag in tags["histograms"]},
    "texts": texts,
    "hparams": hparams,
}))
"#;

/// Fails unless TensorBoard reads each value of the log once from a folder, in addition to other data of the
/// job.
fn assert_events(folder: &Path, logged: &Values) {
    let Some(mut python) = python("tensorboard") else { return };
    python.args(["-c", READ_EVENTS]).arg(folder);
    let read = json_of(python);
    let mut found: BTreeMap<(String, i64), Vec<f64>> = BTreeMap::new();
    for (tag, points) in read["scalars"].as_object().expect("scalars") {
        for point in points.as_array().expect("points") {
            let step = point[0].as_i64().expect("a step");
            found.entry((tag.clone(), step)).or_default().push(point[1].as_f64().expect("a value"));
        }
    }
    // Scalars of event files have single precision.
    let single = logged.iter().map(|(key, value)| (key.clone(), f64::from(*value as f32))).collect();
    assert_same(&found, &single);
    let training = read["histograms"]["rewards/training"].as_array().expect("rewards");
    // 4 completions of each of the 96 prompts.
    for (round, rewards) in (1..).zip(training) {
        assert_eq!(
            (rewards[0].as_i64(), rewards[1].as_f64(), rewards[3].as_f64()),
            (Some(round), Some(384.0), Some(384.0))
        );
        let mean = logged[&("policy/score/reward".to_owned(), round)];
        assert!((rewards[2].as_f64().expect("a sum") / 384.0 - mean).abs() < 1e-9);
    }
    let completions = read["texts"]["completions/0"].as_array().expect("completions");
    let rounds: Vec<_> = completions.iter().filter_map(|text| text[0].as_i64()).collect();
    assert_eq!(rounds, (0..=i64::try_from(training.len()).expect("few")).collect::<Vec<_>>());
    assert!(completions[1][1].as_str().is_some_and(|text| text.contains("reward ")), "{completions:?}");
    assert_eq!((&read["hparams"]["name"], &read["hparams"]["status"]), (&"letters".into(), &1.into()));
    assert_eq!(read["hparams"]["policy_step.rejection"], true, "{}", read["hparams"]);
    assert!(read["texts"]["job/file"][0][1].as_str().is_some_and(|text| text.contains("\"rounds\": ")));
}

/// Fails unless a run has the completions of the start and of each round. Repeated tables must be equal.
fn assert_tables(run: &SentRun, rounds: usize) {
    let paths: Vec<String> = (0..=rounds).map(|round| format!("completions/round-{round:04}.json")).collect();
    assert_eq!(run.tables.keys().cloned().collect::<Vec<_>>(), paths);
    let listed: Value = serde_json::from_str(&run.tags["mlflow.loggedArtifacts"]).expect("JSON");
    let listed: Vec<_> = listed.as_array().expect("a list").iter().map(|table| &table["path"]).collect();
    assert_eq!(listed, paths.iter().collect::<Vec<_>>());
    for (round, tables) in run.tables.values().enumerate() {
        assert!(tables.iter().all(|table| *table == tables[0]), "{tables:?}");
        let columns = &tables[0]["columns"];
        assert_eq!(
            (&columns[2], &columns[3], &columns[4]),
            (&"prompt".into(), &"completion".into(), &"reward".into())
        );
        let rows = tables[0]["data"].as_array().expect("rows");
        assert_eq!(rows.len(), 4);
        for row in rows {
            assert_eq!(row[0], round);
            assert!(row[2].is_string() && row[3].is_string() && (round == 0 || row[4].is_f64()), "{row}");
        }
    }
}

/// A service with a leader, a standby and two agents whose phases are held.
fn start(serve: &dyn Fn() -> Command) -> (Service, Process, Process, Vec<Process>) {
    let (mut service, leader) = Service::start(serve(), "127.0.0.1");
    let standby = service.start_standby(serve());
    let agents = (0..2).map(|number| {
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", &service.urls(), "--ranks", "1"]).env("FOIL_FAILPOINT", HOLD);
        Process::start(agent, &service.at(&format!("agent-{number}.log")))
    });
    let agents = agents.collect();
    (service, leader, standby, agents)
}

fn wait_for_phase(service: &Service, id: &str, phase: &str) {
    wait_for(phase, || {
        let job = service.job(id);
        let phases = job["plan"]["phases"].as_array().expect("phases").clone();
        let place = |id: &str| phases.iter().position(|phase| phase["id"] == id);
        assert_ne!(job["state"], "succeeded", "the job ended before {phase} was seen");
        (job["phase"].as_str().and_then(place) >= place(phase)).then_some(())
    });
}

/// Starts to record a job's events.
fn watch(service: &Service, id: &str) -> Process {
    let mut watch = Command::new(foil());
    watch.args(["watch", id, "-o", "json"]).env("FOIL_COORDINATOR", service.urls());
    Process::start(watch, &service.at("events.log"))
}

/// Waits until trackers have everything of a job. Returns the steps of its log, and a folder with its
/// results.
fn logged(service: &Service, id: &str, trackers: &[&str]) -> (Values, PathBuf) {
    service.foil(&["watch", id]);
    for tracker in trackers {
        let complete = format!("tracker {tracker}: complete");
        wait_for(&complete, || service.foil(&["get", id]).contains(&complete).then_some(()));
    }
    let dir = service.at("results");
    service.foil(&["pull", id, dir.to_str().expect("UTF-8")]);
    (logged_steps(&dir.join("metrics.jsonl")), dir)
}

#[test]
fn each_value_arrives_once_although_leaders_die_and_the_tracker_is_away() {
    let mlflow = MlflowServer::start();
    mlflow.set_down(true);
    let serve = || {
        let mut serve = Command::new(foil());
        serve.env("MLFLOW_TRACKING_URI", mlflow.url()).env("MLFLOW_TRACKING_TOKEN", "hunter2");
        serve
    };
    let (service, leader, standby, agents) = start(&serve);
    let settings = [
        "rounds=2",
        "resources.checkpoint_steps=2",
        "trackers.report_to=[mlflow, tensorboard]",
        "trackers.experiment=letters apo",
        "labels.team=nlp",
    ];
    let id = service.submit_letters_with(Command::new(foil()), &settings);
    let watch = watch(&service, &id);

    wait_for_phase(&service, &id, "r01.reward.generate");
    assert!(mlflow.requests() > 0 && mlflow.runs().is_empty());
    wait_for("a word of the trouble", || {
        service.foil(&["get", &id]).contains("then: MLflow answers 503").then_some(())
    });
    mlflow.set_down(false);
    wait_for("values", || mlflow.runs().first().is_some_and(|run| !run.metrics.is_empty()).then_some(()));
    wait_for_phase(&service, &id, "r01.policy.train");
    leader.kill();
    mlflow.set_down(true);
    let asked = mlflow.requests();
    wait_for("the next leader", || (mlflow.requests() > asked).then_some(()));
    mlflow.set_down(false);

    let (mut logged, dir) = logged(&service, &id, &["mlflow", "tensorboard"]);
    assert!(watch.finish().success());
    logged.extend(logged_phases(&service.log("events.log")));
    let job = service.job(&id);
    assert_eq!((&job["state"], &job["attempt"]), (&"succeeded".into(), &1.into()), "{job}");
    let runs = mlflow.runs();
    assert_eq!(runs.len(), 1, "{runs:?}");
    let run = &runs[0];
    assert_same(&run.metrics, &logged);
    assert_tables(run, 2);
    assert_eq!((run.status.as_str(), run.name.as_str()), ("FINISHED", "letters"));
    assert_eq!(mlflow.experiments(), ["letters apo"]);
    assert_eq!(
        (run.tags["foil.job_id"].as_str(), run.tags["foil.label.team"].as_str()),
        (id.as_str(), "nlp")
    );
    assert_eq!((run.params["rounds"].as_str(), run.params["policy_step.samples"].as_str()), ("2", "4"));
    assert!(mlflow.authorizations().iter().all(|header| header == "Bearer hunter2"));
    assert_events(&dir.join("tensorboard"), &logged);
    drop((agents, standby));
    assert!(!service.log("serve.log").contains("hunter2"));
    assert!(holds(&service.at("store"), "hunter2").is_none());
}

/// The first file below a directory that contains a text.
fn holds(directory: &Path, text: &str) -> Option<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().find_map(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => holds(&path, text),
            false => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                bytes.windows(text.len()).any(|window| window == text.as_bytes()).then_some(path)
            }
        }
    })
}

#[test]
fn a_run_ends_although_its_tracker_hangs_and_the_rest_is_delivered_later() {
    let run = Run::letters().ranks(2);
    let ca = Ca::new(run.scratch(), "trainer");
    let posts = Arc::<Mutex<Vec<(String, Value)>>>::default();
    let received = Arc::clone(&posts);
    let trainer = HttpServer::start(Some(&ca.sign("localhost", "localhost")), move |request| {
        let token = request.header("authorization").unwrap_or_default().to_owned();
        let body = serde_json::from_slice(&request.body).expect("JSON");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/apis/trainjobs/x/status"));
        received.lock().expect("no panic").push((token, body));
        (200, "{}".to_owned())
    });
    let hanging = HttpServer::start(None, |_| (NO_ANSWER, String::new()));
    let token = run.scratch().join("token");
    std::fs::write(&token, "hunter3\n").expect("a file");
    let url = format!("https://localhost:{}/apis/trainjobs/x/status", trainer.address().port());
    let run = run
        .arg("--keep")
        .set("trackers.report_to=[mlflow, tensorboard]")
        .env("MLFLOW_TRACKING_URI", format!("http://{}", hanging.address()))
        .env("MLFLOW_TRACKING_USERNAME", "me")
        .env("MLFLOW_TRACKING_PASSWORD", "hunter2")
        .env("KUBEFLOW_TRAINER_SERVER_URL", url)
        .env("KUBEFLOW_TRAINER_SERVER_TOKEN", token.display().to_string())
        .env("KUBEFLOW_TRAINER_SERVER_CA_CERT", ca.path().display().to_string());
    let output = run.output();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}\n{}", run.logs());
    assert!(told.contains("mlflow has not taken all metrics"), "{told}");
    for secret in ["hunter2", "hunter3"] {
        assert!(!told.contains(secret) && !run.full_logs().contains(secret));
        assert_eq!(holds(&run.out(), secret), None);
    }
    assert_progress(&posts.lock().expect("no panic"));

    // Another coordinator, with a working server.
    let mlflow = MlflowServer::start();
    let store = run.out().join("store");
    let mut serve = Command::new(foil());
    serve.env("MLFLOW_TRACKING_URI", mlflow.url());
    let (service, _coordinator) = Service::start_on(serve, "127.0.0.1", Some(&store.display().to_string()));
    let outcome: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let (logged, dir) = logged(&service, outcome["job"].as_str().expect("an id"), &["mlflow", "tensorboard"]);
    // The events of a finished job are not sent again, so only its steps are compared.
    let mut found = mlflow.runs()[0].metrics.clone();
    assert!(found.contains_key(&("policy/eval/reward".to_owned(), 1)));
    found.retain(|(key, _), _| key.contains("/train/"));
    assert_same(&found, &logged);
    // The run's event files on this machine are the same as the service's.
    let names = |folder: &Path| -> BTreeSet<_> {
        std::fs::read_dir(folder).expect("event files").flatten().map(|entry| entry.file_name()).collect()
    };
    assert_eq!(names(&run.out().join("tensorboard")), names(&dir.join("tensorboard")));
}

/// Fails unless the posts describe a job's progress up to its end.
fn assert_progress(posts: &[(String, Value)]) {
    assert!(posts.len() > 1 && posts.iter().all(|(token, _)| token == "Bearer hunter3"), "{posts:?}");
    let percent: Vec<i64> =
        posts.iter().filter_map(|(_, body)| body["trainerStatus"]["progressPercentage"].as_i64()).collect();
    assert!(percent.len() == posts.len() && percent.is_sorted(), "{percent:?}");
    assert_eq!(percent.last(), Some(&100));
    let last = &posts[posts.len() - 1].1["trainerStatus"];
    assert_eq!(last["estimatedRemainingSeconds"], 0);
    let metrics = last["metrics"].as_array().expect("metrics");
    let value = |name: &str| {
        metrics.iter().find(|metric| metric["name"] == name).map(|metric| metric["value"].clone())
    };
    assert_eq!(value("total_rounds"), Some("1".into()));
    assert!(value("policy/eval/reward").is_some_and(|value| value.is_string()), "{metrics:?}");
}

#[test]
fn a_tracker_that_is_not_there_is_refused_before_anything_runs() {
    for (tracker, advice) in [
        ("mlflow", "MLFLOW_TRACKING_URI"),
        ("kubeflow", "KUBEFLOW_TRAINER_SERVER_URL"),
        ("wandb", "wandb_import.py"),
    ] {
        let output = Run::letters().set(&format!("trackers.report_to={tracker}")).output();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("trackers.report_to"), "{told}");
        assert!(told.contains(advice), "{told}");
    }
    let run = Run::letters().env("MLFLOW_TRACKING_URI", "sqlite:///hunter2");
    let told = String::from_utf8_lossy(&run.output().stderr).into_owned();
    assert!(told.contains("MLFLOW_TRACKING_URI cannot be used") && !told.contains("hunter2"), "{told}");
}

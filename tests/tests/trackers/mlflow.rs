//! MLflow's own server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use foil_tests::{Process, foil, wait_for};

use super::logged::{assert_same, logged_phases};
use super::{json_of, logged, root, start, wait_for_phase, watch};

/// Prints all runs in MLflow's database, and the table of round 1 as MLflow's client reads it.
const READ_DATABASE: &str = r#"
import json, mlflow, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
run, experiment = database.execute("select run_uuid, experiment_id from runs").fetchone()
mlflow.set_tracking_uri(sys.argv[2])
table = mlflow.MlflowClient().load_table(str(experiment), "completions/round-0001.json", run_ids=[run])
rows = database.execute("select key, step, value from metrics where is_nan = 0").fetchall()
runs = database.execute("select status, name from runs").fetchall()
params = dict(database.execute("select key, value from params").fetchall())
print(json.dumps({"metrics": rows, "runs": runs, "params": params, "columns": list(table.columns), "rows": len(table)}))
"#;

#[test]
fn mlflows_own_server_has_each_value_once_although_it_was_away_for_a_while() {
    let named = std::env::var_os("FOIL_TEST_MLFLOW").map(PathBuf::from);
    let program = named.unwrap_or_else(|| root().join(".venv-peers/bin/mlflow"));
    if !program.is_file() {
        eprintln!("skipped: an mlflow, named by FOIL_TEST_MLFLOW");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("mlflow.db");
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let server = || {
        let mut server = Command::new(&program);
        server.arg("server").arg("--backend-store-uri").arg(format!("sqlite:///{}", database.display()));
        server.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--workers", "1"]);
        server.current_dir(directory.path()).env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
        Process::start(server, &directory.path().join("mlflow.log"))
    };
    let first = server();
    let serve = || {
        let mut serve = Command::new(foil());
        serve.env("MLFLOW_TRACKING_URI", format!("http://127.0.0.1:{port}"));
        serve
    };
    let (service, leader, standby, agents) = start(&serve);
    let settings = ["resources.checkpoint_steps=2", "trackers.report_to=mlflow", "trackers.run_name=real"];
    let id = service.submit_letters_with(Command::new(foil()), &settings);
    let watch = watch(&service, &id);
    wait_for("a phase at MLflow", || {
        let told = service.foil(&["get", &id]);
        (told.contains("tracker mlflow: ") && !told.contains("tracker mlflow: 0")).then_some(())
    });
    drop(first);
    leader.kill();
    wait_for_phase(&service, &id, "r01.policy.train");
    let _second = server();
    let (mut logged, _) = logged(&service, &id, &["mlflow"]);
    assert!(watch.finish().success());
    logged.extend(logged_phases(&service.log("events.log")));
    drop((agents, standby));

    let mut python = Command::new(program.with_file_name("python"));
    python.args(["-c", READ_DATABASE]).arg(&database).arg(format!("http://127.0.0.1:{port}"));
    let read = json_of(python);
    let mut found: BTreeMap<(String, i64), Vec<f64>> = BTreeMap::new();
    for row in read["metrics"].as_array().expect("rows") {
        let key = (row[0].as_str().expect("a key").to_owned(), row[1].as_i64().expect("a step"));
        found.entry(key).or_default().push(row[2].as_f64().expect("a value"));
    }
    assert_same(&found, &logged);
    assert_eq!(read["runs"], serde_json::json!([["FINISHED", "real"]]));
    assert_eq!(read["params"]["policy_step.rejection"], "true");
    assert_eq!((&read["rows"], &read["columns"][3]), (&4.into(), &"completion".into()), "{read}");
}

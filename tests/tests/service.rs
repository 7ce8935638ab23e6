//! A service of separate processes gives the same results as `foil run`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use foil_tests::{
    Process, Run, Service, foil, foil_worker, letters_job, lint_errors, metric_names, page, promtool,
    wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Metrics that a leader exposes after a successful job.
const SHOWN: [&str; 24] = [
    "foil_agents",
    "foil_attempts_total",
    "foil_build_info",
    "foil_connections",
    "foil_determinism_alarms_total",
    "foil_devices",
    "foil_grad_norm",
    "foil_job_transitions_total",
    "foil_jobs",
    "foil_kl",
    "foil_leader",
    "foil_log_append_seconds",
    "foil_loss",
    "foil_objectstore_requests_total",
    "foil_phase_seconds",
    "foil_phases_committed_total",
    "foil_queue_devices_wanted",
    "foil_reward_mean",
    "foil_step_seconds",
    "foil_steps_committed_total",
    "foil_tokens_total",
    "foil_worker_heartbeat_age_seconds",
    "foil_artifact_bytes_total",
    "foil_chunks_done_total",
];

/// Collects files and directories below `path` that users other than their owner can access, and returns the
/// number that it saw. Those that are removed meanwhile do not count.
fn open_to_others(path: &Path, found: &mut Vec<String>) -> usize {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if metadata.mode() & 0o077 != 0 {
        found.push(format!("{}: {:o}", path.display(), metadata.mode()));
    }
    let entries = path.read_dir().into_iter().flatten().flatten();
    1 + entries.map(|entry| open_to_others(&entry.path(), found)).sum::<usize>()
}

#[test]
fn submit_watch_list_and_pull() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    // The tests may run under nohup, and an agent would then ignore SIGHUP.
    let mut agent = Command::new("env");
    agent.arg("--default-signal=HUP").arg(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2", "--agent-id", "one"]);
    agent.args(["--metrics-listen", "localhost:0", "--log-format", "json", "--work-dir"]);
    agent.arg(service.at("work"));
    let agent = Process::start(agent, &service.at("agent.log"));

    let id = service.submit_letters(Command::new(foil()));
    let watched: Value = serde_json::from_str(&service.foil(&["watch", &id, "--json"])).expect("JSON");
    assert!(service.foil(&["list"]).contains(&id));
    let listed: Value = serde_json::from_str(&service.foil(&["list", "-o", "json"])).expect("JSON");
    for told in [&watched, &listed["jobs"][0], &service.job(&id)] {
        assert!(told["job"] == id.as_str() && told["state"] == "succeeded", "one spelling: {told}");
    }
    let mut open = Vec::new();
    assert!(open_to_others(&service.at("store"), &mut open) > 20, "the store has files");
    assert!(open_to_others(&service.at("work/foil-one"), &mut open) > 0, "the agent has a directory");
    assert!(open.is_empty(), "{open:#?}");

    let logged = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let lines: Vec<Value> = service.log("agent.log").lines().map(logged).collect();
    let metrics = lines.iter().find(|line| line["message"] == "metrics at /metrics").expect("an address");
    let of_agent = page(metrics["address"].as_str().expect("a text"), "/metrics").1;
    assert!(of_agent.contains("foil_agent_ranks"), "{of_agent}");
    let of_coordinator = page(service.url(), "/metrics").1;
    assert!(of_coordinator.contains("foil_devices{kind=\"cpu\",state="), "{of_coordinator}");
    assert!(!of_coordinator.contains("to=\"recovering\""), "a job that succeeded has recovered from nothing");
    for page in [&of_coordinator, &of_agent] {
        assert_eq!(lint_errors(page), [""; 0]);
        assert_eq!(promtool(page).unwrap_or_default(), "");
    }
    let shown = metric_names(&of_coordinator);
    for name in SHOWN {
        assert!(shown.contains(name), "no {name} in {shown:?}");
    }

    // Simulates a closed terminal.
    agent.signal(Signal::SIGHUP);
    assert_eq!(agent.finish().code(), Some(129));
    let causes = service.log("agent.log");
    assert!(!causes.contains("\"cause\":\"signal\""), "no rank was killed by anybody else: {causes}");
    assert!(!service.at("work/foil-one").exists());
    wait_for("the end of the agent's series", || {
        (!page(service.url(), "/metrics").1.contains("agent=\"one\"")).then_some(())
    });
    let policy = service.weights(Command::new(foil()), &id, "policy@1");
    assert!(Run::letters().ranks(2).finish().weights().0 == policy, "run and submit differ");
}

#[test]
fn an_id_that_cannot_be_printed_is_in_the_error() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut submit = Command::new(foil());
    submit.args(["submit", letters_job()]).env("FOIL_COORDINATOR", service.urls()).stdout(full);
    let output = submit.output().expect("foil starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let listed: Value = serde_json::from_str(&service.foil(&["list", "-o", "json"])).expect("JSON");
    let id = listed["jobs"][0]["job"].as_str().expect("a job");
    assert!(output.status.code() == Some(1) && told.contains(id), "{told}");

    service.foil(&["cancel", id]);
    let mut pull = Command::new(foil());
    pull.args(["pull", id]).arg(service.at("nothing")).env("FOIL_COORDINATOR", service.urls());
    let output = pull.output().expect("foil starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("no results to pull"), "{told}");
    assert!(!service.at("nothing").exists());
}

#[test]
fn a_job_starts_from_the_model_of_another() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));
    let first = service.submit_letters(Command::new(foil()));
    service.foil(&["watch", &first]);
    service.foil(&["pull", &format!("{first}/policy@1"), service.at("first").to_str().expect("UTF-8")]);

    // By name, and the last policy of that job.
    let next = ["policy.init=weights", "seed=99", "policy.model=job:letters/policy"];
    let second = service.submit_letters_with(Command::new(foil()), &next);
    service.foil(&["watch", &second]);
    let job = service.job(&second);
    assert_eq!(job["state"], "succeeded", "{job}");
    let model = format!("policy.model={}", service.at("first").display());
    let from_directory = Run::letters().ranks(2).set_all(&next[..2]).set(&model).finish().weights();
    assert!(
        service.weights(Command::new(foil()), &second, "policy@1") == from_directory.0,
        "the weights differ"
    );

    for (model, problem) in [
        ("job:nowhere/policy", "there is no job nowhere"),
        ("job:letters/policy@7", "has no artifact policy@7"),
        ("job:letters", "job:<id or name>/<artifact>"),
    ] {
        let mut submit = Command::new(foil());
        submit.args([
            "submit",
            letters_job(),
            "--set",
            &format!("policy.model={model}"),
            "--set",
            "policy.init=weights",
        ]);
        let refused = submit.env("FOIL_COORDINATOR", service.urls()).output().expect("foil starts");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains(problem), "{told}");
    }
}

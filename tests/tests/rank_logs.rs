//! Rank logs are kept in the store. They can be read while the job runs, and after all their writers are
//! gone.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use foil_tests::{Process, Service, foil, foil_worker, wait_for};
use serde_json::Value;

fn client(service: &Service, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(foil());
    let Output { status, stdout, stderr } =
        command.args(arguments).env("FOIL_COORDINATOR", service.urls()).output().expect("foil starts");
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (status.success(), stdout, stderr)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The files below a folder, which may have been removed.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

#[test]
fn a_log_is_followed_to_its_end_and_outlives_its_agent() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let id = service.submit_letters(Command::new(foil()));
    let (succeeded, lines, note) = client(&service, &["logs", &id]);
    assert!(succeeded && lines.is_empty() && note.contains("has not started"), "{lines}{note}");

    let mut follow = Command::new(foil());
    follow.args(["logs", &id, "-f", "--json"]).env("FOIL_COORDINATOR", service.urls());
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("foil starts");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2", "--agent-id", "one"]);
    // Training takes longer than the interval at which lines are stored, so the first lines arrive before its
    // end.
    agent.env("FOIL_FAILPOINT", "train.forward=delay@2,train.forward=delay@3,train.forward=delay@4");
    let agent = Process::start(agent, &service.at("agent.log"));
    let mut followed = BufReader::new(follow.stdout.take().expect("a pipe"));
    let mut first = String::new();
    followed.read_line(&mut first).expect("a line");
    assert_eq!(
        service.job(&id)["state"],
        "running",
        "the first line must arrive while the job runs: {first}"
    );

    let workers: Value = serde_json::from_str(&service.foil(&["workers", "-o", "json"])).expect("JSON");
    let of_agent = &workers["agents"][0];
    assert_eq!((&of_agent["id"], &of_agent["state"]), (&"one".into(), &"AGENT_STATE_CONNECTED".into()));
    let devices = of_agent["devices"].as_array().expect("devices");
    assert!(devices.iter().all(|device| device["use"]["job_id"] == id.as_str()), "{workers}");
    assert!(service.foil(&["workers"]).contains(&id));

    service.foil(&["watch", &id]);
    // All lines are stored when the watch ends or soon after. The follower ends by itself.
    let whole = service.foil(&["logs", &id, "--json"]);
    let rest: Vec<String> = followed.lines().map(|line| line.expect("a line")).collect();
    assert!(follow.wait().expect("it ends").success());
    let mut lines: Vec<&str> = whole.lines().collect();
    let mut seen: Vec<&str> =
        std::iter::once(first.trim_end()).chain(rest.iter().map(String::as_str)).collect();
    lines.sort_unstable();
    seen.sort_unstable();
    assert!(lines == seen, "{} and {} lines", lines.len(), seen.len());

    agent.kill();
    let all = json_lines(&service.foil(&["logs", &id, "--json"]));
    assert_eq!(all.len(), lines.len(), "the log must outlive its agent");
    let times: Vec<f64> = all.iter().filter_map(|line| line["time"].as_f64()).collect();
    // Threads of one process may write in a different order than they took their timestamps.
    let in_order = times.windows(2).all(|pair| pair[1] > pair[0] - 0.1);
    assert!(times.len() == all.len() && in_order, "merged by time");
    for rank in 0..2 {
        let of_rank = json_lines(&service.foil(&["logs", &id, "--json", "--rank", &rank.to_string()]));
        assert!(of_rank.iter().any(|line| line["message"] == "chunk done"), "rank {rank}: {of_rank:?}");
        assert!(of_rank.iter().all(|line| line["rank"].is_null() || line["rank"] == rank));
    }
    let steps = json_lines(&service.foil(&["logs", &id, "--json", "--phase", "r01.policy.train"]));
    assert!(steps.iter().any(|line| line["message"] == "step"));
    assert!(steps.iter().all(|line| line["phase"].is_null() || line["phase"] == "r01.policy.train"));
    let tail = service.foil(&["logs", &id, "--json", "--tail", "5"]);
    let expected: Vec<String> = whole.lines().rev().take(5).map(str::to_owned).collect();
    assert_eq!(tail.lines().rev().map(str::to_owned).collect::<Vec<_>>(), expected);
    assert!(service.foil(&["logs", &id, "--since", "0s"]).is_empty());
    let human = service.foil(&["logs", &id, "--tail", "3"]);
    assert!(human.lines().all(|line| line.starts_with("rank ") && !line.contains('{')), "{human}");

    for (arguments, problem) in [
        (["--rank", "2"], "ranks 0 to 1"),
        (["--attempt", "9"], "attempt"),
        (["--phase", "sft"], "no phase sft"),
    ] {
        let (succeeded, _, told) = client(&service, &[&["logs", &id], &arguments[..]].concat());
        assert!(!succeeded && told.contains(problem), "{told}");
    }

    let logs = service.at(&format!("store/jobs/{id}/logs"));
    let parts = files(&logs);
    assert!(parts.len() >= 4, "{parts:?}");
    for part in &parts {
        assert_eq!(part.metadata().expect("a file").mode() & 0o077, 0, "{}", part.display());
    }
    let text: String = parts.iter().map(|part| std::fs::read_to_string(part).expect("text")).collect();
    assert!(!text.contains("secret"), "no secret of a rank is logged");
    service.foil(&["delete", &id]);
    wait_for("the deletion of the logs", || files(&logs).is_empty().then_some(()));
}

#[test]
fn the_last_words_of_a_killed_rank_are_kept() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    agent.env("FOIL_FAILPOINT", "train.optimizer=kill@2").env("FOIL_FAILPOINT_ONCE", service.at("fired"));
    let _agent = Process::start(agent, &service.at("agent.log"));
    let id = service.submit_letters(Command::new(foil()));
    service.foil(&["watch", &id]);
    let of_first = json_lines(&service.foil(&["logs", &id, "--json", "--attempt", "1"]));
    let last = of_first.iter().rfind(|line| line["message"] == "failpoint triggered").expect("a line");
    assert_eq!((&last["site"], &last["attempt"]), (&"train.optimizer".into(), &1.into()));
    let all = service.foil(&["logs", &id]);
    let (before, after) = all.split_once("attempt 2\n").expect("the attempts follow one another");
    assert!(before.contains("failpoint triggered") && after.contains("chunk done"));
    // Nobody waits for logs that are complete.
    let (_, _, note) = client(&service, &["logs", &id]);
    assert!(!note.contains("is missing"), "{note}");
}

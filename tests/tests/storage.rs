//! Deletion of jobs and garbage, including by a coordinator that takes over from one that died during a
//! deletion.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use foil_tests::{Process, Service, foil, foil_worker, wait_for};
use serde_json::Value;

/// Runs the client and returns its exit status and both outputs.
fn client(service: &Service, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(foil());
    let Output { status, stdout, stderr } =
        command.args(arguments).env("FOIL_COORDINATOR", service.urls()).output().expect("foil starts");
    let told = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (status.success(), told)
}

fn refused(service: &Service, arguments: &[&str], parts: &[&str]) {
    let (succeeded, told) = client(service, arguments);
    assert!(!succeeded && parts.iter().all(|part| told.contains(part)), "foil {arguments:?}: {told}");
}

/// Number of files below a directory.
fn files(path: &Path) -> usize {
    let Ok(entries) = path.read_dir() else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => files(&path),
        _ => 1,
    };
    entries.flatten().map(count).sum()
}

/// Deletes a job while a coordinator with this failpoint dies, and another takes over.
fn delete_through_a_death(service: &mut Service, coordinator: Process, id: &str, failpoint: &str) -> Process {
    coordinator.kill();
    let mut dying = Command::new(foil());
    dying.env("FOIL_FAILPOINT", failpoint);
    let dying = service.restart(dying);
    let mut delete = Command::new(foil());
    delete.args(["delete", id]).env("FOIL_COORDINATOR", service.urls());
    let delete = delete.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("foil starts");
    assert!(dying.finish().code().is_none(), "{failpoint} must kill the coordinator");
    let next = service.restart(Command::new(foil()));
    let Output { status, stdout, stderr } = delete.wait_with_output().expect("its output");
    let told = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if status.success() {
        assert!(told.contains(&format!("{id}: deleted")), "{told}");
    } else {
        // Two elections may take longer than a client waits. A deletion can be repeated.
        assert!(told.contains("no coordinator"), "{told}");
        service.foil(&["delete", id]);
    }
    next
}

#[test]
fn a_job_is_deleted_with_all_its_objects_whatever_dies() {
    let (mut service, coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));
    let first = service.submit_letters(Command::new(foil()));
    refused(&service, &["delete", &first], &["foil cancel", "--cancel"]);
    service.foil(&["watch", &first]);

    let pinned = service.foil(&["pin", &format!("{first}/policy")]);
    assert!(pinned.contains(&format!("{first}/policy@1")), "{pinned}");
    refused(&service, &["delete", &first], &["its policy@1 is pinned", "foil unpin"]);
    service.foil(&["unpin", &format!("{first}/policy@1")]);
    let next = [&format!("policy.model=job:{first}/policy")[..], "policy.init=weights", "resources.ranks=64"];
    let second = service.submit_letters_with(Command::new(foil()), &next);
    refused(&service, &["delete", &first], &[&second, "queued", "starts from its policy@1"]);
    service.foil(&["cancel", &second]);

    let jobs = service.at("store/jobs");
    assert!(files(&jobs.join(&first)) > 10);
    let coordinator = delete_through_a_death(&mut service, coordinator, &first, "log.appended=kill@2");
    // The second job still has what it inherited: its start model.
    wait_for("the end of the deletion", || service.log("serve.log").contains("are gone").then_some(()));
    let inherited = files(&jobs.join(&first));
    assert!((2..10).contains(&inherited), "{inherited} files");
    assert!(!jobs.join(&first).join("data").exists() || files(&jobs.join(&first).join("data")) == 0);
    refused(&service, &["get", &first], &["there is no job"]);
    let again = [&format!("policy.model=job:{first}/policy")[..], "policy.init=weights"];
    let mut submit = Command::new(foil());
    submit.args(["submit", foil_tests::letters_job(), "--set", again[0], "--set", again[1]]);
    let submit = submit.env("FOIL_COORDINATOR", service.urls()).output().expect("foil starts");
    assert!(String::from_utf8_lossy(&submit.stderr).contains("there is no job"), "{submit:?}");

    let _coordinator = delete_through_a_death(&mut service, coordinator, &second, "log.append=kill@3");
    wait_for("the end of the second deletion", || (files(&jobs.join(&second)) == 0).then_some(()));
    assert!(!service.foil(&["list"]).contains(&second));

    // No job references the inputs, but all of them are recent.
    assert!(service.foil(&["store", "gc"]).contains("0 objects") || files(&jobs.join(&first)) == 0);
    let usage = |service: &Service| -> Value {
        serde_json::from_str(&service.foil(&["store", "usage", "-o", "json"])).expect("JSON")
    };
    let inputs = files(&service.at("store/inputs"));
    let told = service.foil(&["store", "gc", "--dry-run", "--grace", "0s"]);
    assert!(told.contains("would delete inputs/") && told.contains("no job names"), "{told}");
    assert_eq!(files(&service.at("store/inputs")), inputs, "a dry run deletes nothing");
    let kinds = |usage: &Value| usage["tenants"].as_array().map_or(0, Vec::len);
    assert!(kinds(&usage(&service)) >= 2, "{}", usage(&service));
    service.foil(&["store", "gc", "--grace", "0s"]);
    assert_eq!((files(&service.at("store/inputs")), files(&jobs)), (0, 0));
    let left = usage(&service);
    assert_eq!((kinds(&left), &left["tenants"][0]["kind"]), (1, &"OBJECT_KIND_JOURNAL".into()), "{left}");

    // The inputs are uploaded again.
    let third = service.submit_letters(Command::new(foil()));
    let told = service.foil(&["delete", &third, "--cancel"]);
    assert!(told.contains("deleted"), "{told}");
}

//! The service by hand gives what `foil run` gives: it is the same service.

use std::process::Command;

use foil_tests::{Namespaces, Process, Run, Service, foil, foil_worker, letters_job};

#[test]
fn submit_watch_list_and_pull() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));

    let id = service.submit_letters(Command::new(foil()));
    service.foil(&["watch", &id]);
    assert!(service.foil(&["list"]).contains(&id));
    let policy = service.weights(Command::new(foil()), &id, "policy@1");
    assert!(Run::letters().ranks(2).finish().weights().0 == policy, "run and submit differ");
}

#[test]
fn a_job_starts_from_what_another_has_made() {
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
    assert_eq!(job["state"], "JOB_STATE_SUCCEEDED", "{job}");
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

#[test]
fn two_hosts_that_share_no_disk_play_the_same_game() {
    let Some(hosts) = Namespaces::new(3) else { return };
    let here = || hosts.command(0, None, &foil());
    let (service, _coordinator) = Service::start(here(), &hosts.address(0));
    let agents: Vec<Process> = (1..3)
        .map(|host| {
            // Neither agent sees the store, nor the other's files.
            let hidden = service.at("");
            let mut agent = hosts.command(host, Some(&hidden), &foil_worker());
            let address = hosts.address(host);
            agent.args(["--coordinator", service.url(), "--ranks", "1", "--advertise-address", &address]);
            Process::start(agent, &service.at(&format!("agent-{host}.log")))
        })
        .collect();

    let id = service.submit_letters(here());
    service.client(here(), &["watch", &id]);
    let policy = service.weights(here(), &id, "policy@1");
    drop(agents);

    let on_one_host = Run::letters().ranks(2).finish().weights().0;
    assert!(on_one_host == policy, "two hosts and one give different weights");
}

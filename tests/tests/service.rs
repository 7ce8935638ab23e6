//! The service by hand gives what `foil run` gives: it is the same service.

use std::process::Command;

use foil_tests::{Namespaces, Process, Run, Service, foil, foil_worker};

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

//! Jobs whose ranks are on several hosts.

#![allow(clippy::print_stdout, reason = "prints the figures of a test")]

use std::fs;

use foil_tests::{Namespaces, Process, Run, Service, foil, foil_worker, wait_for};
use serde_json::Value;

#[test]
fn two_hosts_that_share_no_disk_give_the_same_weights() {
    let Some(hosts) = Namespaces::new(3) else { return };
    let here = || hosts.command(0, None, &foil());
    let (service, _coordinator) = Service::start(here(), &hosts.address(0));
    let agents: Vec<Process> = (1..3)
        .map(|host| {
            // Neither agent can access the store or the files of the other.
            let hidden = service.at("");
            let mut agent = hosts.command(host, Some(&hidden), &foil_worker());
            // They derive their addresses from the route to the coordinator.
            agent.args(["--coordinator", service.url(), "--ranks", "1"]);
            Process::start(agent, &service.at(&format!("agent-{host}.log")))
        })
        .collect();

    wait_for("both agents", || {
        let agents = service.client(here(), &["workers", "-o", "name"]);
        (agents.lines().count() == 2).then_some(())
    });
    let mut unreachable = hosts.command(0, None, &foil_worker());
    unreachable.args(["--coordinator", service.url(), "--ranks", "1", "--agent-id", "lo"]);
    let refused = unreachable.args(["--advertise-address", "127.0.0.1"]).output().expect("it starts");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{told}");
    assert!(told.contains("agent lo on") && told.contains("start it with --advertise-address"), "{told}");

    let id = service.submit_letters(here());
    service.client(here(), &["watch", &id]);
    let policy = service.weights(here(), &id, "policy@1");
    drop(agents);

    let on_one_host = Run::letters().ranks(2).finish().weights().0;
    assert!(on_one_host == policy, "two hosts and one give different weights");
}

/// Bytes per second of the link between the hosts.
const LINK: u32 = 20_000_000;

#[test]
fn gradients_cross_a_slow_link_once_for_each_pair_of_hosts() {
    let Some(hosts) = Namespaces::new(3) else { return };
    let Some(link) = hosts.link(1, 2, LINK) else { return };
    let here = || hosts.command(0, None, &foil());
    let (service, _coordinator) = Service::start(here(), &hosts.address(0));
    // In name order, ranks would alternate between the hosts.
    let _agents: Vec<Process> = [("a", 1), ("b", 2), ("c", 1), ("d", 2)]
        .into_iter()
        .map(|(name, host)| {
            let mut agent = hosts.command(host, None, &foil_worker());
            agent.args(["--coordinator", service.url(), "--ranks", "1", "--agent-id", name]);
            agent.args(["--advertise-address", link.address(host), "--rendezvous-ports", "29500-29509"]);
            agent.arg("--work-dir").arg(service.at("work"));
            Process::start(agent, &service.at(&format!("{name}.log")))
        })
        .collect();
    wait_for("four devices", || {
        let agents = service.client(here(), &["workers", "-o", "name"]);
        (agents.lines().count() == 4).then_some(())
    });

    let id = service.submit_letters_with(here(), &["resources.ranks=4"]);
    service.client(here(), &["watch", &id]);
    let pulled = service.at("pulled");
    service.client(here(), &["pull", &id, pulled.to_str().expect("UTF-8")]);
    let bytes = |model: &str| {
        let weights = pulled.join("rounds").join(model).join("model.safetensors");
        weights.metadata().unwrap_or_else(|error| panic!("{}: {error}", weights.display())).len()
    };
    let (policy, reward) = (bytes("policy@1"), bytes("reward@1"));
    let steps = fs::read_to_string(pulled.join("metrics.jsonl")).expect("metrics");
    let of_step = |line: &str| {
        let step: Value = serde_json::from_str(line).expect("JSON");
        if step["phase"].as_str().expect("a phase").contains("reward") { reward } else { policy }
    };
    let gradients: u64 = steps.lines().map(of_step).sum();
    // Each rank sends 2 (p - 1) / p of the gradients to the next rank in the ring. Two of its four edges are
    // between the hosts, one in each direction. Headers and acknowledgments add a quarter of that for a model
    // as small as this. Ranks that alternate between the hosts would send all of it twice.
    let ring = gradients * 2 * 3 / 4;
    for (way, bytes) in link.crossed() {
        println!("{way}: {bytes} bytes, {:.3} of the ring's", bytes as f64 / ring as f64);
        assert!((ring..ring * 3 / 2).contains(&bytes), "{way}: {bytes} bytes crossed, the ring has {ring}");
    }
}

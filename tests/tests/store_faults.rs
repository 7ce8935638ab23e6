//! A store that is unavailable, slow or unreliable delays a job and does not change its results.

use std::process::Command;
use std::time::Duration;

use foil_tests::{FaultProxy, Faults, Process, Run, Service, StoreServer, foil, foil_worker, page, wait_for};

/// A service whose store is behind a fault proxy, and its agent.
struct FaultyStore {
    service: Service,
    proxy: FaultProxy,
    _processes: [Process; 2],
    _server: StoreServer,
}

impl FaultyStore {
    fn start(seed: u64, direct_transfers: &str) -> Option<Self> {
        let server = StoreServer::s3()?;
        let proxy = FaultProxy::start(server.address(), seed).expect("a proxy");
        let mut serve = Command::new(foil());
        serve.envs(server.environment(proxy.address())).env("FOIL_DIRECT_TRANSFERS", direct_transfers);
        let (service, coordinator) = Service::start_on(serve, "127.0.0.1", Some(server.url()));
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", service.url(), "--ranks", "2"]);
        let agent = Process::start(agent, &service.at("agent.log"));
        Some(Self { service, proxy, _processes: [coordinator, agent], _server: server })
    }

    /// Watches a job to its end in one attempt. Returns its policy and the output of the watcher.
    fn finish(&self, id: &str) -> (Vec<u8>, String) {
        let told = self.service.foil(&["watch", id]);
        let job = self.service.job(id);
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(job["attempt"], 1, "no attempt was to be lost: {job}\n{}", self.service.log("serve.log"));
        (self.service.weights(Command::new(foil()), id, "policy@1"), told)
    }
}

#[test]
fn a_job_waits_for_a_store_that_is_unavailable_for_longer_than_the_hang_timeout() {
    const SILENCE: Duration = Duration::from_secs(10);
    let Some(service) = FaultyStore::start(0, "16MiB") else { return };
    let silence = format!("resources.hang_timeout_seconds={}", SILENCE.as_secs());
    let id = service.service.submit_letters_with(Command::new(foil()), &[&silence]);
    wait_for("the first samples", || {
        let job = service.service.job(&id);
        (job["phase"] == "r01.reward.generate").then_some(())
    });
    service.proxy.set(Faults::OUTAGE);
    // A leader that cannot renew its leadership neither answers nor admits the agent. The agent looks for
    // another leader after some seconds, and counts as lost if it has not come back after ten more.
    std::thread::sleep(3 * SILENCE);
    assert!(service.proxy.failed() > 0, "there was no request to the store");
    service.proxy.set(Faults::default());

    let (policy, told) = service.finish(&id);
    let log = service.service.log("serve.log");
    assert!(log.contains("the job waits for the store"), "{log}\n{told}");
    assert!(log.contains("the store is available again"), "{log}");
    assert!(policy == Run::letters().ranks(2).finish().weights().0, "the weights differ");
}

#[test]
fn refusals_resets_lost_replies_and_delays_change_no_weights() {
    let Some(service) = FaultyStore::start(11, "16MiB") else { return };
    let delay = Duration::from_millis(20);
    service.proxy.set(Faults { refuse: 8, reset: 8, lose_reply: 8, delay, ..Faults::default() });
    let id = service.service.submit_letters(Command::new(foil()));
    let (policy, _) = service.finish(&id);
    assert!(service.proxy.failed() > 20, "{} of {}", service.proxy.failed(), service.proxy.requests());
    assert!(policy == Run::letters().ranks(2).finish().weights().0, "the weights differ");
}

#[test]
fn ranks_that_reach_the_store_themselves_get_the_same_weights_whatever_it_refuses() {
    // Models have some 100 kB, data sets less.
    let Some(service) = FaultyStore::start(5, "1KiB") else { return };
    let delay = Duration::from_millis(5);
    service.proxy.set(Faults { refuse: 3, reset: 3, delay, ..Faults::default() });
    let id = service.service.submit_letters(Command::new(foil()));
    let (policy, _) = service.finish(&id);
    let metrics = page(service.service.url(), "/metrics").1;
    for direction in ["in", "out"] {
        let name = format!("foil_direct_transfers_total{{direction=\"{direction}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let count: f64 = count.and_then(|count| count.parse().ok()).unwrap_or(0.0);
        assert!(count >= 1.0, "{direction}: {count}\n{}", service.service.log("agent.log"));
    }
    assert!(policy == Run::letters().ranks(2).finish().weights().0, "the weights differ");
}

//! Backs up a running service's store and restores it after the store is lost.

use std::process::Command;

use foil_tests::{Process, Run, Service, foil, foil_worker, wait_for};

/// A map phase; the service continues beyond it before its store is lost.
const COPIED_IN: &str = "r01.reward.generate";
const LOST_IN: &str = "r01.policy.generate";

#[test]
fn a_job_goes_on_from_a_backup_of_a_running_service() {
    let baseline = Run::letters().ranks(2).finish().weights();
    let (mut service, coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let _agents: Vec<Process> = (0..2)
        .map(|number| {
            let mut agent = Command::new(foil_worker());
            agent.args(["--coordinator", service.url(), "--ranks", "1"]);
            Process::start(agent, &service.at(&format!("agent-{number}.log")))
        })
        .collect();
    let id = service.submit_letters(Command::new(foil()));
    let reached = |phase: &str| wait_for(phase, || (service.job(&id)["phase"] == phase).then_some(()));

    reached(COPIED_IN);
    let (store, backup) = (service.at("store"), service.at("backup"));
    let [from, to] = [&store, &backup].map(|path| path.to_str().expect("UTF-8"));
    let told = service.foil(&["store", "copy", from, to]);
    assert!(told.contains("it reads without a fault"), "{told}");
    reached(LOST_IN);
    coordinator.kill();
    std::fs::remove_dir_all(&store).expect("the store is lost");
    std::fs::rename(&backup, &store).expect("the backup takes its place");

    // The agents' ranks are ahead of the restored coordinator.
    let _coordinator = service.restart(Command::new(foil()));
    service.foil(&["watch", &id]);
    let job = service.job(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    let weights = |model| service.weights(Command::new(foil()), &id, model);
    assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights differ");
}

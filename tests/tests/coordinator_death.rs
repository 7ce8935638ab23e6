//! SIGKILL of the coordinator alone: agents find the next one, and the job ends with the same weights.

use std::process::Command;

use foil_tests::{Process, Run, Service, foil, foil_worker, wait_for};

/// A gang before the first model, leases of a map phase, and a gang late in the job.
const KILLED_IN: [&str; 3] = ["r00.sft", "r01.reward.generate", "r01.policy.train"];

#[test]
fn a_killed_and_restarted_coordinator_reaches_the_same_weights() {
    let baseline = Run::letters().ranks(2).finish().weights();
    let serve = || Command::new(foil());
    let (mut service, mut coordinator) = Service::start(serve(), "127.0.0.1");
    let mut agents: Vec<Process> = (0..2)
        .map(|number| {
            let mut agent = Command::new(foil_worker());
            agent.args(["--coordinator", service.url(), "--ranks", "1"]);
            Process::start(agent, &service.at(&format!("agent-{number}.log")))
        })
        .collect();
    let id = service.submit_letters(serve());

    for phase in KILLED_IN {
        wait_for(phase, || (service.job(&id)["phase"] == phase).then_some(()));
        coordinator.kill();
        coordinator = service.restart(serve());
    }
    service.foil(&["watch", &id]);

    let job = service.job(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert!(agents.iter_mut().all(Process::is_running), "the agents must outlive their coordinators");
    assert_eq!(job["attempt"], 1, "ranks were to continue\n{}", service.log("serve.log"));
    let weights = |model| service.weights(serve(), &id, model);
    assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights differ");
}

//! Two coordinators on one store: the leader dies, the standby takes over, and running work is not lost.

use std::process::Command;
use std::time::Instant;

use foil_tests::{Process, Run, Service, foil, foil_worker, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A gang before the first model, leases of a map phase, and a gang late in the job.
const KILLED_IN: [&str; 3] = ["r00.sft", "r01.reward.generate", "r01.policy.train"];
/// Delays each of these phases by seconds, so that they can be observed on fast machines too.
const HOLD: &str = "gang.join=delay@*,phase.generate=delay@*";

/// Whether a job is in this phase or a later one.
fn has_reached(job: &Value, phase: &str) -> bool {
    let phases = job["plan"]["phases"].as_array().expect("phases");
    let place = |id: &str| phases.iter().position(|phase| phase["id"] == id);
    let now = job["phase"].as_str().and_then(place);
    assert_ne!(job["state"], "succeeded", "the job ended before {phase} was seen");
    now >= place(phase)
}

fn start_agents(service: &Service) -> Vec<Process> {
    let start = |number: usize| {
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", &service.urls(), "--ranks", "1"]).env("FOIL_FAILPOINT", HOLD);
        Process::start(agent, &service.at(&format!("agent-{number}.log")))
    };
    (0..2).map(start).collect()
}

#[test]
fn a_standby_takes_over_and_the_attempt_the_watch_and_the_weights_survive() {
    let baseline = Run::letters().ranks(2).finish().weights();
    let serve = || Command::new(foil());
    let (mut service, mut leader) = Service::start(serve(), "127.0.0.1");
    let mut standby = service.start_standby(serve());
    let mut agents = start_agents(&service);
    let id = service.submit_letters(serve());
    let mut watch = Command::new(foil());
    watch.args(["watch", &id, "--json"]).env("FOIL_COORDINATOR", service.urls());
    let watch = Process::start(watch, &service.at("watch.log"));

    for phase in KILLED_IN {
        wait_for(phase, || has_reached(&service.job(&id), phase).then_some(()));
        let killed = Instant::now();
        leader.kill();
        // The client retries until there is a leader.
        let job = service.job(&id);
        let took = killed.elapsed();
        eprintln!(
            "killed in {phase}: answers again after {:.1} s, in phase {}",
            took.as_secs_f64(),
            job["phase"]
        );
        leader = standby;
        standby = service.replace_dead(serve());
    }

    assert!(watch.finish().success(), "{}", service.log("watch.log"));
    let seen = service.log("watch.log");
    assert!(
        seen.contains(&id) && seen.contains("succeeded"),
        "the watch must continue until the end: {seen}"
    );
    let job = service.job(&id);
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(job["attempt"], 1, "ranks were to continue\n{}", service.log("serve.log"));
    assert!(agents.iter_mut().all(Process::is_running), "the agents must outlive their coordinators");
    let weights = |model| service.weights(serve(), &id, model);
    assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights differ");
    drop((leader, standby));
}

#[test]
fn a_leader_that_was_stopped_for_a_while_serves_as_standby_afterwards() {
    let serve = || Command::new(foil());
    let (mut service, mut first) = Service::start(serve(), "127.0.0.1");
    let _second = service.start_standby(serve());
    let urls: Vec<String> = service.urls().split(',').map(str::to_owned).collect();
    let id = service.submit_letters(serve());
    first.signal(Signal::SIGSTOP);
    let of = |url: &str| {
        let mut list = Command::new(foil());
        list.args(["list", "--coordinator", url]);
        list.output().expect("foil starts")
    };
    wait_for("the second coordinator to lead", || of(&urls[1]).status.success().then_some(()));
    let job = service.job(&id);
    assert_eq!(job["job"], id.as_str(), "a client that knows both does not wait for the stopped one");
    first.signal(Signal::SIGCONT);
    // The leader answers.
    let answer = of(&urls[0]);
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(
        answer.status.success() && text.contains(&id),
        "{text}{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    wait_for("the first to step down", || service.log("serve.log").contains("stepping down").then_some(()));
    assert!(first.is_running());
}

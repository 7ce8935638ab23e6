//! An agent that receives SIGTERM at any point of a job stops gracefully. The job continues elsewhere and
//! loses at most the current step or chunks of its ranks. A job of higher priority preempts the devices of
//! another in the same way.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use foil_tests::{Process, Run, Service, foil, foil_worker, wait_for};
use nix::sys::signal::Signal;

/// Settings with enough steps that some are left after each stop.
const SETTINGS: [&str; 2] = ["reward_step.epochs=2", "resources.checkpoint_seconds=0"];

const RANKS: u64 = 2;

/// Failpoints in the order in which the job reaches them if each new agent stops at the next one: loading,
/// rendezvous, a step, resuming, uploading a model; chunks generated, reported and scored; evaluation.
const SITES: [&str; 11] = [
    "phase.load@1",
    "gang.join@1",
    "train.forward@2",
    "checkpoint.download@1",
    "phase.upload@1",
    "phase.generate@1",
    "phase.report@1",
    "train.optimizer@2",
    "phase.evaluate@1",
    "phase.score@1",
    "train.backward@1",
];

fn agent(service: &Service, log: &Path, plan: Option<(&str, &Path)>) -> Process {
    let mut agent = Command::new(foil_worker());
    agent
        .args(["--coordinator", service.url(), "--ranks", &RANKS.to_string()])
        .args(["--log-format", "json"]);
    if let Some((site, marker)) = plan {
        let (name, visit) = site.split_once('@').expect("site@visit");
        agent.env("FOIL_FAILPOINT", format!("{name}=delay@{visit}")).env("FOIL_FAILPOINT_ONCE", marker);
    }
    Process::start(agent, log)
}

/// The lines with this message in an agent's log.
fn lines(log: &str, message: &str) -> Vec<serde_json::Value> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|line| line["message"] == message)
        .collect()
}

#[test]
fn an_agent_may_stop_at_any_moment() {
    let baseline = Run::letters().ranks(2).set_all(&SETTINGS).finish().weights();
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let id = service.submit_letters_with(Command::new(foil()), &SETTINGS);
    let mut logs = Vec::new();
    for (number, site) in SITES.iter().enumerate() {
        let (log, marker) = (service.at(&format!("agent-{number}.log")), service.at(&format!("at-{number}")));
        let mut agent = agent(&service, &log, Some((site, &marker)));
        wait_for(site, || {
            assert!(agent.is_running(), "{site}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            let job = service.job(&id);
            assert!(job["ended_at"].is_null(), "{site} was never reached: {job}");
            marker.exists().then_some(())
        });
        agent.signal(Signal::SIGTERM);
        let status = agent.finish();
        let text = std::fs::read_to_string(&log).expect("a log");
        assert_eq!(status.code(), Some(143), "{site}: {text}");
        assert!(!text.contains("the grace period is over"), "{site}: a rank had to be killed\n{text}");
        logs.push(text);
    }
    let last = service.at("agent-last.log");
    let _agent = agent(&service, &last, None);
    wait_for("the job's end", || (service.job(&id)["state"] == "succeeded").then_some(()));
    logs.push(std::fs::read_to_string(&last).expect("a log"));
    let weights = |model| service.weights(Command::new(foil()), &id, model);
    assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights differ");

    // A stop during a step kept that step.
    let resumed = logs.iter().any(|log| !lines(log, "training resumes from a checkpoint").is_empty());
    assert!(resumed, "the stop at {} kept no checkpoint", SITES[2]);
    let mut computed: BTreeMap<String, u64> = BTreeMap::new();
    for log in &logs {
        for line in lines(log, "chunk done") {
            *computed.entry(format!("{} {}", line["phase"], line["chunk"])).or_default() += 1;
        }
    }
    assert!(!computed.is_empty());
    let again: u64 = computed.values().map(|times| times - 1).sum();
    let stops_in_chunks = SITES.iter().filter(|site| site.starts_with("phase.")).count() as u64;
    assert!(again <= RANKS * stops_in_chunks, "{again} chunks were computed again: {computed:?}");
}

/// The urgent job arrives while the other one is training, and both end with the weights of a job that runs
/// alone.
#[test]
fn an_urgent_job_takes_the_devices_of_a_running_one_which_goes_on_later() {
    let baseline = Run::letters().ranks(2).set_all(&SETTINGS).finish().weights();
    let mut serve = Command::new(foil());
    serve.env("FOIL_PREEMPT_EXEMPT_TIME", "1s");
    let (service, _coordinator) = Service::start(serve, "127.0.0.1");
    let submit = |settings: &[&str]| {
        service.submit_letters_with(Command::new(foil()), &[&SETTINGS, settings].concat())
    };
    let patient = submit(&["priority=low"]);
    // Steps take seconds, so that the urgent job arrives during one of them.
    let slow: Vec<String> = (3..9).map(|visit| format!("train.backward=delay@{visit}")).collect();
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", &RANKS.to_string(), "--log-format", "json"]);
    agent.env("FOIL_FAILPOINT", slow.join(","));
    let _agent = Process::start(agent, &service.at("agent.log"));
    wait_for("a step", || {
        let has_stepped = !service.job(&patient)["progress"]["step"].as_array()?.is_empty();
        has_stepped.then_some(())
    });
    let urgent = submit(&["priority=high"]);
    let preempted = wait_for("preemption", || {
        let job = service.job(&patient);
        (job["preemptions"] == 1 && !job["waiting"].is_null()).then_some(job)
    });
    assert_eq!((&preempted["attempt"], &preempted["ended_at"]), (&1.into(), &serde_json::Value::Null));
    for id in [&urgent, &patient] {
        wait_for("the job's end", || (service.job(id)["state"] == "succeeded").then_some(()));
        let weights = |model| service.weights(Command::new(foil()), id, model);
        assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights of {id} differ");
    }
    let (first, second) = (service.job(&urgent), service.job(&patient));
    assert_eq!(
        (&first["attempt"], &second["attempt"], &second["preemptions"]),
        (&1.into(), &2.into(), &1.into())
    );
    let (first, second) = (&first["ended_at"], &second["ended_at"]);
    assert!(first.as_str() < second.as_str(), "the urgent job ends first: {first} and {second}");
    let resumed = lines(&service.log("agent.log"), "training resumes from a checkpoint");
    assert!(!resumed.is_empty(), "its checkpoint was kept: {}", service.log("agent.log"));
}

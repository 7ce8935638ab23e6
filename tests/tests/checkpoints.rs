//! Training resumes in the middle of a phase, from the last readable checkpoint, with the same final weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use foil_tests::{Process, Run, Service, foil, foil_worker, wait_for};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(240);
/// Settings with enough steps before and after a checkpoint.
const LONG: [&str; 3] = ["sft_step.epochs=3", "sft_step.batch_sequences=32", "reward_step.epochs=3"];

fn job(ranks: u32) -> Run {
    Run::letters().ranks(ranks).set_all(&LONG)
}

/// The steps of every phase, in the order of metrics.jsonl.
fn steps(run: &Run) -> BTreeMap<String, Vec<u64>> {
    let text = std::fs::read_to_string(run.out().join("metrics.jsonl")).expect("metrics.jsonl");
    let mut steps: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        // Some lines describe phases.
        if let Some(step) = line["step"].as_u64() {
            let phase = line["phase"].as_str().expect("phase");
            steps.entry(phase.to_owned()).or_default().push(step);
        }
    }
    steps
}

#[test]
fn a_gang_that_loses_a_rank_resumes_at_its_last_checkpoint() {
    for (ranks, sharding) in [(2, "ddp"), (3, "zero1"), (3, "fsdp"), (4, "ddp")] {
        let job = || job(ranks).set(&format!("resources.sharding={sharding}"));
        let baseline_run = job().set("resources.checkpoint_seconds=0");
        let baseline = baseline_run.finish().weights();
        // In the middle of SFT, and later in the training of the reward model.
        for site in ["train.backward=kill@12", "checkpoint.report=kill@3", "checkpoint.upload=kill@3"] {
            let run = job().set("resources.checkpoint_steps=4");
            let marker = run.scratch().join("killed");
            let run =
                run.env("FOIL_FAILPOINT", site).env("FOIL_FAILPOINT_ONCE", marker.display().to_string());
            assert!(
                run.finish().weights() == baseline,
                "{site}, {ranks} ranks, {sharding}: the weights differ"
            );
            assert!(marker.exists(), "{site} was never reached");
            assert!(run.full_logs().contains("training resumes from a checkpoint"), "{}", run.logs());
            assert_eq!(steps(&run), steps(&baseline_run), "{site}: metrics.jsonl has different steps");
        }
    }
}

/// Rank 1's shards of all checkpoints in the store of a run, oldest first.
fn shards(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![store.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if entry.file_name() == "rank-1.safetensors" {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_damaged_checkpoint_is_reported_and_the_previous_one_is_used() {
    let baseline = job(2).finish().weights();
    let run = job(2).set("resources.checkpoint_steps=4");
    let mut first = run.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("foil starts");
    let (started, mut kept) = (Instant::now(), Vec::new());
    while kept.len() < 3 {
        assert!(started.elapsed() < PATIENCE, "there are no checkpoints: {kept:?}\n{}", run.logs());
        std::thread::sleep(Duration::from_millis(20));
        kept = shards(&run.out());
    }
    first.kill().expect("the run can be killed");
    let status = first.wait().expect("the run can be waited for");
    assert!(!status.success(), "the run ended before it was killed");
    // The last one may not have been committed, but the one before it was.
    let kept = shards(&run.out());
    for shard in &kept[kept.len() - 2..] {
        let mut bytes = std::fs::read(shard).expect("a shard can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(shard, bytes).expect("a shard can be written");
    }
    assert!(run.finish().weights() == baseline, "the weights differ");
    let logs = run.full_logs();
    assert!(logs.contains("it is dropped, and training continues after step"), "{}", run.logs());
    assert!(logs.contains("training resumes from a checkpoint"), "{}", run.logs());
}

#[test]
fn a_stopped_agent_saves_its_current_step() {
    let settings = ["sft_step.epochs=3", "sft_step.batch_sequences=16", "resources.checkpoint_seconds=0"];
    let baseline = Run::letters().ranks(2).set_all(&settings).finish().weights();
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let start = |log: &str| {
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", service.url(), "--ranks", "2"]);
        Process::start(agent, &service.at(log))
    };
    let agent = start("agent.log");
    let id = service.submit_letters_with(Command::new(foil()), &settings);
    wait_for("a step of SFT", || {
        let progress = &service.job(&id)["progress"];
        let steps: u64 = progress["done"].as_str().and_then(|done| done.parse().ok()).unwrap_or(0);
        (progress["phase"] == "r00.sft" && progress["unit"] == "steps" && steps > 3).then_some(())
    });
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.finish().code(), Some(143), "{}", service.log("agent.log"));
    let logs = format!("{}\n{}", service.log("agent.log"), service.log("serve.log"));
    assert!(logs.contains("checkpoint committed"), "{logs}");
    let told = wait_for("the word of how the attempt ended", || {
        let log = service.log("serve.log");
        log.lines().find(|line| line.contains("attempt ended")).map(str::to_owned)
    });
    assert!(told.contains("as requested; its checkpoint is written"), "{told}");

    let _again = start("agent-again.log");
    wait_for("the job's end", || (service.job(&id)["state"] == "succeeded").then_some(()));
    let log = service.log("agent-again.log");
    assert!(log.contains("training resumes from a checkpoint"), "{log}");
    let weights = |model| service.weights(Command::new(foil()), &id, model);
    assert!((weights("policy@1"), weights("reward@1")) == baseline, "the weights differ");
}

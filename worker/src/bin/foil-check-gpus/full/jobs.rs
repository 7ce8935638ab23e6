//! Short jobs of several methods, precisions and shardings, with the same weights when they are repeated or
//! lose a rank.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::finding::Finding;
use super::{Check, process};

/// Names and settings of jobs that need only succeed.
const JOBS: [(&str, &[&str]); 6] = [
    ("fp32, zero1, checkpointing", &["resources.sharding=zero1", "resources.activation_checkpointing=true"]),
    ("bf16, fsdp", &["resources.precision=bf16", "resources.sharding=fsdp"]),
    ("bf16, dpo", &["resources.precision=bf16", "policy_step.dpo={beta: 0.1}"]),
    ("bf16, grpo", &["resources.precision=bf16", "policy_step.grpo={beta: 0.05}"]),
    ("bf16, rrhf", &["resources.precision=bf16", "policy_step.rrhf={ranking_weight: 1}"]),
    ("bf16, lora", &["resources.precision=bf16", "policy_step.lora.rank=4", "reward_step.lora.rank=4"]),
];
/// Time limit of one job.
const LIMIT: Duration = Duration::from_secs(120);
const BF16: [&str; 1] = ["resources.precision=bf16"];

pub(super) fn run(check: &Check<'_>, limit: Duration, findings: &mut Vec<Finding>) -> Result<()> {
    fs::create_dir_all(check.out.join("jobs"))?;
    let jobs = Jobs { check, deadline: Instant::now() + limit };
    let mut failed = Vec::new();
    let mut run = |name, settings: &[&str], failpoint| {
        let weights = jobs.run(name, settings, failpoint, findings);
        findings.push(Finding::must_hold(format!("job succeeds: {name}"), weights.is_ok()));
        weights.map_err(|error| failed.push(format!("{error:#}"))).ok()
    };
    let first = run("bf16", &BF16, None);
    let again = run("bf16, again", &BF16, None);
    let killed = run("bf16, a rank killed", &BF16, Some("train.optimizer=kill@2"));
    for (name, settings) in if check.is_small { &JOBS[..2] } else { &JOBS[..] } {
        // One rank has nothing to shard.
        if check.devices.len() > 1 || !name.contains("fsdp") {
            run(name, settings, None);
        }
    }
    let is_same = |weights: &Option<[Vec<u8>; 2]>| weights.is_some() && *weights == first;
    findings.push(Finding::must_hold("the same job gives the same weights", is_same(&again)));
    findings.push(Finding::must_hold("a killed rank changes no weights", is_same(&killed)));
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

struct Jobs<'a> {
    check: &'a Check<'a>,
    deadline: Instant,
}

impl Jobs<'_> {
    /// Runs a job on all devices and returns the weights of its policy and its reward model.
    fn run(
        &self,
        name: &str,
        settings: &[&str],
        failpoint: Option<&str>,
        findings: &mut Vec<Finding>,
    ) -> Result<[Vec<u8>; 2]> {
        ensure!(Instant::now() < self.deadline, "no time is left for the job {name}");
        let foil = std::env::current_exe().context("finding this program")?.with_file_name("foil");
        let out = self.out(name);
        let ranks = self.check.devices.len();
        let mut command = Command::new(&foil);
        command.arg("run").arg(self.check.job).arg("--fresh").arg("--out").arg(&out);
        command.args(["--json", "--device", self.check.device.name(), "--ranks", &ranks.to_string()]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let once = out.with_extension("killed");
        if let Some(failpoint) = failpoint {
            if once.exists() {
                fs::remove_file(&once)?;
            }
            command.env("FOIL_FAILPOINT", failpoint).env("FOIL_FAILPOINT_ONCE", &once);
        }
        let started = Instant::now();
        let (stdout, log) = (out.with_extension("json"), out.with_extension("log"));
        let left = self.deadline.saturating_duration_since(started).min(LIMIT);
        process::run(&mut command, &stdout, &log, left).with_context(|| format!("the job {name}"))?;
        ensure!(failpoint.is_none() || once.exists(), "no rank was killed in the job {name}");
        let seconds = started.elapsed().as_secs_f64();
        findings.push(Finding::note(format!("time of the job: {name}, on {ranks} ranks"), seconds, "s"));
        let weights = |model: &str| {
            let path = out.join(model).join("model.safetensors");
            fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok([weights("policy")?, weights("reward")?])
    }

    fn out(&self, name: &str) -> PathBuf {
        let name: String = name.chars().filter(|character| *character != ',').collect();
        self.check.out.join("jobs").join(name.replace(' ', "-"))
    }
}

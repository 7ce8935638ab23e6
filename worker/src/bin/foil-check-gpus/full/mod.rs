//! `--full`: everything a host must do for a job, step by step. A step that fails does not stop the others.

#![expect(clippy::disallowed_methods, reason = "steps are timed")]

mod facts;
pub(crate) mod finding;
mod jobs;
mod kernels;
mod process;
mod shortage;
mod speed;
mod step;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use foil_proto::v1;
use foil_worker::agent::DeviceKind;
use serde::Serialize;

use self::finding::{Bound, Finding};
pub(crate) use self::step::{StepArgs, run as run_step};
use super::group::Group;
use super::{print_line, table};

/// Steps that run in their own process, so that a broken device does not end the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Isolated {
    Kernels,
    Speed,
    Shortage,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Facts,
    Isolated(Isolated),
    Collectives,
    LostRank,
    Jobs,
}

/// Names and time limits in seconds, in the order in which later steps depend on earlier ones. The limits add
/// up to more than [`Check::LIMITS`], which holds for all together.
const STEPS: [(&str, Step, u64); 7] = [
    ("facts", Step::Facts, 30),
    ("kernels", Step::Isolated(Isolated::Kernels), 120),
    ("speed", Step::Isolated(Isolated::Speed), 240),
    ("shortage", Step::Isolated(Isolated::Shortage), 60),
    ("collectives", Step::Collectives, 240),
    ("lost rank", Step::LostRank, 120),
    ("jobs", Step::Jobs, 420),
];

const SUMMARY: &str = "summary.json";

/// A check of all devices.
pub(crate) struct Check<'a> {
    pub(crate) device: DeviceKind,
    pub(crate) devices: &'a [v1::Device],
    pub(crate) mebibytes: u64,
    /// Time after which a group of ranks is considered hung.
    pub(crate) timeout: Duration,
    pub(crate) job: &'a Path,
    /// Receives `summary.json`, logs and the jobs' results.
    pub(crate) out: &'a Path,
    /// Whether models are small, to try this program without a GPU.
    pub(crate) is_small: bool,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    version: &'static str,
    devices: Vec<String>,
    seconds: f64,
    passed: bool,
    steps: &'a [StepResult],
}

#[derive(Debug, Serialize)]
struct StepResult {
    name: &'static str,
    seconds: f64,
    /// Why it ended early, or did not run.
    error: Option<String>,
    findings: Vec<Finding>,
}

impl StepResult {
    fn fails(&self) -> bool {
        self.error.is_some() || self.findings.iter().any(Finding::fails)
    }
}

/// Removes the summary of an earlier check from a directory.
pub(crate) fn forget(out: &Path) -> Result<()> {
    let summary = out.join(SUMMARY);
    match fs::remove_file(&summary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", summary.display()))
        }
        _ => Ok(()),
    }
}

impl Check<'_> {
    /// Time for all steps with one device, and with several. A process that does not end may take a minute
    /// longer.
    const LIMITS: [Duration; 2] = [Duration::from_secs(530), Duration::from_secs(830)];

    /// Runs all steps, prints a table and writes `summary.json`. Returns whether all that must hold does.
    pub(crate) fn run(&self) -> Result<bool> {
        fs::create_dir_all(self.out).with_context(|| format!("cannot create {}", self.out.display()))?;
        let names = self.devices.iter().map(|device| format!("{} {}", device.name, device.id));
        let names: Vec<String> = names.collect();
        print_line(&names.join("\n"))?;
        print_line(&format!("{:<12}{:<58}{:<16}BOUND", "STEP", "CHECK", "VALUE"))?;
        let started = Instant::now();
        let limit = Self::LIMITS[usize::from(self.devices.len() > 1)];
        let mut steps = Vec::new();
        for (name, step, seconds) in STEPS {
            let left = limit.saturating_sub(started.elapsed());
            let result = self.step(name, step, left.min(Duration::from_secs(seconds)));
            for finding in &result.findings {
                print_line(&finding.row(name))?;
            }
            let ending = match &result.error {
                Some(error) => format!("FAILED after {:.1} s: {error}", result.seconds),
                None => format!("took {:.1} s", result.seconds),
            };
            print_line(&format!("{name:<12}{ending}"))?;
            steps.push(result);
            self.write(&names, started, &steps)?;
        }
        let failed: Vec<_> = steps.iter().filter(|step| step.fails()).map(|step| step.name).collect();
        print_line(&match failed.is_empty() {
            true => format!("passed in {:.0} s", started.elapsed().as_secs_f64()),
            false => format!("failed: {}; logs are in {}", failed.join(", "), self.out.display()),
        })?;
        Ok(failed.is_empty())
    }

    fn write(&self, names: &[String], started: Instant, steps: &[StepResult]) -> Result<()> {
        let summary = Summary {
            version: env!("CARGO_PKG_VERSION"),
            devices: names.to_vec(),
            seconds: started.elapsed().as_secs_f64(),
            passed: steps.len() == STEPS.len() && !steps.iter().any(StepResult::fails),
            steps,
        };
        let path = self.out.join(SUMMARY);
        fs::write(&path, format!("{:#}\n", serde_json::to_value(&summary)?))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn step(&self, name: &'static str, step: Step, limit: Duration) -> StepResult {
        let started = Instant::now();
        let mut findings = Vec::new();
        let done = match step {
            _ if limit.is_zero() => Err(anyhow!("no time is left for it")),
            Step::Facts => facts::find(self, limit, &mut findings),
            Step::Isolated(isolated) => step::start(self, isolated, limit, &mut findings),
            Step::Collectives => self.collectives(&mut findings, limit),
            Step::LostRank => self.lost_rank(&mut findings, limit),
            Step::Jobs => jobs::run(self, limit, &mut findings),
        };
        let error = done.err().map(|error| format!("{error:#}"));
        StepResult { name, seconds: started.elapsed().as_secs_f64(), error, findings }
    }

    fn group(&self, world: usize, timeout: Duration) -> Group<'_> {
        Group { device: self.device, devices: &self.devices[..world], mebibytes: self.mebibytes, timeout }
    }

    fn collectives(&self, findings: &mut Vec<Finding>, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for world in 1..=self.devices.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            let report = self.group(world, self.timeout.min(left)).check();
            let report = report.with_context(|| format!("{world} of {} ranks", self.devices.len()))?;
            let check = format!("exact collectives of {world} ranks");
            findings.push(Finding::note(check, report.checked as f64, ""));
            if world > 1 {
                let check = format!("all-reduce of {} MiB on {world} ranks, bus", report.bytes >> 20);
                let found =
                    Finding::note(check, table::bus_bytes(world, &report) / report.seconds / 1e9, "GB/s");
                // What NVSwitch gives; PCIe gives a tenth of it.
                let bound = (self.device == DeviceKind::Cuda).then_some(Bound::AtLeast(300.0));
                findings.push(Finding { bound, ..found });
            }
        }
        Ok(())
    }

    /// The ranks that are left when one dies must end.
    fn lost_rank(&self, findings: &mut Vec<Finding>, limit: Duration) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(20);
        if self.devices.len() < 2 {
            return Ok(());
        }
        let seconds = self.group(2, TIMEOUT).survive(limit)?.as_secs_f64();
        let check = "end of a rank whose peer was killed between all-reduces";
        findings.push(Finding::note(check, seconds, "s"));
        Ok(())
    }

    /// A file for a step's output.
    fn log(&self, step: &str) -> PathBuf {
        self.out.join(format!("{step}.log"))
    }
}

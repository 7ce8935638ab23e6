//! Attacks a running coordinator in every way that it must withstand, and checks that other users are not
//! affected.
//!
//! A coordinator with few file descriptors and an agent, both real processes, run the shrunken letters job.
//! One attack after another runs at the same time, while a probe lists jobs continuously. The job must end
//! with the weights of a run without attacks, bit for bit.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attacks;
mod probe;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use foil_tests::{Process, Service, foil, foil_worker};
use serde_json::Value;

use self::attacks::{Attack, ORDINARY_AGENT, Target};
use self::probe::Probe;

#[derive(Debug, Clone, Parser)]
#[command(
    name = "foil-attack",
    about = "Attacks a running coordinator in every way that it must withstand, and checks that nobody else notices"
)]
struct Args {
    /// Duration of each attack.
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// Duration of a control measurement without an attack before each attack.
    #[arg(long, value_name = "N", default_value_t = 0)]
    control_seconds: u64,
    /// Include attacks that need minutes, or a dedicated machine.
    #[arg(long)]
    all: bool,
    /// Run only attacks whose names start with this.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Maximum number of file descriptors of the coordinator.
    #[arg(long, value_name = "N", default_value_t = 256)]
    descriptors: u32,
    /// Maximum latency of a list request in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    patience_ms: u64,
    /// Maximum memory of the coordinator in MiB.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    memory_mib: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut attacks = attacks::brief();
    if args.all {
        attacks.extend(attacks::long());
    }
    let attacks: Vec<_> = attacks.iter().filter(|attack| attack.name().starts_with(&args.only)).collect();
    ensure!(!attacks.is_empty(), "no attack's name starts with {}", args.only);
    let mut scene = Cluster::new(args)?;
    println!("{:<30} {HEADINGS}  {HEADINGS} {:>6} {:>6}  load", "attack / control", "peak", "jobs");
    let mut violations = Vec::new();
    for attack in attacks {
        violations.extend(scene.attack(*attack, args)?);
    }
    scene.finish()?;
    ensure!(violations.is_empty(), "{}", violations.join("; "));
    println!("all jobs ended with the weights of the baseline");
    Ok(())
}

const HEADINGS: &str = " lists failed   median      99%      max";

/// A coordinator, an agent, the target of attacks, and a probe.
struct Cluster {
    service: Service,
    coordinator: Process,
    _agent: Process,
    target: Target,
    probe: Probe,
    /// Weights of a job without attacks.
    expected: Vec<u8>,
    running: Option<String>,
    completed: usize,
}

impl Cluster {
    fn new(args: &Args) -> Result<Self> {
        let (service, coordinator) = Service::start(limited_foil(args.descriptors), "127.0.0.1");
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", service.url(), "--ranks", "2", "--agent-id", ORDINARY_AGENT]);
        let agent = Process::start(agent, &service.at("agent.log"));
        let baseline = service.submit_letters(Command::new(foil()));
        service.foil(&["watch", &baseline]);
        let expected = service.weights(Command::new(foil()), &baseline, "policy@1");
        let target = Target::new(&service, &baseline)?;
        let probe = Probe::start(service.url())?;
        let running = Some(service.submit_letters(Command::new(foil())));
        Ok(Self { service, coordinator, _agent: agent, target, probe, expected, running, completed: 0 })
    }

    /// Runs an attack; returns the violations.
    fn attack(&mut self, attack: Attack, args: &Args) -> Result<Vec<String>> {
        let seconds = Duration::from_secs;
        self.probe.take();
        if args.control_seconds > 0 {
            run_jobs(&self.service, &mut self.running, &self.expected, seconds(args.control_seconds))?;
        }
        let control = self.probe.take();
        reset_peak(self.coordinator.id());
        let Self { service, running, expected, target, .. } = self;
        let ended =
            target.while_under(attack, || run_jobs(service, running, expected, seconds(args.seconds)))?;
        self.completed += ended;
        let latencies = self.probe.take();
        let peak = peak_bytes(self.coordinator.id()) >> 20;
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or_default();
        println!("{:<30} {latencies}  {control} {peak:>6} {ended:>6}  {load}", attack.name());
        let mut violations = Vec::new();
        if latencies.failed() > 0 {
            violations.push(format!(
                "{}: {} list requests failed: {}",
                attack.name(),
                latencies.failed(),
                latencies.first_failure()
            ));
        }
        if latencies.max() > Duration::from_millis(args.patience_ms) {
            violations.push(format!("{}: a list request took {:?}", attack.name(), latencies.max()));
        }
        if peak > args.memory_mib {
            violations.push(format!("{}: the coordinator took {peak} MiB", attack.name()));
        }
        Ok(violations)
    }

    /// Waits for the last job to end.
    fn finish(&mut self) -> Result<()> {
        if let Some(id) = self.running.take() {
            self.service.foil(&["watch", &id]);
            compare(&self.service, &id, &self.expected)?;
            self.completed += 1;
        }
        println!("jobs completed meanwhile: {}", self.completed);
        Ok(())
    }
}

/// Runs jobs for a while. Returns how many have ended, each with the expected weights.
fn run_jobs(
    service: &Service,
    running: &mut Option<String>,
    expected: &[u8],
    time: Duration,
) -> Result<usize> {
    let (began, mut ended) = (Instant::now(), 0);
    while began.elapsed() < time {
        std::thread::sleep(Duration::from_millis(200));
        if let Some(id) = running.take_if(|id| has_ended(service, id)) {
            ended += 1;
            compare(service, &id, expected)?;
            *running = Some(service.submit_letters(Command::new(foil())));
        }
    }
    Ok(ended)
}

/// `foil` with limited file descriptors.
fn limited_foil(descriptors: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"")]).arg(foil());
    command
}

fn has_ended(service: &Service, id: &str) -> bool {
    let state = service.job(id)["state"].as_str().unwrap_or_default().to_uppercase();
    ["SUCCEEDED", "FAILED", "CANCELLED"].iter().any(|end| state.ends_with(end))
}

fn compare(service: &Service, id: &str, expected: &[u8]) -> Result<()> {
    let job: Value = service.job(id);
    let state = job["state"].as_str().unwrap_or_default().to_uppercase();
    ensure!(state.ends_with("SUCCEEDED"), "job {id} is {state}: {}", job["failure"]);
    let weights = service.weights(Command::new(foil()), id, "policy@1");
    ensure!(weights == expected, "job {id} has other weights than the baseline");
    fs::remove_dir_all(service.at("policy@1"))?;
    Ok(())
}

/// Resets the kernel's record of a process's peak memory.
fn reset_peak(process: u32) {
    // Without permission, the peak is that of the whole run.
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}

/// Peak memory of a process.
fn peak_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

//! Attacks a running coordinator in every way it is to bear, and shows that nobody else notices.
//!
//! A coordinator with few file descriptors and an agent, both real processes, play the shrunken letters job. Meanwhile
//! one attack after another goes on, a probe lists jobs all the time, and the job must end with the weights of an
//! undisturbed one, bit for bit.

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
    about = "Attacks a running coordinator in every way it is to bear, and shows that nobody else notices"
)]
struct Args {
    /// How long each attack goes on.
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// How long lists are timed without an attack before each.
    #[arg(long, value_name = "N", default_value_t = 0)]
    control_seconds: u64,
    /// Make the attacks too that need minutes, or a machine of their own.
    #[arg(long)]
    all: bool,
    /// Only the attacks whose names begin so.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// File descriptors of the coordinator.
    #[arg(long, value_name = "N", default_value_t = 256)]
    descriptors: u32,
    /// The longest that any list may take, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    patience_ms: u64,
    /// The most memory that the coordinator may take, in MiB.
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
    ensure!(!attacks.is_empty(), "no attack's name begins with {}", args.only);
    let mut scene = Scene::new(args)?;
    println!("{:<30} {HEADINGS}  {HEADINGS} {:>6} {:>6}  load", "attack / undisturbed", "peak", "jobs");
    let mut faults = Vec::new();
    for attack in attacks {
        faults.extend(scene.attack(*attack, args)?);
    }
    scene.finish()?;
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    println!("all jobs ended with the weights of the undisturbed one");
    Ok(())
}

const HEADINGS: &str = " lists failed   median      99%  longest";

/// A coordinator, an agent, a client that lists and one that submits.
struct Scene {
    service: Service,
    coordinator: Process,
    _agent: Process,
    target: Target,
    probe: Probe,
    /// Weights of a job that nothing disturbed.
    expected: Vec<u8>,
    running: Option<String>,
    played: usize,
}

impl Scene {
    fn new(args: &Args) -> Result<Self> {
        let (service, coordinator) = Service::start(scarce(args.descriptors), "127.0.0.1");
        let mut agent = Command::new(foil_worker());
        agent.args(["--coordinator", service.url(), "--ranks", "2", "--agent-id", ORDINARY_AGENT]);
        let agent = Process::start(agent, &service.at("agent.log"));
        let quiet = service.submit_letters(Command::new(foil()));
        service.foil(&["watch", &quiet]);
        let expected = service.weights(Command::new(foil()), &quiet, "policy@1");
        let target = Target::new(&service, &quiet)?;
        let probe = Probe::start(service.url())?;
        let running = Some(service.submit_letters(Command::new(foil())));
        Ok(Self { service, coordinator, _agent: agent, target, probe, expected, running, played: 0 })
    }

    /// Attacks, and gives what went wrong meanwhile.
    fn attack(&mut self, attack: Attack, args: &Args) -> Result<Vec<String>> {
        let seconds = Duration::from_secs;
        self.probe.take();
        if args.control_seconds > 0 {
            play(&self.service, &mut self.running, &self.expected, seconds(args.control_seconds))?;
        }
        let control = self.probe.take();
        forget_peak(self.coordinator.id());
        let Self { service, running, expected, target, .. } = self;
        let ended = target.while_under(attack, || play(service, running, expected, seconds(args.seconds)))?;
        self.played += ended;
        let told = self.probe.take();
        let peak = peak_bytes(self.coordinator.id()) >> 20;
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or_default();
        println!("{:<30} {told}  {control} {peak:>6} {ended:>6}  {load}", attack.name());
        let mut faults = Vec::new();
        if told.failed() > 0 {
            faults.push(format!(
                "{}: {} lists failed: {}",
                attack.name(),
                told.failed(),
                told.first_failure()
            ));
        }
        if told.longest() > Duration::from_millis(args.patience_ms) {
            faults.push(format!("{}: a list took {:?}", attack.name(), told.longest()));
        }
        if peak > args.memory_mib {
            faults.push(format!("{}: the coordinator took {peak} MiB", attack.name()));
        }
        Ok(faults)
    }

    /// The last job ends too.
    fn finish(&mut self) -> Result<()> {
        if let Some(id) = self.running.take() {
            self.service.foil(&["watch", &id]);
            compare(&self.service, &id, &self.expected)?;
            self.played += 1;
        }
        println!("jobs played meanwhile: {}", self.played);
        Ok(())
    }
}

/// Plays one job after another for so long; gives how many have ended, each with the weights expected.
fn play(service: &Service, running: &mut Option<String>, expected: &[u8], time: Duration) -> Result<usize> {
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

/// `foil` with so many file descriptors.
fn scarce(descriptors: u32) -> Command {
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
    ensure!(weights == expected, "job {id} has other weights than the undisturbed one");
    fs::remove_dir_all(service.at("policy@1"))?;
    Ok(())
}

/// Lets the kernel measure again what a process has had in memory at most.
fn forget_peak(process: u32) {
    // Where it may not, the peak is that of the whole run.
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}

/// What a process has had in memory at most.
fn peak_bytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

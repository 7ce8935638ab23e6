//! Attacks a running coordinator in every way it is to bear, and shows that nobody else notices.
//!
//! A coordinator with few file descriptors and an agent, both real processes, play the shrunken letters job. Meanwhile
//! one attack after another goes on, a probe lists jobs all the time, and the job must end with the weights of an
//! undisturbed one, bit for bit.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attacks;
mod probe;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use foil_tests::{Process, Service, foil, foil_worker};
use serde_json::Value;

use self::attacks::Target;
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
    /// Only the attacks whose names begin so.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// File descriptors of the coordinator.
    #[arg(long, value_name = "N", default_value_t = 256)]
    descriptors: u32,
    /// The longest that any list may take, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    patience_ms: u64,
}

/// Times that the job is played while attacks go on.
const JOBS_AT_MOST: usize = 100;

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
    let attacks = attacks::all();
    let attacks: Vec<_> = attacks.iter().filter(|attack| attack.name().starts_with(&args.only)).collect();
    ensure!(!attacks.is_empty(), "no attack's name begins with {}", args.only);
    let (service, coordinator) = Service::start(scarce(args.descriptors), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));

    let quiet = service.submit_letters(Command::new(foil()));
    service.foil(&["watch", &quiet]);
    let expected = service.weights(Command::new(foil()), &quiet, "policy@1");

    let target = Target::new(&service, &quiet)?;
    let probe = Probe::start(service.url())?;
    let patience = Duration::from_millis(args.patience_ms);
    let (mut running, mut played) = (Some(service.submit_letters(Command::new(foil()))), 0);
    let memory = resident_bytes(coordinator.id());
    println!("{:<28} {:>8} {:>8} {:>8} {:>8}  memory", "attack", "lists", "failed", "median", "longest");
    for attack in attacks {
        probe.take();
        let began = Instant::now();
        target.while_under(*attack, || {
            while began.elapsed() < Duration::from_secs(args.seconds) {
                std::thread::sleep(Duration::from_millis(200));
                if let Some(id) = running.take_if(|id| has_ended(&service, id)) {
                    played += 1;
                    compare(&service, &id, &expected)?;
                    if played < JOBS_AT_MOST {
                        running = Some(service.submit_letters(Command::new(foil())));
                    }
                }
            }
            Ok(())
        })?;
        let told = probe.take();
        let now = resident_bytes(coordinator.id());
        println!("{:<28} {told}  {} MiB", attack.name(), now >> 20);
        ensure!(
            told.failed() == 0,
            "{}: {} lists failed: {}",
            attack.name(),
            told.failed(),
            told.first_failure()
        );
        ensure!(told.longest() <= patience, "{}: a list took {:?}", attack.name(), told.longest());
    }
    if let Some(id) = running {
        service.foil(&["watch", &id]);
        compare(&service, &id, &expected)?;
        played += 1;
    }
    println!("jobs played meanwhile: {played}, all with the weights of the undisturbed one");
    println!("memory: {} MiB before, {} MiB after", memory >> 20, resident_bytes(coordinator.id()) >> 20);
    Ok(())
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
    std::fs::remove_dir_all(service.at("policy@1"))?;
    Ok(())
}

/// What a process has in memory.
fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

//! Fuzzes the client's commands with mutated inputs of a job. They must not panic, die of a signal, hang, or
//! use more than 1 GiB of memory. Failing inputs are kept and can be reproduced from their seeds.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod case;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use self::case::Case;
use self::run::{Outcome, Verdict};

#[derive(Debug, Clone, Parser)]
#[command(
    name = "foil-fuzz",
    about = "Fuzzes foil with mutated inputs, each of which it must accept or refuse"
)]
struct Args {
    /// Number of inputs.
    #[arg(long, value_name = "N", default_value_t = 300)]
    runs: u64,
    /// Seed of the first input; later ones have consecutive seeds. With `--runs 1`, reproduces one input.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Number of concurrent commands.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// The client under test. Default: foil in this program's directory
    #[arg(long, value_name = "FILE")]
    foil: Option<PathBuf>,
    /// Directory for failing inputs.
    #[arg(long, value_name = "DIR", default_value = "fuzz-findings")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match fuzz(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    findings: u64,
}

/// The number of inputs that failed.
fn fuzz(args: &Args) -> Result<u64> {
    let foil = match &args.foil {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name("foil"),
    };
    let base = Case::base().context("the inputs to mutate")?;
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let counts = Mutex::new(Counts::default());
    let failures: Mutex<Vec<anyhow::Error>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while let Some(seed) = claim(&next, args) {
                    if let Err(error) = one(args, &foil, &base, seed, &counts) {
                        lock(&failures).push(error);
                        return;
                    }
                }
            });
        }
    });
    if let Some(error) = lock(&failures).pop() {
        return Err(error);
    }
    let counts = lock(&counts);
    println!(
        "{} inputs from seed {}: {} accepted, {} refused, {} findings; {:.0} s",
        args.runs,
        args.seed,
        counts.accepted,
        counts.refused,
        counts.findings,
        started.elapsed().as_secs_f64()
    );
    Ok(counts.findings)
}

fn claim(next: &AtomicU64, args: &Args) -> Option<u64> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    (index < args.runs).then_some(args.seed + index)
}

fn one(args: &Args, foil: &std::path::Path, base: &Case, seed: u64, counts: &Mutex<Counts>) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let case = base.mutated(&mut random);
    let dir = tempfile::tempdir()?;
    case.write(dir.path())?;
    let command = *random.choice(run::COMMANDS).unwrap_or(&run::COMMANDS[0]);
    let Outcome { verdict, output } = run::run(foil, command, dir.path())?;
    let mut counts = lock(counts);
    match verdict {
        Verdict::Accepted => counts.accepted += 1,
        Verdict::Refused => counts.refused += 1,
        Verdict::Finding(what) => {
            counts.findings += 1;
            let kept = args.out.join(format!("seed-{seed}"));
            case.write(&kept)?;
            std::fs::write(kept.join("output.txt"), &output)?;
            println!(
                "seed {seed}: foil {}: {what} ({}); kept in {}",
                command.join(" "),
                case.changed(base),
                kept.display()
            );
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

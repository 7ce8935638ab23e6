//! Chaos tests: injects every fault that a service must survive, and checks that results do not change.
//!
//! Two coordinators and two agents, all real processes, run the shrunken letters job repeatedly while faults
//! are injected. Each job must end with the weights of a run without faults, bit for bit.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod cluster;
mod failpoints;
mod fault;
mod hosts;
mod schedule;
mod summary;
mod watcher;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use self::cluster::{Cluster, StoreKind};
use self::hosts::Hosts;
use self::summary::Summary;

#[derive(Debug, Clone, Parser)]
#[command(
    name = "foil-chaos",
    about = "Injects every fault that a service must survive, and compares the weights with those of a run without faults"
)]
pub(crate) struct Args {
    /// Number of faults at random times.
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    /// Seed of the fault schedule.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Number of ranks of the job: the first agent has one, the second the others.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=8))]
    ranks: u32,
    /// Kind of device that the ranks compute on.
    #[arg(long, value_name = "KIND", default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// Trigger every named failpoint in turn, once each.
    #[arg(long, value_enum, default_value_t = Failpoints::None)]
    failpoints: Failpoints,
    /// Trigger only the failpoints whose names start with this.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Store of all durable state. S3 is served by moto behind a proxy that injects faults.
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    store: StoreKind,
    /// Keep all logs in this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<std::path::PathBuf>,
    /// Set by this program itself if it runs in a network namespace.
    #[arg(long, hide = true)]
    hosts: Option<Hosts>,
}

/// The actions at each failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Failpoints {
    /// No failpoints.
    None,
    /// The process kills itself at the failpoint.
    Kill,
    /// Each of kill, error and delay, in separate jobs.
    Matrix,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.hosts {
        None => hosts::run_on_hosts(&args),
        Some(hosts) => run(&args, hosts),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cases. Returns whether all of them passed.
fn run(args: &Args, hosts: &Hosts) -> Result<bool> {
    let mut summary = Summary::default();
    let baseline = Cluster::start(args, hosts, "baseline", &[])?.run_baseline(&mut summary)?;
    if args.kills > 0 {
        schedule::run(args, hosts, &baseline, &mut summary)?;
    }
    failpoints::run(args, hosts, &baseline, &mut summary)?;
    summary.print(args);
    Ok(summary.passed())
}

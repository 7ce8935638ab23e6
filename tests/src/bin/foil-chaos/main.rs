//! Breaks a running service in every way it is to survive, and shows that nothing of a job changes by it.
//!
//! A pair of coordinators and two agents, all real processes, play the shrunken letters job over and over, while one thing
//! after another goes wrong with them. Each job must end with the weights of an undisturbed one, bit for bit.

// The report goes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod follow;
mod hosts;
mod sites;
mod storm;
mod tally;
mod trouble;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use self::hosts::Hosts;
use self::tally::Tally;
use self::world::{StoreKind, World};

#[derive(Debug, Clone, Parser)]
#[command(
    name = "foil-chaos",
    about = "Breaks a running service in every way it is to survive, and compares the weights with an undisturbed run's"
)]
pub(crate) struct Args {
    /// How many things go wrong, at random times.
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    /// What goes wrong, and when, follows from it.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Ranks of the job: the first agent has one, the second the others.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=8))]
    ranks: u32,
    /// Pass every named failpoint in turn, once each.
    #[arg(long, value_enum, default_value_t = Sites::None)]
    failpoints: Sites,
    /// Pass only the failpoints whose name begins so.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// What all durable state lies in; S3 is served by moto, behind a proxy that lets requests go wrong.
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    store: StoreKind,
    /// Keep all logs in this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<std::path::PathBuf>,
    /// Set by this program for itself, where it runs on a host of its own.
    #[arg(long, hide = true)]
    hosts: Option<Hosts>,
}

/// What is done at each failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sites {
    /// Leave them out.
    None,
    /// The process kills itself there.
    Kill,
    /// Each of kill, error and delay, in a job of its own.
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

/// Whether everything held.
fn run(args: &Args, hosts: &Hosts) -> Result<bool> {
    let mut tally = Tally::default();
    let quiet = World::start(args, hosts, "undisturbed", &[])?.play_undisturbed(&mut tally)?;
    if args.kills > 0 {
        storm::run(args, hosts, &quiet, &mut tally)?;
    }
    sites::run(args, hosts, &quiet, &mut tally)?;
    tally.print(args);
    Ok(tally.held())
}

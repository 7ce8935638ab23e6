//! `foil-check-gpus`: checks this machine's GPUs and NCCL between them before a job depends on them.
//!
//! For every number of ranks, it starts one process per device, checks each collective against sums computed
//! on the host, and measures all-reduce. Then it runs a short job on all devices. On the CPU it does the same
//! over Gloo.

mod full;
mod group;
mod job;
mod rank;
mod sums;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand};
use foil_worker::agent::{DeviceKind, list_devices};

use self::group::Group;

#[derive(Debug, Parser)]
#[command(name = "foil-check-gpus", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    check: CheckArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run as one process of a group; started by the check itself.
    #[command(hide = true)]
    Rank(rank::RankArgs),
    /// Run one step of `--full`; started by the check itself.
    #[command(hide = true)]
    Step(full::StepArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Devices to check: GPUs over NCCL, or CPU processes over Gloo to try this tool.
    #[arg(long, value_enum, default_value = "cuda")]
    device: DeviceKind,
    /// Maximum number of ranks to check. Default: one per GPU; 2 on the CPU.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ranks: Option<u16>,
    /// Size of the measured all-reduce.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    mebibytes: u16,
    /// Seconds after which a group is considered hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u16).range(1..))]
    timeout: u16,
    /// A short job to run on all ranks. Default: none.
    #[arg(long, value_name = "JOB.yaml")]
    job: Option<PathBuf>,
    /// Check everything that a job needs: operations against the CPU's, speed and memory of a model of 1.2
    /// billion parameters, collectives, the death of a rank, and jobs of several methods. Takes at most 10
    /// minutes with one GPU, and 15 with several. Writes summary.json, logs and results to this
    /// directory.
    #[arg(long, value_name = "DIR", requires = "job")]
    full: Option<PathBuf>,
    /// With --full, use a tiny model instead, to try this tool without a GPU.
    #[arg(long, requires = "full")]
    small: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Rank(args)) => rank::run(&args),
        Some(Command::Step(args)) => full::run_step(&args),
        None => check(&cli.check),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, there is nowhere to report to.
            let _ = writeln!(io::stderr().lock(), "foil-check-gpus: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    if let Some(out) = &args.full {
        full::forget(out)?;
    }
    let ranks = args.ranks.or((args.device == DeviceKind::Cpu).then_some(2)).map(usize::from);
    let devices = list_devices(args.device, ranks).context("there is no GPU to check")?;
    if devices.is_empty() {
        return Err(anyhow!(
            "there is no GPU to check: nvidia-smi lists none; try the tool itself with --device cpu"
        ));
    }
    let timeout = Duration::from_secs(args.timeout.into());
    if let Some(out) = &args.full {
        let check = full::Check {
            device: args.device,
            devices: &devices,
            mebibytes: args.mebibytes.into(),
            timeout,
            job: args.job.as_deref().context("--full needs a --job")?,
            out,
            is_small: args.small,
        };
        return match check.run()? {
            true => Ok(()),
            false => Err(anyhow!("a check that must pass has failed; see the table")),
        };
    }
    print_line(&table::heading(&devices))?;
    for world in 1..=devices.len() {
        let group = Group {
            device: args.device,
            devices: &devices[..world],
            mebibytes: args.mebibytes.into(),
            timeout,
        };
        let report = group.check().with_context(|| format!("{world} of {} ranks", devices.len()))?;
        print_line(&table::row(world, &report))?;
    }
    match &args.job {
        None => Ok(()),
        Some(file) => print_line(&job::run(file, args.device, devices.len())?),
    }
}

fn print_line(text: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("writing the table")
}

//! Steps in processes of their own.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use foil_torch::runtime;
use foil_worker::agent::DeviceKind;
use tch::{Cuda, Device};

use super::finding::Finding;
use super::{Check, Isolated, kernels, process, shortage, speed};

#[derive(Debug, clap::Args)]
pub(crate) struct StepArgs {
    #[arg(value_enum)]
    step: Isolated,
    #[arg(long, value_enum)]
    device: DeviceKind,
    #[arg(long)]
    small: bool,
}

/// Runs a step in this process, which prints its findings.
pub(crate) fn run(args: &StepArgs) -> Result<()> {
    let device = match args.device {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda if !Cuda::is_available() => {
            bail!("libtorch finds no GPU; is the driver as new as its CUDA?")
        }
        DeviceKind::Cuda => Device::Cuda(0),
    };
    // As in a rank.
    runtime::disable_cudnn_attention();
    runtime::set_deterministic(true)?;
    match args.step {
        Isolated::Kernels => kernels::run(device, args.small),
        Isolated::Speed => speed::run(device, args.small),
        Isolated::Shortage => shortage::run(device),
    }
}

/// Runs a step in a process on the first device and collects what it finds, also before it fails.
pub(super) fn start(
    check: &Check<'_>,
    step: Isolated,
    limit: Duration,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let name = step.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let (log, found) = (check.log(&name), check.out.join(format!("{name}.jsonl")));
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args(["step", &name, "--device", check.device.name()]);
    if check.is_small {
        command.arg("--small");
    }
    if check.device == DeviceKind::Cuda {
        command.env("CUDA_VISIBLE_DEVICES", &check.devices[0].id);
        // As in a rank.
        command.env("CUBLAS_WORKSPACE_CONFIG", ":4096:8").env("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1");
        command.env("PYTORCH_ALLOC_CONF", "expandable_segments:True");
    }
    let ran = process::run(&mut command, &found, &log, limit);
    // Also of a process that failed; one that was killed may have left half a line.
    let lines = fs::read_to_string(&found)?;
    findings.extend(lines.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok()));
    ran
}

//! Steps in processes of their own.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use foil_torch::runtime;
use foil_worker::agent::DeviceKind;
use tch::{Cuda, Device};

use super::finding::Finding;
use super::{Check, Isolated, kernels, shortage, speed};

/// Interval at which the process is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of lines of a failed step's log that are shown.
const TAIL: usize = 5;

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
    command.stdin(Stdio::null()).stdout(File::create(&found)?).stderr(File::create(&log)?);
    let mut child = command.spawn().context("starting a process")?;
    let deadline = Instant::now() + limit;
    let ended = loop {
        match child.try_wait().context("waiting for a process")? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => {
                // It may have exited in the meantime.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    let lines = fs::read_to_string(&found)?;
    // A process that was killed may have left half a line.
    findings.extend(lines.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok()));
    let tail = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..]
            .iter()
            .map(|line| format!("\n  | {line}"))
            .collect::<String>()
    };
    match ended {
        None => Err(anyhow!("it did not end within {} s{}", limit.as_secs(), tail())),
        Some(status) if !status.success() => Err(anyhow!("it ended with {status}{}", tail())),
        Some(_) => Ok(()),
    }
}

//! Steps in processes of their own.

use std::fs;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use foil_torch::runtime;
use foil_worker::agent::{DeviceKind, set_compute_environment};
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

/// Runs a step in a process and collects what it finds, also before it fails. All devices run kernels at the
/// same time; of those after the first, only whether they pass is reported.
pub(super) fn start(
    check: &Check<'_>,
    step: Isolated,
    limit: Duration,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    // All slots of the CPU are the same device.
    let is_one = step == Isolated::Speed || check.device == DeviceKind::Cpu;
    let count = if is_one { 1 } else { check.devices.len() };
    let on_device = &|device| start_on(check, device, step, limit);
    let mut outcomes: Vec<(Vec<Finding>, Result<()>)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|device| scope.spawn(move || on_device(device))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let others = outcomes.split_off(1);
    let mut errors = Vec::new();
    for (found, error) in outcomes {
        findings.extend(found);
        errors.extend(error.err());
    }
    for (device, (found, error)) in check.devices[1..].iter().zip(others) {
        let passes = error.is_ok() && !found.iter().any(Finding::fails);
        findings.extend(found.into_iter().filter(Finding::fails));
        findings.push(Finding::must_hold(format!("the same on {}", device.id), passes));
        errors.extend(error.err().map(|error| error.context(device.id.clone())));
    }
    let errors: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    Ok(())
}

fn start_on(check: &Check<'_>, device: usize, step: Isolated, limit: Duration) -> (Vec<Finding>, Result<()>) {
    let name = step.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let log = check.log(&format!("{name}-{device}"));
    let found = check.out.join(format!("{name}-{device}.jsonl"));
    let program = match std::env::current_exe().context("finding this program") {
        Ok(program) => program,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut command = Command::new(program);
    command.args(["step", &name, "--device", check.device.name()]);
    if check.is_small {
        command.arg("--small");
    }
    set_compute_environment(&mut command, &check.devices[device]);
    let ran = process::run(&mut command, &found, &log, limit);
    // Also of a process that failed; one that was killed may have left half a line.
    let lines = fs::read_to_string(&found).unwrap_or_default();
    let findings = lines.lines().filter_map(|line| serde_json::from_str::<Finding>(line).ok());
    (findings.collect(), ran)
}

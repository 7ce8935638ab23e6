//! `foil-bench WORKLOAD.json`: Foil's side of `scripts/bench`.
//!
//! Loads a model and rows and prints `{"ready": true}`. For every line `run` on stdin it runs one timed
//! repetition and prints its metrics as one line of JSON; at `quit` it prints its peak memory. Every
//! repetition starts from the loaded weights.

#![allow(clippy::print_stdout)]

mod checkpoint;
mod generation;
mod training;
mod weights;
mod workload;

use std::io::BufRead;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::workload::{Work, Workload};

/// A benchmark.
trait Bench {
    /// Runs one repetition; its metrics include `seconds`, the time of the work itself.
    fn run(&mut self) -> anyhow::Result<Value>;
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("usage: foil-bench WORKLOAD.json")?;
    let workload = Workload::read(path.as_ref())?;
    foil_torch::runtime::keep_freed_memory();
    // As in a rank on a GPU.
    foil_torch::runtime::disable_cudnn_attention();
    tch::set_num_threads(workload.threads);
    let mut bench: Box<dyn Bench> = match workload.work {
        Work::Generate => Box::new(generation::Generation::new(&workload)?),
        Work::Reward => Box::new(training::Rewards::new(&workload)?),
        Work::Dpo => Box::new(training::Preferences::new(&workload)?),
        Work::Weights => Box::new(weights::Weights::new(&workload, path.as_ref())?),
        Work::Checkpoint => Box::new(checkpoint::Checkpoint::new(&workload, path.as_ref())?),
    };
    println!("{}", json!({ "ready": true }));
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => println!("{}", bench.run()?),
            "quit" => break,
            other => bail!("expected `run` or `quit`, found {other:?}"),
        }
    }
    println!("{}", json!({ "peak_bytes": peak_bytes()? }));
    Ok(())
}

/// Peak memory of tensors on the GPU, like `torch.cuda.max_memory_allocated`. Without a GPU, peak resident
/// memory of this process.
fn peak_bytes() -> anyhow::Result<u64> {
    let device = foil_torch::device_memory::peak()?;
    if device > 0 {
        return Ok(device);
    }
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in it")?;
    let kib = line.split_whitespace().next().context("VmHWM is empty")?;
    Ok(kib.parse::<u64>()? * 1024)
}

//! The workload file of `scripts/bench`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use foil_common::spec::Sharding;
use foil_worker::model::Precision;
use serde::Deserialize;
use tch::Device;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    Generate,
    Reward,
    Dpo,
    Checkpoint,
    Weights,
}

/// A pair as tokens; the responses follow the prompt.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PairTokens {
    pub(crate) prompt: Vec<u32>,
    pub(crate) chosen: Vec<u32>,
    pub(crate) rejected: Vec<u32>,
}

/// A workload file. Fields that a benchmark does not need are missing.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Workload {
    pub(crate) model: PathBuf,
    pub(crate) work: Work,
    pub(crate) precision: String,
    pub(crate) sharding: String,
    pub(crate) threads: i32,
    pub(crate) device: String,
    /// The pairs of each step.
    pub(crate) batches: Vec<Vec<PairTokens>>,
    pub(crate) learning_rate: f64,
    pub(crate) beta: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip: Option<f64>,
    /// A safetensors file with `score.weight`.
    pub(crate) score: Option<PathBuf>,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) samples: u32,
    pub(crate) max_new: usize,
    pub(crate) min_new: usize,
    pub(crate) eos: Vec<u32>,
    pub(crate) temperature: f64,
    pub(crate) seed: u32,
    pub(crate) slots: usize,
    pub(crate) world: usize,
    pub(crate) rank: usize,
    /// Address of rank 0.
    pub(crate) rendezvous: String,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            work: Work::Generate,
            precision: "fp32".to_owned(),
            sharding: "ddp".to_owned(),
            threads: 1,
            device: "cpu".to_owned(),
            batches: Vec::new(),
            learning_rate: 1e-5,
            beta: 0.1,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            clip: None,
            score: None,
            prompts: Vec::new(),
            samples: 1,
            max_new: 128,
            min_new: 0,
            eos: Vec::new(),
            temperature: 1.0,
            seed: 0,
            slots: 128,
            world: 1,
            rank: 0,
            rendezvous: String::new(),
        }
    }
}

impl Workload {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a workload", path.display()))
    }

    pub(crate) fn device(&self) -> anyhow::Result<Device> {
        match self.device.as_str() {
            "cpu" => Ok(Device::Cpu),
            "cuda" if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
            "cuda" => anyhow::bail!("device is cuda, but libtorch finds no GPU here"),
            other => anyhow::bail!("device is {other:?}, expected cpu or cuda"),
        }
    }

    pub(crate) fn precision(&self) -> anyhow::Result<Precision> {
        match self.precision.as_str() {
            "fp32" => Ok(Precision::Fp32),
            "bf16" => Ok(Precision::Bf16),
            other => anyhow::bail!("precision is {other:?}, expected fp32 or bf16"),
        }
    }

    /// How ranks that hold whole parameters shard the optimizer.
    pub(crate) fn sharding(&self) -> anyhow::Result<Sharding> {
        match self.sharding.as_str() {
            "ddp" => Ok(Sharding::Ddp),
            "zero1" => Ok(Sharding::Zero1),
            other => anyhow::bail!("sharding is {other:?}, expected ddp or zero1"),
        }
    }
}

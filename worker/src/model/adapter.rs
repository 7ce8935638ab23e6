//! Low-rank adapters (Hu et al., arXiv 2106.09685) in the format of Hugging Face PEFT.
//!
//! A matrix W `[out, in]` becomes W + alpha/rank · B·A, with A `[rank, in]` and B `[out, rank]` trained in its place. A
//! reward model's head is trained whole beside them, as PEFT's `modules_to_save`.

use std::path::Path;

use foil_common::spec::{Lora, LoraTarget};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::parameters::{SCORE, uniform};
use super::weights::{self, Checkpoint};
use super::{DecoderConfig, HeadKind, ModelError, ModelFilesError, Parameters, SaveDtype};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts before every name.
const PREFIX: &str = "base_model.model.";
const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

/// Adapters of a decoder's matrices.
#[derive(Debug)]
pub struct Adapter {
    settings: Settings,
    /// `….q_proj.lora_A.weight` and so on; a reward model's head, shared with the model.
    parameters: Parameters,
}

/// The part of adapter_config.json that says what an adapter is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    #[serde(rename = "r")]
    rank: i64,
    #[serde(rename = "lora_alpha")]
    alpha: f64,
    target_modules: Vec<String>,
}

/// One matrix's adapter.
#[derive(Debug)]
pub(super) struct LowRank {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    /// alpha / rank.
    pub(super) scale: f64,
}

impl LowRank {
    pub(super) fn to_kind(&self, kind: Kind) -> Self {
        Self { a: self.a.to_kind(kind), b: self.b.to_kind(kind), scale: self.scale }
    }

    /// scale · B·A, `[out, in]`.
    pub(super) fn product(&self) -> Tensor {
        self.b.matmul(&self.a) * self.scale
    }
}

impl Adapter {
    /// Fresh adapters that change nothing yet: A as PEFT draws it, uniform within ± 1/√in, from `seed`, `round` and its
    /// name; B zero. `head` is a reward model's.
    pub(super) fn fresh(
        config: &DecoderConfig,
        lora: &Lora,
        (seed, round): (u64, u32),
        head: Option<&Tensor>,
        device: Device,
    ) -> Self {
        let settings = Settings {
            rank: lora.rank.into(),
            alpha: lora.alpha,
            target_modules: lora.target_modules.iter().map(ToString::to_string).collect(),
        };
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (matrix, [out, input]) in settings.matrices(config) {
            let bound = 1.0 / (input as f64).sqrt();
            let a = uniform(seed, &format!("{matrix}.{A} of round {round}"), &[settings.rank, input], bound);
            tensors.push((format!("{matrix}.{A}"), a.to_device(device)));
            tensors
                .push((format!("{matrix}.{B}"), Tensor::zeros([out, settings.rank], (Kind::Float, device))));
        }
        tensors.extend(head.map(|head| (SCORE.to_owned(), head.shallow_clone())));
        Self { settings, parameters: Parameters::of(tensors) }
    }

    /// What is trained.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// With its head's numbers in `head` from here on.
    pub(super) fn with_head_in(mut self, head: &Tensor) -> Self {
        self.parameters.share(SCORE, head);
        self
    }

    /// Of the matrix called `matrix`, as `model.layers.0.self_attn.q_proj`.
    pub(super) fn of(&self, matrix: &str) -> Option<LowRank> {
        let part = |name: &str| self.parameters.get(&format!("{matrix}.{name}")).map(Tensor::shallow_clone);
        Some(LowRank { a: part(A)?, b: part(B)?, scale: self.settings.scale() })
    }

    /// Adds the adapters to the matrices of `base`, in place.
    pub(super) fn merge_into(&self, base: &Parameters) {
        no_grad(|| {
            for (name, weight) in base.iter() {
                let low_rank = name.strip_suffix(".weight").and_then(|matrix| self.of(matrix));
                if let Some(low_rank) = low_rank {
                    let _ = weight.shallow_clone().g_add_(&low_rank.product());
                }
            }
        });
    }

    /// The adapter that does what `earlier` does and then this one: their matrices side by side, so that B·A is the sum of
    /// both, their ranks and alphas added up. `None` where they are not of the same make.
    #[must_use]
    pub fn after(&self, earlier: &Self) -> Option<Self> {
        let (mine, theirs) = (&self.settings, &earlier.settings);
        if mine.target_modules != theirs.target_modules || mine.scale() != theirs.scale() {
            return None;
        }
        let tensors = self.parameters.iter().map(|(name, tensor)| {
            let before = earlier.parameters.get(name)?.to_device(tensor.device());
            let axis = match name {
                name if name.ends_with(A) => 0,
                name if name.ends_with(B) => 1,
                _ => return Some((name.to_owned(), tensor.detach())),
            };
            Some((name.to_owned(), Tensor::cat(&[before, tensor.detach()], axis)))
        });
        let settings = Settings {
            rank: mine.rank + theirs.rank,
            alpha: mine.alpha + theirs.alpha,
            target_modules: mine.target_modules.clone(),
        };
        Some(Self { settings, parameters: Parameters::of(tensors.collect::<Option<_>>()?) })
    }

    /// Writes adapter_config.json and adapter_model.safetensors, fp32, into `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        let reward = self.parameters.get(SCORE).is_some();
        let config = serde_json::json!({
            "peft_type": "LORA",
            "task_type": if reward { "SEQ_CLS" } else { "CAUSAL_LM" },
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "target_modules": self.settings.target_modules,
            "modules_to_save": reward.then_some(["score"]),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "base_model_name_or_path": null,
        });
        let path = dir.join(CONFIG);
        std::fs::write(&path, format!("{config:#}\n")).map_err(ModelError::io(&path))?;
        let names: Vec<String> =
            self.parameters.names().iter().map(|name| format!("{PREFIX}{name}")).collect();
        let tensors = names.iter().map(String::as_str).zip(self.parameters.tensors());
        weights::write(&dir.join(TENSORS), tensors, SaveDtype::Fp32)
    }

    /// Reads what [`Adapter::save`] or PEFT wrote for a model of this configuration and head.
    ///
    /// # Errors
    /// Files that are not there or not whole; tensors that do not fit the model, by name.
    pub fn load(
        dir: &Path,
        config: &DecoderConfig,
        head: HeadKind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let mut settings: Settings = serde_json::from_slice(&text).map_err(ModelError::json(&path))?;
        settings.target_modules.sort_by_key(|name| LoraTarget::NAMES.iter().position(|known| known == name));
        let checkpoint = Checkpoint::open_file(&dir.join(TENSORS))?;
        let rank = settings.rank;
        let mut expected = Vec::new();
        for (matrix, [out, input]) in settings.matrices(config) {
            expected.push((format!("{matrix}.{A}"), vec![rank, input]));
            expected.push((format!("{matrix}.{B}"), vec![out, rank]));
        }
        if head == HeadKind::Reward {
            expected.push((SCORE.to_owned(), vec![1, config.hidden_size]));
        }
        let read = |(name, shape): (String, Vec<i64>)| {
            let tensor = checkpoint.read(&format!("{PREFIX}{name}"))?;
            if tensor.size() != shape {
                let found = tensor.size();
                return Err(ModelError::from(ModelFilesError::Shape { name, found, expected: shape }));
            }
            Ok((name, tensor.to_device(device)))
        };
        let tensors = expected.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { settings, parameters: Parameters::of(tensors) })
    }

    /// Whether `dir` holds an adapter.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(CONFIG).is_file()
    }
}

impl Settings {
    fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The matrices that get an adapter, with their shapes `[out, in]`.
    fn matrices(&self, config: &DecoderConfig) -> Vec<(String, [i64; 2])> {
        let tensors = config.tensors(HeadKind::LanguageModel).into_iter();
        let adapted = tensors.filter_map(|(name, shape)| {
            let matrix = name.strip_suffix(".weight")?;
            let (_, module) = matrix.rsplit_once('.')?;
            let target = self.target_modules.iter().any(|target| target == module);
            let shape: [i64; 2] = shape.try_into().ok().filter(|_| target)?;
            Some((matrix.to_owned(), shape))
        });
        adapted.collect()
    }
}

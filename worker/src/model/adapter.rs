//! LoRA adapters (Hu et al., arXiv 2106.09685) in the format of Hugging Face PEFT.
//!
//! A matrix W `[out, in]` becomes W + alpha/rank · B·A, where A `[rank, in]` and B `[out, rank]` are trained
//! instead of W. A reward model's head is trained in full, as one of PEFT's `modules_to_save`.

use std::path::Path;

use foil_common::spec::{Lora, LoraTarget};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::parameters::{SCORE, elements_of, uniform};
use super::weights::Checkpoint;
use super::{DecoderConfig, HeadKind, ModelError, ModelFilesError, Parameters, SaveDtype, writer};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// PEFT's prefix of every tensor name.
const PREFIX: &str = "base_model.model.";
const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

/// A LoRA adapter of a decoder.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    /// `….q_proj.lora_A.weight` and so on, plus a reward model's head, which is shared with the model.
    parameters: Parameters,
}

/// The fields of adapter_config.json that define an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct AdapterConfig {
    #[serde(rename = "r")]
    rank: i64,
    #[serde(rename = "lora_alpha")]
    alpha: f64,
    target_modules: Vec<String>,
}

/// The adapter of one matrix.
#[derive(Debug)]
pub(super) struct LoraWeights {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    /// alpha / rank.
    pub(super) scaling: f64,
}

impl LoraWeights {
    /// scaling · B·A, `[out, in]`.
    pub(super) fn delta_weight(&self) -> Tensor {
        self.b.matmul(&self.a) * self.scaling
    }
}

impl Adapter {
    /// A fresh adapter, which leaves the outputs unchanged: A is uniform within ± 1/√in as in PEFT, from
    /// `seed`, `round` and its name; B is zero. `head` is that of a reward model and belongs to `base`. The
    /// adapter is sharded if `base` is.
    pub(super) fn new(
        decoder: &DecoderConfig,
        lora: &Lora,
        (seed, round): (u64, u32),
        (base, head): (&mut Parameters, Option<Tensor>),
        device: Device,
    ) -> Result<Self, ModelError> {
        let config = AdapterConfig {
            rank: lora.rank.into(),
            alpha: lora.alpha,
            target_modules: lora.target_modules.iter().map(ToString::to_string).collect(),
        };
        let shapes = config.target_matrices(decoder).into_iter().flat_map(|(module, [out, input])| {
            let a = (format!("{module}.{A}"), vec![config.rank, input]);
            [a, (format!("{module}.{B}"), vec![out, config.rank])]
        });
        let shapes: Vec<(String, Vec<i64>)> = shapes.collect();
        let fresh = |name: &str| {
            let shape = shapes.iter().find(|(other, _)| other == name).map(|(_, shape)| shape.as_slice());
            match shape.unwrap_or_default() {
                shape @ [_, input] if name.ends_with(A) => {
                    let bound = 1.0 / (*input as f64).sqrt();
                    uniform(seed, &format!("{name} of round {round}"), shape, bound)
                }
                shape => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
            }
        };
        let head = head.map(|head| (SCORE.to_owned(), head));
        if base.shards().is_some() {
            let elements = &mut |name: &str, range| Ok(elements_of(&fresh(name), &range));
            let Some(parameters) = Parameters::beside(base, shapes.clone(), head, elements) else {
                unreachable!("a model adds its adapter before others refer to its shards")
            };
            return Ok(Self { config, parameters: parameters? });
        }
        let tensors = shapes.iter().map(|(name, _)| (name.clone(), fresh(name).to_device(device)));
        Ok(Self { parameters: Parameters::from_named(tensors.chain(head).collect()), config })
    }

    /// The same adapter, with whole fp32 tensors on this rank.
    pub(super) fn gathered(self) -> Result<Self, ModelError> {
        Ok(Self { parameters: self.parameters.gathered()?, ..self })
    }

    /// The trained parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Copies the adapter's head into `head` and shares that tensor afterwards.
    pub(super) fn with_shared_head(mut self, head: &Tensor) -> Self {
        self.parameters.share(SCORE, head);
        self
    }

    /// The weights for a module such as `model.layers.0.self_attn.q_proj`.
    pub(super) fn lora(&self, module: &str) -> Option<LoraWeights> {
        let tensor = |name: &str| self.parameters.get(&format!("{module}.{name}")).map(Tensor::shallow_clone);
        Some(LoraWeights { a: tensor(A)?, b: tensor(B)?, scaling: self.config.scaling() })
    }

    /// Adds the adapter, which must be whole, to the weights of `base` in place.
    pub(super) fn merge_into(&self, base: &Parameters) -> Result<(), ModelError> {
        if let Some(shards) = base.shards() {
            shards.store().release()?;
        }
        no_grad(|| {
            for (name, weight) in base.iter() {
                let lora = name.strip_suffix(".weight").and_then(|module| self.lora(module));
                let Some(lora) = lora else { continue };
                match base.shards() {
                    None => {
                        let _ = weight.shallow_clone().g_add_(&lora.delta_weight());
                    }
                    Some(shards) => shards.change(name, |held, range| {
                        let _ = held.g_add_(&elements_of(&lora.delta_weight(), &range));
                    }),
                }
            }
        });
        Ok(())
    }

    /// One adapter equal to `earlier` followed by this one: the matrices are concatenated along the rank, so
    /// that B·A is the sum of both, and ranks and alphas are added. `None` if target modules or scalings
    /// differ.
    #[must_use]
    pub fn concat_after(&self, earlier: &Self) -> Option<Self> {
        let (ours, theirs) = (&self.config, &earlier.config);
        if ours.target_modules != theirs.target_modules || ours.scaling() != theirs.scaling() {
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
        let config = AdapterConfig {
            rank: ours.rank + theirs.rank,
            alpha: ours.alpha + theirs.alpha,
            target_modules: ours.target_modules.clone(),
        };
        Some(Self { config, parameters: Parameters::from_named(tensors.collect::<Option<_>>()?) })
    }

    /// Writes adapter_config.json and adapter_model.safetensors (fp32) to `dir`, which is created if it does
    /// not exist.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        let reward = self.parameters.get(SCORE).is_some();
        let config = serde_json::json!({
            "peft_type": "LORA",
            "task_type": if reward { "SEQ_CLS" } else { "CAUSAL_LM" },
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "target_modules": self.config.target_modules,
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
        writer::write(&dir.join(TENSORS), tensors, SaveDtype::Fp32)?;
        Ok(())
    }

    /// Reads an adapter that [`Adapter::save`] or PEFT wrote for a model of this configuration and head.
    ///
    /// # Errors
    /// Missing or incomplete files; tensors that do not fit the model, by name.
    pub fn load(
        dir: &Path,
        decoder: &DecoderConfig,
        head: HeadKind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let mut config: AdapterConfig = serde_json::from_slice(&text).map_err(ModelError::json(&path))?;
        config.target_modules.sort_by_key(|name| LoraTarget::NAMES.iter().position(|known| known == name));
        let checkpoint = Checkpoint::open_file(&dir.join(TENSORS))?;
        let rank = config.rank;
        let mut expected = Vec::new();
        for (module, [out, input]) in config.target_matrices(decoder) {
            expected.push((format!("{module}.{A}"), vec![rank, input]));
            expected.push((format!("{module}.{B}"), vec![out, rank]));
        }
        if head == HeadKind::Reward {
            expected.push((SCORE.to_owned(), vec![1, decoder.hidden_size]));
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
        Ok(Self { config, parameters: Parameters::from_named(tensors) })
    }

    /// Whether `dir` holds an adapter.
    pub fn exists_in(dir: &Path) -> bool {
        dir.join(CONFIG).is_file()
    }
}

impl AdapterConfig {
    fn scaling(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The modules that get an adapter, with the shapes of their weights, `[out, in]`.
    fn target_matrices(&self, decoder: &DecoderConfig) -> Vec<(String, [i64; 2])> {
        let tensors = decoder.tensors(HeadKind::LanguageModel).into_iter();
        let adapted = tensors.filter_map(|(name, shape)| {
            let module = name.strip_suffix(".weight")?;
            let (_, last) = module.rsplit_once('.')?;
            let is_target = self.target_modules.iter().any(|target| target == last);
            let shape: [i64; 2] = shape.try_into().ok().filter(|_| is_target)?;
            Some((module.to_owned(), shape))
        });
        adapted.collect()
    }
}

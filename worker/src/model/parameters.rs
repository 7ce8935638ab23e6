//! A model's parameters by Hugging Face name, as fp32 master weights.

use std::path::Path;

use foil_common::model::{EMBEDDINGS, LM_HEAD, ModelFilesError, SINGLE};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::weights::{self, Checkpoint};
use super::{DecoderConfig, HeadKind, ModelError, SaveDtype};

pub(super) use foil_common::model::SCORE;

/// Parameters sorted by name: the same order on every rank, in every digest and in every optimizer.
///
/// Tensors are fp32 leaves. They are never replaced, only changed in place, so that a reducer or an optimizer
/// may hold on to them.
#[derive(Debug)]
pub struct Parameters {
    names: Vec<String>,
    tensors: Vec<Tensor>,
}

impl Parameters {
    /// From named tensors in any order.
    pub(crate) fn from_named(mut named: Vec<(String, Tensor)>) -> Self {
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (names, tensors) = named.into_iter().unzip();
        Self { names, tensors }
    }

    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.names.iter().map(String::as_str).zip(&self.tensors)
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.position(name).map(|index| &self.tensors[index])
    }

    /// Copies the tensor called `name`, if there is one, into `shared`, and replaces it by that.
    pub(super) fn share(&mut self, name: &str, shared: &Tensor) {
        if let Some(index) = self.position(name) {
            let own = std::mem::replace(&mut self.tensors[index], shared.shallow_clone());
            tch::no_grad(|| shared.shallow_clone().copy_(&own));
        }
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|probe| probe.as_str().cmp(name)).ok()
    }

    /// Number of elements in all tensors.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(Tensor::numel).sum()
    }

    pub fn set_requires_grad(&self, requires_grad: bool) {
        for tensor in &self.tensors {
            let _ = tensor.set_requires_grad(requires_grad);
        }
    }

    /// BLAKE3 in hex over every name, shape and raw fp32 bytes, in order.
    pub fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, tensor) in self.iter() {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            let shape = tensor.size();
            hasher.update(&(shape.len() as u64).to_le_bytes());
            for size in shape {
                hasher.update(&size.to_le_bytes());
            }
            hasher.update(&weights::bytes(tensor, Kind::Float));
        }
        hasher.finalize().to_hex().to_string()
    }

    /// A deep copy, without gradients.
    pub fn copy(&self) -> Self {
        let tensors = tch::no_grad(|| self.tensors.iter().map(|tensor| tensor.detach().copy()).collect());
        Self { names: self.names.clone(), tensors }
    }

    /// Overwrites every tensor in place with the values of `other`.
    ///
    /// # Errors
    /// The two differ in a name or a shape.
    pub fn copy_from(&mut self, other: &Self) -> Result<(), ModelError> {
        let same = self.iter().zip(other.iter()).all(|((a, x), (b, y))| a == b && x.size() == y.size());
        if !same || self.names.len() != other.names.len() {
            let reason = "the two sets of parameters belong to models of different shape".to_owned();
            return Err(ModelFilesError::tensor("(all)", reason).into());
        }
        tch::no_grad(|| {
            for (mine, theirs) in self.tensors.iter_mut().zip(&other.tensors) {
                mine.copy_(theirs);
            }
        });
        Ok(())
    }

    /// Fresh weights. Each tensor depends only on `seed` and its name.
    pub(super) fn random(config: &DecoderConfig, head: HeadKind, seed: u64, device: Device) -> Self {
        let named = config.tensors(head).into_iter().map(|(name, shape)| {
            let tensor = init(config, seed, &name, &shape).to_device(device);
            (name, tensor)
        });
        let (names, tensors) = named.unzip();
        Self { names, tensors }
    }

    /// Reads a checkpoint that must hold exactly the tensors of `config` with `head`.
    pub(super) fn load(
        dir: &Path,
        config: &DecoderConfig,
        head: HeadKind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.files().check(config, head)?;
        if checkpoint.files().stores_tied_head(config, head) {
            let (head, embeddings) = (checkpoint.read(LM_HEAD)?, checkpoint.read(EMBEDDINGS)?);
            if !head.equal(&embeddings) {
                return Err(ModelFilesError::different_head(&head.size()).into());
            }
        }
        let names: Vec<String> = config.tensors(head).into_iter().map(|(name, _)| name).collect();
        let tensors: Result<Vec<Tensor>, ModelError> = names
            .iter()
            .map(|name| Ok(check_finite(name, checkpoint.read(name)?)?.to_device(device)))
            .collect();
        Ok(Self { names, tensors: tensors? })
    }

    /// Takes a language model's parameters over, with a fresh reward head in place of its own.
    pub(super) fn with_fresh_head(self, config: &DecoderConfig, seed: u64) -> Self {
        let device = self.tensors.first().map_or(Device::Cpu, Tensor::device);
        let head = init(config, seed, SCORE, &[1, config.hidden_size]).to_device(device);
        let mut all: Vec<(String, Tensor)> = self.names.into_iter().zip(self.tensors).collect();
        all.retain(|(name, _)| name != LM_HEAD);
        all.push((SCORE.to_owned(), head));
        Self::from_named(all)
    }

    pub(super) fn save(&self, dir: &Path, dtype: SaveDtype) -> Result<(), ModelError> {
        weights::write(&dir.join(SINGLE), self.iter(), dtype)
    }
}

/// Refuses NaN and infinity at loading; later they would look like a training that diverged.
fn check_finite(name: &str, tensor: Tensor) -> Result<Tensor, ModelError> {
    // Both are NaN if any element is; unlike a mask they take no memory.
    let (min, max) = tensor.f_aminmax(None, false)?;
    if [min, max].iter().all(|bound| bound.double_value(&[]).is_finite()) {
        return Ok(tensor);
    }
    let faults = tensor.numel() as i64 - tensor.isfinite().sum(Kind::Int64).int64_value(&[]);
    let reason = format!(
        "{faults} of its {} numbers in the checkpoint are NaN or infinite; the checkpoint is damaged, or comes from a \
         training that diverged",
        tensor.numel()
    );
    Err(ModelFilesError::tensor(name, reason).into())
}

/// Initial values: norms 1, biases 0, matrices normal. A reward model's head starts small, so that first
/// scores are near 0.
fn init(config: &DecoderConfig, seed: u64, name: &str, shape: &[i64]) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    if name.ends_with("norm.weight") {
        return Tensor::ones(shape, options);
    }
    if name.ends_with(".bias") {
        return Tensor::zeros(shape, options);
    }
    let width = (config.hidden_size as f64).sqrt();
    let deviation = match name {
        SCORE => 0.1 / width,
        _ => config.initializer_range.unwrap_or(0.7 / width),
    };
    let count = shape.iter().product::<i64>() as usize;
    Tensor::from_slice(&normals(seed, name, count, deviation)).view(shape)
}

/// Uniform numbers within ± `bound`, fp32, from a stream that depends only on `seed` and `name`.
pub(super) fn uniform(seed: u64, name: &str, shape: &[i64], bound: f64) -> Tensor {
    let mut stream = stream(seed, name);
    let count = shape.iter().product::<i64>();
    let draws: Vec<f32> = (0..count).map(|_| (bound * (2.0 * stream.random::<f64>() - 1.0)) as f32).collect();
    Tensor::from_slice(&draws).view(shape)
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = blake3::Hasher::new();
    key.update(b"foil parameters");
    key.update(&seed.to_le_bytes());
    key.update(name.as_bytes());
    ChaCha8Rng::from_seed(*key.finalize().as_bytes())
}

/// `count` normal numbers by Box–Muller, from a stream that depends only on `seed` and `name`.
fn normals(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut stream = stream(seed, name);
    let mut draws = Vec::with_capacity(count + 1);
    while draws.len() < count {
        // 1 − u lies in (0, 1], so the logarithm is finite.
        let radius = deviation * (-2.0 * (1.0 - stream.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * stream.random::<f64>()).sin_cos();
        draws.push((radius * cos) as f32);
        draws.push((radius * sin) as f32);
    }
    draws.truncate(count);
    draws
}

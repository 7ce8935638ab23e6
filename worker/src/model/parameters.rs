//! A model's parameters by Hugging Face name, as fp32 master weights.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use foil_common::model::{EMBEDDINGS, LM_HEAD, ModelFilesError};
use foil_torch::FileReader;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::finite::FiniteCheck;
use super::shards::{Elements, ShardPlacement, Shards};
use super::units::shard_range;
use super::weights::Checkpoint;
use super::{DecoderConfig, HeadKind, ModelError, Precision};

pub(super) use foil_common::model::SCORE;

/// How a rank holds a model's parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Whole, as fp32 masters.
    Masters,
    /// Whole and only in the compute precision, except for norms and a reward model's head: for phases that
    /// do not train.
    Inference(Precision),
    /// A shard of the fp32 masters. The ranks of a gang gather the rest when they need it.
    Shards(ShardPlacement),
}

impl Holding {
    /// The kind in which a whole parameter is held.
    fn kind(self, name: &str) -> Kind {
        match self {
            Self::Inference(precision) if name != SCORE && !name.ends_with("norm.weight") => precision.kind(),
            _ => Kind::Float,
        }
    }
}

/// Parameters sorted by name: the order is the same on every rank, in every digest and in every optimizer.
///
/// Tensors are leaves, fp32 unless they are [held](Holding) otherwise. They are never replaced, only changed
/// in place or [moved](super::units::flatten), so a reducer or an optimizer may keep references to them.
#[derive(Debug)]
pub struct Parameters {
    names: Vec<String>,
    tensors: Vec<Tensor>,
    /// The shards that hold the values of `tensors`, if ranks hold shards.
    shards: Option<Rc<Shards>>,
}

impl Parameters {
    /// Creates parameters from named tensors in any order.
    pub(crate) fn from_named(mut named: Vec<(String, Tensor)>) -> Self {
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (names, tensors) = named.into_iter().unzip();
        Self { names, tensors, shards: None }
    }

    /// The shards of a model whose parameters have values only while they are gathered.
    pub fn shards(&self) -> Option<&Rc<Shards>> {
        self.shards.as_ref()
    }

    /// Adds parameters to the shards of `base`, with values from `elements`. `shared` is one of the tensors
    /// of `base`. `None` if `base` has no shards, or if other references to them exist.
    pub(super) fn beside(
        base: &mut Self,
        named: Vec<(String, Vec<i64>)>,
        shared: Option<(String, Tensor)>,
        elements: Elements<'_>,
    ) -> Option<Result<Self, ModelError>> {
        let added = Rc::get_mut(base.shards.as_mut()?)?.add(named, elements);
        Some(added.map(|mut added| {
            added.extend(shared);
            Self { shards: base.shards.clone(), ..Self::from_named(added) }
        }))
    }

    fn sharded(
        named: Vec<(String, Vec<i64>)>,
        placement: ShardPlacement,
        device: Device,
        elements: Elements<'_>,
    ) -> Result<Self, ModelError> {
        let mut shards = Shards::new(placement, device)?;
        let named = shards.add(named, elements)?;
        Ok(Self { shards: Some(Rc::new(shards)), ..Self::from_named(named) })
    }

    /// Calls `read` with every whole parameter in order, in fp32 if they are sharded. All ranks that hold
    /// shards must call it together.
    ///
    /// # Errors
    /// A rank fails; those of `read`.
    pub(super) fn read_each(
        &self,
        mut read: impl FnMut(&str, &Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let reader = self.shards.as_ref().map(|shards| shards.reader());
        for (name, tensor) in self.iter() {
            match &reader {
                None => read(name, tensor)?,
                Some(reader) => read(name, &reader.read(name)?)?,
            }
        }
        Ok(())
    }

    /// The same parameters as whole fp32 tensors on this rank; a deep copy if they are sharded.
    pub(super) fn gathered(self) -> Result<Self, ModelError> {
        if self.shards.is_none() {
            return Ok(self);
        }
        let mut whole = Vec::new();
        self.read_each(|name, tensor| {
            whole.push((name.to_owned(), tensor.copy()));
            Ok(())
        })?;
        Ok(Self::from_named(whole))
    }

    /// Clamps a parameter to [−`bound`, `bound`] in place.
    pub(super) fn clamp(&self, name: &str, bound: f64) {
        match (&self.shards, self.get(name)) {
            (Some(shards), _) => shards.change(name, |held, _| {
                let _ = held.clamp_(-bound, bound);
            }),
            (None, Some(tensor)) => {
                let _ = tensor.shallow_clone().clamp_(-bound, bound);
            }
            (None, None) => {}
        }
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

    /// Copies the tensor called `name`, if any, into `shared` and replaces it by `shared`.
    pub(super) fn share(&mut self, name: &str, shared: &Tensor) {
        if let Some(index) = self.position(name) {
            let own = std::mem::replace(&mut self.tensors[index], shared.shallow_clone());
            tch::no_grad(|| shared.shallow_clone().copy_(&own));
        }
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|probe| probe.as_str().cmp(name)).ok()
    }

    /// Whether all values are finite, as loading requires.
    pub(crate) fn are_finite(&self) -> bool {
        let mut check = FiniteCheck::default();
        self.iter().all(|(name, tensor)| check.add(name, &tensor.detach()).is_ok()) && check.finish().is_ok()
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

    /// A deep copy, without gradients.
    pub fn copy(&self) -> Self {
        let tensors = tch::no_grad(|| self.tensors.iter().map(|tensor| tensor.detach().copy()).collect());
        Self { names: self.names.clone(), tensors, shards: None }
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
    pub(super) fn random(
        config: &DecoderConfig,
        head: HeadKind,
        seed: u64,
        (device, holding): (Device, Holding),
    ) -> Result<Self, ModelError> {
        let named = config.tensors(head);
        if let Holding::Shards(placement) = holding {
            let shapes = named.clone();
            return Self::sharded(named, placement, device, &mut |name, range| {
                let shape = shapes.iter().find(|(other, _)| other == name).map(|(_, shape)| shape.as_slice());
                Ok(elements_of(&init(config, seed, name, shape.unwrap_or_default()), &range))
            });
        }
        let tensor = |(name, shape): (String, Vec<i64>)| {
            let tensor = init(config, seed, &name, &shape).to_kind(holding.kind(&name)).to_device(device);
            (name, tensor)
        };
        Ok(Self::from_named(named.into_iter().map(tensor).collect()))
    }

    /// Reads a checkpoint that must hold exactly the tensors of `config` with `head`.
    pub(super) fn load(
        dir: &Path,
        config: &DecoderConfig,
        head: HeadKind,
        (device, holding): (Device, Holding),
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.files().check(config, head)?;
        if checkpoint.files().stores_tied_head(config, head) {
            let whole = config.vocab_size * config.hidden_size;
            let own = match holding {
                Holding::Shards(ShardPlacement { rank, world, .. }) => {
                    let own = shard_range(whole, rank, world);
                    own.start.min(whole)..own.end.min(whole)
                }
                _ => 0..whole,
            };
            let head = checkpoint.read_elements(LM_HEAD, own.clone())?;
            if !head.equal(&checkpoint.read_elements(EMBEDDINGS, own)?) {
                return Err(ModelFilesError::different_head(&[config.vocab_size, config.hidden_size]).into());
            }
        }
        let named = config.tensors(head);
        let mut reader = Reader::new(&checkpoint, device)?;
        let loaded = match holding {
            Holding::Shards(placement) => Self::sharded(named, placement, device, &mut |name, range| {
                reader.read(name, range, Kind::Float)
            })?,
            _ => {
                let mut read = |(name, shape): (String, Vec<i64>)| {
                    let elements = reader.read(&name, 0..shape.iter().product(), holding.kind(&name))?;
                    Ok((name, elements.view(shape.as_slice())))
                };
                Self::from_named(named.into_iter().map(&mut read).collect::<Result<_, ModelError>>()?)
            }
        };
        reader.finite.finish()?;
        Ok(loaded)
    }

    /// Reads shards of a language model's checkpoint, with a fresh reward head in place of the language-model
    /// head.
    pub(super) fn load_with_fresh_head(
        dir: &Path,
        config: &DecoderConfig,
        seed: u64,
        (device, placement): (Device, ShardPlacement),
    ) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.files().check(config, HeadKind::LanguageModel)?;
        let mut reader = Reader::new(&checkpoint, device)?;
        let named = config.tensors(HeadKind::Reward);
        let loaded = Self::sharded(named, placement, device, &mut |name, range| match name {
            SCORE => Ok(elements_of(&init(config, seed, SCORE, &[1, config.hidden_size]), &range)),
            _ => reader.read(name, range, Kind::Float),
        })?;
        reader.finite.finish()?;
        Ok(loaded)
    }

    /// Converts a language model's parameters, with a fresh reward head in place of the language-model head.
    pub(super) fn with_fresh_head(self, config: &DecoderConfig, seed: u64) -> Self {
        let device = self.tensors.first().map_or(Device::Cpu, Tensor::device);
        let head = init(config, seed, SCORE, &[1, config.hidden_size]).to_device(device);
        let mut all: Vec<(String, Tensor)> = self.names.into_iter().zip(self.tensors).collect();
        all.retain(|(name, _)| name != LM_HEAD);
        all.push((SCORE.to_owned(), head));
        Self::from_named(all)
    }
}

/// Reads a checkpoint to a device.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    files: FileReader,
    /// The tensors that were read.
    finite: FiniteCheck,
}

impl<'a> Reader<'a> {
    fn new(checkpoint: &'a Checkpoint, device: Device) -> Result<Self, ModelError> {
        Ok(Self { checkpoint, files: FileReader::new(device)?, finite: FiniteCheck::default() })
    }

    /// A range of a tensor's elements as `kind`: `[elements]`.
    fn read(&mut self, name: &str, range: Range<i64>, kind: Kind) -> Result<Tensor, ModelError> {
        let elements = self.checkpoint.read_to(&self.files, name, range, kind)?;
        self.finite.add(name, &elements)?;
        Ok(elements)
    }
}

/// A range of a tensor's elements in row-major order.
pub(super) fn elements_of(tensor: &Tensor, range: &Range<i64>) -> Tensor {
    tensor.reshape([-1]).narrow(0, range.start, range.end - range.start)
}

/// Initial values: norms 1, biases 0, matrices normal. A reward model's head starts small, so that initial
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

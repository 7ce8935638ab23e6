//! Hashes parameters, and saves and hashes them in a single pass.

use std::path::Path;

use foil_common::model::SINGLE;
use foil_common::storage::object::Digest;
use tch::{Device, Kind, Tensor, no_grad};

use super::writer::{self, FORMAT, HostBytes, Pieces, Sink, WeightsFile};
use super::{ModelError, Parameters, SaveDtype};

/// The digests of a model's saved weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedWeights {
    /// Size and hash of model.safetensors.
    pub file: Digest,
    /// [`Parameters::blake3`].
    pub parameters_blake3: String,
}

impl Parameters {
    /// BLAKE3 in hex over every name, shape and raw fp32 bytes, in order. All ranks that hold shards must
    /// call it together.
    ///
    /// # Errors
    /// A rank fails.
    pub fn blake3(&self) -> Result<String, ModelError> {
        let mut hasher = ParametersHasher::default();
        self.hash_pieces(&mut hasher, |_, _| Ok(()))?;
        Ok(hasher.finish())
    }

    /// Writes model.safetensors, hashing it and the parameters along the way. All ranks that hold shards must
    /// call it together; each holds one gathered unit at a time.
    pub(super) fn save(&self, dir: &Path, dtype: SaveDtype, sink: Sink) -> Result<SavedWeights, ModelError> {
        let path = dir.join(SINGLE);
        let shapes = self.iter().map(|(name, tensor)| (name, tensor.size()));
        let mut file = WeightsFile::create((&path, sink), shapes, dtype, FORMAT)?;
        let (mut hasher, mut rounded) = (ParametersHasher::default(), HostBytes::default());
        self.hash_pieces(&mut hasher, |piece, bytes| match dtype {
            SaveDtype::Fp32 => file.append(bytes),
            SaveDtype::Bf16 => file.append(rounded.of(piece, writer::kind(dtype))),
        })?;
        Ok(SavedWeights { file: file.finish(), parameters_blake3: hasher.finish() })
    }

    /// Rounds all parameters in place to the values that a file of `dtype` stores.
    pub(crate) fn round_to(&self, dtype: SaveDtype) {
        if dtype == SaveDtype::Fp32 {
            return;
        }
        no_grad(|| {
            for tensor in self.tensors() {
                tensor.shallow_clone().copy_(&tensor.to_kind(writer::kind(dtype)));
            }
        });
    }

    /// Hashes all parameters; `each` receives every piece on the host and its bytes in fp32.
    fn hash_pieces(
        &self,
        hasher: &mut ParametersHasher,
        mut each: impl FnMut(&Tensor, &[u8]) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let device = self.shards().map(|shards| shards.device());
        let device = device.or(self.tensors().first().map(Tensor::device)).unwrap_or(Device::Cpu);
        let (pieces, mut masters) = (Pieces::on(device)?, HostBytes::default());
        self.read_each(|name, tensor| {
            hasher.begin(name, &tensor.size());
            pieces.each(tensor, |piece| {
                let bytes = masters.of(piece, Kind::Float);
                hasher.0.update(bytes);
                each(piece, bytes)
            })
        })
    }
}

/// The hash of [`Parameters::blake3`].
#[derive(Default)]
struct ParametersHasher(blake3::Hasher);

impl ParametersHasher {
    fn begin(&mut self, name: &str, shape: &[i64]) {
        self.0.update(&(name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update(&(shape.len() as u64).to_le_bytes());
        for size in shape {
            self.0.update(&size.to_le_bytes());
        }
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

//! Reading and writing safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use foil_common::model::{ModelFilesError, WeightFiles};
use foil_common::spec::SaveDtype;
use safetensors::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::ModelError;

/// The libtorch kind of a dtype.
fn kind(dtype: SaveDtype) -> Kind {
    match dtype {
        SaveDtype::Fp32 => Kind::Float,
        SaveDtype::Bf16 => Kind::BFloat16,
    }
}

/// Reads the tensors of [`WeightFiles`] one at a time, so that a model is never twice in memory.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    files: WeightFiles,
}

impl Checkpoint {
    pub(super) fn open(dir: &Path) -> Result<Self, ModelError> {
        Ok(Self { files: WeightFiles::open(dir)? })
    }

    /// Opens a single file that is not a model directory.
    pub(crate) fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut files = WeightFiles::default();
        files.add_file(path.to_owned())?;
        Ok(Self { files })
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.files.get(name).is_some()
    }

    /// An entry of the file's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.files.metadata(key)
    }

    pub(super) fn files(&self) -> &WeightFiles {
        &self.files
    }

    /// Reads a tensor as fp32 on the CPU.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let wrong = |reason: String| ModelFilesError::tensor(name, reason);
        let Some(entry) = self.files.get(name) else {
            return Err(wrong("not in the checkpoint".to_owned()).into());
        };
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            other => {
                return Err(
                    wrong(format!("stored as {other}, but only F32, BF16 and F16 can be read")).into()
                );
            }
        };
        let path = &self.files.paths()[entry.file];
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let mut bytes = vec![0; entry.bytes as usize];
        file.seek(SeekFrom::Start(entry.start)).map_err(ModelError::io(path))?;
        file.read_exact(&mut bytes).map_err(ModelError::io(path))?;
        let tensor =
            Tensor::f_from_data_size(&bytes, &entry.shape, kind).map_err(|error| wrong(error.to_string()))?;
        Ok(tensor.to_kind(Kind::Float))
    }
}

/// A tensor that is converted to bytes only when it is written.
struct TensorView<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    dtype: SaveDtype,
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            SaveDtype::Fp32 => Dtype::F32,
            SaveDtype::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes(self.tensor, kind(self.dtype)))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * kind(self.dtype).elt_size_in_bytes()
    }
}

/// The tensor's elements as `kind`, row by row, little-endian.
pub(super) fn bytes(tensor: &Tensor, kind: Kind) -> Vec<u8> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Writes a safetensors file. The same tensors give the same bytes.
pub(super) fn write<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: SaveDtype,
) -> Result<(), ModelError> {
    let views = views(tensors, dtype);
    // transformers refuses a file whose metadata does not name its framework.
    serialize(path, views, ("format", "pt"))
}

/// Writes a safetensors file with a single metadata entry, so that the order of a HashMap cannot change its
/// bytes.
pub(crate) fn write_with_metadata<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    metadata: (&str, &str),
) -> Result<(), ModelError> {
    serialize(path, views(tensors, SaveDtype::Fp32), metadata)
}

fn views<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: SaveDtype,
) -> Vec<(&'a str, TensorView<'a>)> {
    let view = |(name, tensor): (&'a str, &'a Tensor)| {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        (name, TensorView { tensor, shape, dtype })
    };
    tensors.map(view).collect()
}

fn serialize(
    path: &Path,
    views: Vec<(&str, TensorView<'_>)>,
    metadata: (&str, &str),
) -> Result<(), ModelError> {
    let metadata = HashMap::from([(metadata.0.to_owned(), metadata.1.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| ModelFilesError::Weights { path: path.to_owned(), reason: error.to_string() }.into())
}

//! Reading and writing safetensors files.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use foil_common::model::{ModelFilesError, WeightFiles};
use foil_common::spec::SaveDtype;
use safetensors::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::ModelError;
use super::shards::ShardReader;

/// The libtorch kind of a dtype.
fn kind(dtype: SaveDtype) -> Kind {
    match dtype {
        SaveDtype::Fp32 => Kind::Float,
        SaveDtype::Bf16 => Kind::BFloat16,
    }
}

fn stored(dtype: SaveDtype) -> Dtype {
    match dtype {
        SaveDtype::Fp32 => Dtype::F32,
        SaveDtype::Bf16 => Dtype::BF16,
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
        let Some(entry) = self.files.get(name) else {
            return Err(ModelFilesError::tensor(name, "not in the checkpoint".to_owned()).into());
        };
        let elements = entry.shape.iter().product();
        Ok(self.read_elements(name, 0..elements)?.view(entry.shape.as_slice()))
    }

    /// Reads a range of a tensor's elements, row by row, as fp32 on the CPU: `[elements]`.
    pub(crate) fn read_elements(&self, name: &str, range: Range<i64>) -> Result<Tensor, ModelError> {
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
        let stored: i64 = entry.shape.iter().product();
        if range.start < 0 || range.start > range.end || range.end > stored {
            return Err(wrong(format!("it has {stored} elements, but {range:?} were asked for")).into());
        }
        let size = kind.elt_size_in_bytes() as u64;
        let path = &self.files.paths()[entry.file];
        let file = File::open(path).map_err(ModelError::io(path))?;
        let start = entry.start + range.start as u64 * size;
        let tensor = foil_torch::read(&file, start, range.end - range.start, kind)
            .map_err(|error| wrong(format!("{}: {error}", path.display())))?;
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
        stored(self.dtype)
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

/// A parameter in shards, which is gathered only when it is written.
struct ShardedView<'a> {
    reader: &'a ShardReader<'a>,
    name: &'a str,
    shape: Vec<usize>,
    dtype: SaveDtype,
    failed: &'a RefCell<Option<ModelError>>,
}

impl View for ShardedView<'_> {
    fn dtype(&self) -> Dtype {
        stored(self.dtype)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            match self.reader.read(self.name) {
                Ok(tensor) => return Cow::Owned(bytes(&tensor, kind(self.dtype))),
                Err(error) => *failed = Some(error),
            }
        }
        // The file is dropped once it is written.
        Cow::Owned(vec![0; self.data_len()])
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * kind(self.dtype).elt_size_in_bytes()
    }
}

/// Writes a safetensors file of parameters in shards, given by name and shape. All ranks call it together and
/// write the same bytes; each holds one unit of the shards at a time.
pub(super) fn write_sharded<'a>(
    path: &Path,
    reader: &ShardReader<'_>,
    parameters: impl Iterator<Item = (&'a str, Vec<i64>)>,
    dtype: SaveDtype,
) -> Result<(), ModelError> {
    let failed = RefCell::new(None);
    let view = |(name, shape): (&'a str, Vec<i64>)| {
        let shape = shape.iter().map(|&size| size as usize).collect();
        (name, ShardedView { reader, name, shape, dtype, failed: &failed })
    };
    let written = serialize(path, parameters.map(view).collect(), ("format", "pt"));
    match failed.take() {
        Some(error) => {
            std::fs::remove_file(path).map_err(ModelError::io(path))?;
            Err(error)
        }
        None => written,
    }
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

fn serialize<V: View>(path: &Path, views: Vec<(&str, V)>, metadata: (&str, &str)) -> Result<(), ModelError> {
    let metadata = HashMap::from([(metadata.0.to_owned(), metadata.1.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| ModelFilesError::Weights { path: path.to_owned(), reason: error.to_string() }.into())
}

//! Reading safetensors files.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use foil_common::model::{ModelFilesError, WeightFiles};
use foil_torch::FileReader;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use super::ModelError;

/// Reads the tensors of [`WeightFiles`] one at a time, so that memory never holds a model twice.
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

    /// Reads a range of a tensor's elements in row-major order, as fp32 on the CPU: `[elements]`.
    pub(crate) fn read_elements(&self, name: &str, range: Range<i64>) -> Result<Tensor, ModelError> {
        self.read_to(&FileReader::new(Device::Cpu)?, name, range, Kind::Float)
    }

    /// Reads a range of a tensor's elements in row-major order, as `kind` on the reader's device:
    /// `[elements]`.
    pub(super) fn read_to(
        &self,
        reader: &FileReader,
        name: &str,
        range: Range<i64>,
        kind: Kind,
    ) -> Result<Tensor, ModelError> {
        let wrong = |reason: String| ModelFilesError::tensor(name, reason);
        let Some(entry) = self.files.get(name) else {
            return Err(wrong("not in the checkpoint".to_owned()).into());
        };
        let stored_kind = match entry.dtype {
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
        let size = stored_kind.elt_size_in_bytes() as u64;
        let path = &self.files.paths()[entry.file];
        let file = File::open(path).map_err(ModelError::io(path))?;
        let start = entry.start + range.start as u64 * size;
        let elements = range.end - range.start;
        reader
            .read(&file, start, elements, stored_kind, kind)
            .map_err(|error| wrong(format!("{}: {error}", path.display())).into())
    }
}

//! safetensors files of a model directory: one `model.safetensors`, or shards under an index.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::ModelError;

pub(super) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The bound that the safetensors format itself sets on its header.
const LARGEST_HEADER: u64 = 100_000_000;

/// Number format of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    Fp32,
    Bf16,
}

impl SaveDtype {
    pub(crate) fn hf_name(self) -> &'static str {
        match self {
            Self::Fp32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    fn safetensors(self) -> Dtype {
        match self {
            Self::Fp32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }
}

/// Where one tensor lies.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    start: u64,
    bytes: usize,
}

/// The headers of a directory's safetensors files. Tensors are read one at a time, so that a model is never twice in
/// memory.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    files: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
    /// What the last file says of itself.
    about: HashMap<String, String>,
}

impl Checkpoint {
    pub(super) fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self::default();
        let index = dir.join(INDEX);
        if dir.join(SINGLE).is_file() {
            checkpoint.add_file(dir.join(SINGLE))?;
            return Ok(checkpoint);
        }
        if !index.is_file() {
            let reason =
                format!("holds neither {SINGLE} nor {INDEX}; convert other formats to safetensors first");
            return Err(ModelError::Weights { path: dir.to_owned(), reason });
        }
        let shards = read_index(&index)?;
        for name in shards.values().collect::<std::collections::BTreeSet<_>>() {
            checkpoint.add_file(dir.join(name))?;
        }
        for (tensor, file) in &shards {
            let at = checkpoint.entries.get(tensor).map(|entry| checkpoint.files[entry.file].clone());
            if at != Some(dir.join(file)) {
                let reason = format!("tensor {tensor} should be in {file} but is not; copy the shards again");
                return Err(ModelError::Weights { path: index, reason });
            }
        }
        Ok(checkpoint)
    }

    /// One file that is not a model.
    pub(crate) fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self::default();
        checkpoint.add_file(path.to_owned())?;
        Ok(checkpoint)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// An entry of the file's metadata.
    pub(crate) fn about(&self, key: &str) -> Option<&str> {
        self.about.get(key).map(String::as_str)
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a tensor as fp32 on the CPU.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let Some(entry) = self.entries.get(name) else {
            let reason = "not in the checkpoint".to_owned();
            return Err(ModelError::Tensor { name: name.to_owned(), reason });
        };
        let kind = match entry.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            other => {
                let reason = format!("stored as {other}, but only F32, BF16 and F16 can be read");
                return Err(ModelError::Tensor { name: name.to_owned(), reason });
            }
        };
        let path = &self.files[entry.file];
        let mut file = File::open(path).map_err(ModelError::io(path))?;
        let mut bytes = vec![0; entry.bytes];
        file.seek(SeekFrom::Start(entry.start)).map_err(ModelError::io(path))?;
        file.read_exact(&mut bytes).map_err(ModelError::io(path))?;
        let tensor = Tensor::f_from_data_size(&bytes, &entry.shape, kind)
            .map_err(|error| ModelError::Tensor { name: name.to_owned(), reason: error.to_string() })?;
        Ok(tensor.to_kind(Kind::Float))
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), ModelError> {
        let (metadata, data_start) = read_header(&path)?;
        let file = self.files.len();
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                file,
                dtype: info.dtype,
                shape: info.shape.iter().map(|&size| size as i64).collect(),
                start: data_start + info.data_offsets.0 as u64,
                bytes: info.data_offsets.1 - info.data_offsets.0,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                let reason = format!("tensor {name} is also in another shard");
                return Err(ModelError::Weights { path, reason });
            }
        }
        self.about = metadata.metadata().clone().unwrap_or_default();
        self.files.push(path);
        Ok(())
    }
}

/// Parses a file's header against the file's length; returns it and where the data begins.
fn read_header(path: &Path) -> Result<(Metadata, u64), ModelError> {
    let wrong = |reason: String| ModelError::Weights { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    let length = file.metadata().map_err(ModelError::io(path))?.len();
    let mut size = [0; 8];
    if length < size.len() as u64 {
        return Err(wrong(format!("{length} bytes are too few for a safetensors file")));
    }
    file.read_exact(&mut size).map_err(ModelError::io(path))?;
    let header_size = u64::from_le_bytes(size);
    if header_size > LARGEST_HEADER || header_size + 8 > length {
        return Err(wrong(format!("its header claims {header_size} bytes, but the file has {length}")));
    }
    let mut header = vec![0; header_size as usize];
    file.read_exact(&mut header).map_err(ModelError::io(path))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| wrong(format!("its safetensors header is damaged: {error}")))?;
    let data_start = 8 + header_size;
    let expected = data_start + metadata.data_len() as u64;
    if expected != length {
        return Err(wrong(format!(
            "its header describes {expected} bytes, but the file has {length}; it was cut short or changed, copy it again"
        )));
    }
    Ok((metadata, data_start))
}

/// `weight_map`: tensor name → file name, which must be a plain name inside the directory.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let text = std::fs::read(path).map_err(ModelError::io(path))?;
    let index: Value = serde_json::from_slice(&text).map_err(ModelError::json(path))?;
    let wrong = |reason: String| ModelError::Weights { path: path.to_owned(), reason };
    let map =
        index["weight_map"].as_object().ok_or_else(|| wrong("weight_map is not an object".to_owned()))?;
    let plain = |file: &str| !file.is_empty() && Path::new(file).file_name() == Some(file.as_ref());
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(file) if plain(file) => Ok((tensor.clone(), file.to_owned())),
            _ => Err(wrong(format!(
                "weight_map.{tensor}: found {file}, expected the name of a file beside it"
            ))),
        })
        .collect()
}

/// A tensor's bytes, made only when they are written.
struct Stored<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    dtype: SaveDtype,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype.safetensors()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes(self.tensor, self.dtype.kind()))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.dtype.kind().elt_size_in_bytes()
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
    let views = stored(tensors, dtype);
    // transformers refuses a file whose metadata does not name its framework.
    serialize(path, views, ("format", "pt"))
}

/// Writes a safetensors file with one entry of metadata: a HashMap's order cannot show in its bytes.
pub(crate) fn write_about<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    about: (&str, &str),
) -> Result<(), ModelError> {
    serialize(path, stored(tensors, SaveDtype::Fp32), about)
}

fn stored<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: SaveDtype,
) -> Vec<(&'a str, Stored<'a>)> {
    let view = |(name, tensor): (&'a str, &'a Tensor)| {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        (name, Stored { tensor, shape, dtype })
    };
    tensors.map(view).collect()
}

fn serialize(path: &Path, views: Vec<(&str, Stored<'_>)>, about: (&str, &str)) -> Result<(), ModelError> {
    let metadata = HashMap::from([(about.0.to_owned(), about.1.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| ModelError::Weights { path: path.to_owned(), reason: error.to_string() })
}

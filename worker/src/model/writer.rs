//! Writes safetensors files and hashes them as they are written.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use foil_common::model::ModelFilesError;
use foil_common::spec::SaveDtype;
use foil_common::storage::object::Digest;
use foil_torch::{Downloads, host_buffer};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use super::ModelError;

/// Number of elements of a piece, which fits in a processor's cache.
const PIECE: usize = 1 << 20;
/// transformers rejects a file whose metadata does not name its framework.
pub(super) const FORMAT: (&str, &str) = ("format", "pt");
/// The format's maximum length of a header in bytes, and its alignment.
const MAX_HEADER: usize = 100_000_000;
const HEADER_ALIGNMENT: usize = 8;

/// The libtorch kind of a dtype.
pub(super) fn kind(dtype: SaveDtype) -> Kind {
    match dtype {
        SaveDtype::Fp32 => Kind::Float,
        SaveDtype::Bf16 => Kind::BFloat16,
    }
}

/// The destination of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// The file.
    File,
    /// Nowhere; the bytes are only hashed, because another rank of this machine writes the same file.
    Nowhere,
}

/// A safetensors file whose header has been written and whose tensors are appended in turn. An unfinished
/// file is removed.
pub(crate) struct WeightsFile {
    path: PathBuf,
    sink: Sink,
    file: File,
    hasher: blake3::Hasher,
    is_finished: bool,
}

impl WeightsFile {
    /// Begins a file of tensors, given by name and shape in file order. The metadata has a single entry, so
    /// that the order of a HashMap cannot change the file's bytes.
    pub(crate) fn create<'a>(
        (path, sink): (&Path, Sink),
        tensors: impl Iterator<Item = (&'a str, Vec<i64>)>,
        dtype: SaveDtype,
        metadata: (&str, &str),
    ) -> Result<Self, ModelError> {
        let header = header(tensors, dtype, metadata)
            .map_err(|reason| ModelFilesError::Weights { path: path.to_owned(), reason })?;
        let file = match sink {
            Sink::File => File::create(path),
            // Writes to /dev/null, since a thread's progress is measured in written bytes.
            Sink::Nowhere => File::options().write(true).open("/dev/null"),
        };
        let file = file.map_err(ModelError::write(path))?;
        let hasher = blake3::Hasher::new();
        let mut written = Self { path: path.to_owned(), sink, file, hasher, is_finished: false };
        written.append(&(header.len() as u64).to_le_bytes())?;
        written.append(&header)?;
        Ok(written)
    }

    /// Appends bytes of the tensors.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(ModelError::write(&self.path))
    }

    /// Completes the file and returns its size and hash.
    pub(crate) fn finish(mut self) -> Digest {
        self.is_finished = true;
        Digest { size: self.hasher.count(), blake3: self.hasher.finalize().to_hex().to_string() }
    }
}

impl Drop for WeightsFile {
    fn drop(&mut self) {
        if !self.is_finished && self.sink == Sink::File {
            // The error that made it incomplete is reported already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The header of a file, padded.
fn header<'a>(
    tensors: impl Iterator<Item = (&'a str, Vec<i64>)>,
    dtype: SaveDtype,
    (key, value): (&str, &str),
) -> Result<Vec<u8>, String> {
    let stored = match dtype {
        SaveDtype::Fp32 => Dtype::F32,
        SaveDtype::Bf16 => Dtype::BF16,
    };
    let mut start = 0;
    let place = |(name, shape): (&str, Vec<i64>)| {
        let shape: Vec<usize> = shape.iter().map(|&size| size as usize).collect();
        let end = start + shape.iter().product::<usize>() * kind(dtype).elt_size_in_bytes();
        let info = TensorInfo { dtype: stored, shape, data_offsets: (start, end) };
        start = end;
        (name.to_owned(), info)
    };
    let metadata = HashMap::from([(key.to_owned(), value.to_owned())]);
    let metadata = Metadata::new(Some(metadata), tensors.map(place).collect());
    let metadata = metadata.map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    if header.len() > MAX_HEADER {
        return Err(format!(
            "its header would take {} bytes, but at most {MAX_HEADER} can be read",
            header.len()
        ));
    }
    Ok(header)
}

/// A reusable buffer for the bytes of pieces.
#[derive(Default)]
pub(crate) struct HostBytes(Vec<u8>);

impl HostBytes {
    /// The elements of a tensor on the host as `kind`, row by row, little-endian.
    pub(crate) fn of(&mut self, tensor: &Tensor, kind: Kind) -> &[u8] {
        self.0.resize(tensor.numel() * kind.elt_size_in_bytes(), 0);
        tensor.detach().to_kind(kind).copy_data_u8(&mut self.0, tensor.numel());
        &self.0
    }
}

/// Reads tensors piece by piece on the host. From a GPU, the next piece is copied while the current one is
/// used.
pub(crate) struct Pieces {
    staging: Option<(Downloads, [Tensor; 2])>,
}

impl Pieces {
    /// A reader of tensors on `device`.
    pub(crate) fn on(device: Device) -> Result<Self, ModelError> {
        let buffer = || host_buffer(PIECE as i64, device);
        let staging = match device {
            Device::Cpu => None,
            _ => Some((Downloads::new(device)?, [buffer()?, buffer()?])),
        };
        Ok(Self { staging })
    }

    /// Calls `take` with all elements of the tensor in row-major order, as fp32 on the CPU: `[at most
    /// PIECE]`.
    pub(crate) fn each(
        &self,
        tensor: &Tensor,
        mut take: impl FnMut(&Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let flat = tensor.detach().reshape([-1]);
        let all = flat.numel();
        let part = |start: usize| flat.narrow(0, start as i64, PIECE.min(all - start) as i64);
        let starts = (0..all).step_by(PIECE);
        let Some((downloads, buffers)) = &self.staging else {
            return starts.map(part).try_for_each(|part| take(&part.to_kind(Kind::Float)));
        };
        let mut copied: Option<Tensor> = None;
        for (start, buffer) in starts.zip(buffers.iter().cycle()) {
            let from = part(start);
            let into = buffer.narrow(0, 0, from.numel() as i64);
            downloads.wait()?;
            downloads.copy(&from, &into)?;
            if let Some(before) = copied.replace(into) {
                take(&before)?;
            }
        }
        downloads.wait()?;
        copied.map_or(Ok(()), |last| take(&last))
    }
}

/// Writes a safetensors file of whole tensors on this rank. The same tensors give the same bytes.
pub(super) fn write<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    dtype: SaveDtype,
) -> Result<Digest, ModelError> {
    let mut tensors: Vec<(&str, &Tensor)> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    let device = tensors.first().map_or(Device::Cpu, |(_, tensor)| tensor.device());
    let shapes = tensors.iter().map(|(name, tensor)| (*name, tensor.size()));
    let mut file = WeightsFile::create((path, Sink::File), shapes, dtype, FORMAT)?;
    let (pieces, mut bytes) = (Pieces::on(device)?, HostBytes::default());
    for (_, tensor) in &tensors {
        pieces.each(tensor, |piece| file.append(bytes.of(piece, kind(dtype))))?;
    }
    Ok(file.finish())
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn a_file_is_what_safetensors_writes_and_its_digest_is_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        // More than two pieces, less than one, none, and a scalar.
        let long = Tensor::arange(5 * PIECE as i64 / 2, (Kind::Float, Device::Cpu)) * 0.37 - 1000.0;
        let matrix = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]).tr();
        let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
        let scalar = Tensor::from(0.1_f32);
        let named = [("b.long", &long), ("a.matrix", &matrix), ("d", &none), ("c", &scalar)];
        for (dtype, stored) in [(SaveDtype::Fp32, Dtype::F32), (SaveDtype::Bf16, Dtype::BF16)] {
            let digest = write(&path, named.into_iter(), dtype).unwrap();
            let written = std::fs::read(&path).unwrap();
            assert_eq!(digest, Digest::of(&written));
            let parts = named.map(|(name, tensor)| {
                let tensor = tensor.to_kind(kind(dtype)).contiguous();
                let mut bytes = vec![0; tensor.numel() * kind(dtype).elt_size_in_bytes()];
                tensor.copy_data_u8(&mut bytes, tensor.numel());
                let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
                (name, shape, bytes)
            });
            let views = parts
                .iter()
                .map(|(name, shape, bytes)| (*name, TensorView::new(stored, shape.clone(), bytes).unwrap()));
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            assert!(written == safetensors::serialize(views, Some(metadata)).unwrap(), "{dtype:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_finished_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let begin = |sink| {
            let shapes = [("a", vec![2, 3])].into_iter();
            WeightsFile::create((&path, sink), shapes, SaveDtype::Fp32, FORMAT).unwrap()
        };
        let begun = begin(Sink::File);
        assert!(path.exists());
        drop(begun);
        assert!(!path.exists());
        let digests = [Sink::File, Sink::Nowhere].map(|sink| {
            let mut file = begin(sink);
            file.append(&[7; 24]).unwrap();
            let digest = file.finish();
            assert_eq!(path.exists(), sink == Sink::File);
            let _ = std::fs::remove_file(&path);
            digest
        });
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/model.safetensors");
        let error = write(&path, std::iter::empty(), SaveDtype::Fp32).unwrap_err().to_string();
        assert!(error.contains("missing/model.safetensors: cannot be written"), "{error}");
    }
}

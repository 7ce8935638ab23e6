//! A rank's state in host memory. It is copied while training waits, and written while training continues.

use std::path::Path;

use foil_common::storage::object::Digest;
use foil_torch::{Downloads, host_buffer};
use tch::{Device, Kind, Tensor, no_grad};

use super::TrainError;
use crate::model::writer::{HostBytes, Sink, WeightsFile};
use crate::model::{ModelError, SaveDtype};

/// Number of elements of a block. The allocator of pinned memory rounds up to a power of two, so a single
/// block for everything could take twice its size.
const BLOCK: i64 = 1 << 24;
/// Number of elements that are hashed and written at a time.
const PIECE: i64 = 1 << 20;

/// Host memory for the snapshots of a phase, pinned for snapshots from a GPU. It is allocated for the first
/// snapshot and reused for all others.
#[derive(Debug)]
pub struct SnapshotMemory {
    /// The blocks, fp32, filled one after the other.
    blocks: Vec<Tensor>,
    /// Number of elements of a block; the last one may have fewer.
    block: i64,
}

impl Default for SnapshotMemory {
    fn default() -> Self {
        Self { blocks: Vec::new(), block: BLOCK }
    }
}

impl SnapshotMemory {
    /// Makes room for `elements`.
    fn reserve(&mut self, elements: i64, device: Device) -> Result<(), TrainError> {
        let held: i64 = self.blocks.iter().map(|block| block.size()[0]).sum();
        if held >= elements {
            return Ok(());
        }
        self.blocks.clear();
        for start in (0..elements).step_by(self.block as usize) {
            self.blocks.push(host_buffer(self.block.min(elements - start), device)?);
        }
        Ok(())
    }

    /// The parts of the blocks that hold elements `start .. end`, with their offsets.
    fn parts(&self, start: i64, end: i64) -> impl Iterator<Item = (i64, Tensor)> {
        let blocks = self.blocks.iter().zip((0..).step_by(self.block as usize));
        blocks.filter_map(move |(block, offset)| {
            let (first, last) = (start.max(offset), end.min(offset + block.size()[0]));
            (first < last).then(|| (first, block.narrow(0, first - offset, last - first)))
        })
    }
}

/// A copy of tensors in host memory at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Names and shapes, in the order of the elements in memory.
    layout: Vec<(String, Vec<i64>)>,
    elements: i64,
    memory: SnapshotMemory,
}

impl Snapshot {
    /// Copies tensors on `device` into `memory`. On a GPU all copies run concurrently, and the host waits
    /// once.
    pub(super) fn of(
        mut tensors: Vec<(String, &Tensor)>,
        device: Device,
        mut memory: SnapshotMemory,
    ) -> Result<Self, TrainError> {
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let elements = tensors.iter().map(|(_, tensor)| tensor.numel() as i64).sum();
        memory.reserve(elements, device)?;
        let downloads = Downloads::new(device)?;
        let mut start = 0;
        for (_, tensor) in &tensors {
            let flat = no_grad(|| tensor.detach().reshape([-1]));
            let end = start + flat.size()[0];
            for (first, part) in memory.parts(start, end) {
                downloads.copy(&flat.narrow(0, first - start, part.size()[0]), &part)?;
            }
            start = end;
        }
        downloads.wait()?;
        let layout = tensors.into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
        Ok(Self { layout, elements, memory })
    }

    /// Writes a safetensors file with a single entry of metadata.
    pub(super) fn write(&self, path: &Path, metadata: (&str, &str)) -> Result<Digest, ModelError> {
        let shapes = self.layout.iter().map(|(name, shape)| (name.as_str(), shape.clone()));
        let mut file = WeightsFile::create((path, Sink::File), shapes, SaveDtype::Fp32, metadata)?;
        let mut bytes = HostBytes::default();
        for (_, part) in self.memory.parts(0, self.elements) {
            for piece in part.split(PIECE, 0) {
                file.append(bytes.of(&piece, Kind::Float))?;
            }
        }
        Ok(file.finish())
    }

    /// The memory, for the next snapshot.
    pub(super) fn into_memory(self) -> SnapshotMemory {
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use foil_torch::CpuMemory;

    use super::*;

    /// Includes names out of order, tensors that cross the bounds of blocks, and a tensor without elements.
    fn tensors(factor: f64) -> Vec<(String, Tensor)> {
        let numbers = |count: i64| (Tensor::arange(count, (Kind::Float, Device::Cpu)) - 7.0) * factor;
        let named = [
            ("z", numbers(995)),
            ("a", numbers(12).view([3, 4]).tr()),
            ("m", numbers(3003)),
            ("none", numbers(0)),
        ];
        named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
    }

    fn small_blocks() -> SnapshotMemory {
        SnapshotMemory { block: 1000, ..SnapshotMemory::default() }
    }

    fn borrowed(tensors: &[(String, Tensor)]) -> Vec<(String, &Tensor)> {
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    #[test]
    fn a_snapshot_is_a_file_of_what_the_tensors_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.safetensors");
        let mut state = tensors(0.25);
        let snapshot = Snapshot::of(borrowed(&state), Device::Cpu, small_blocks()).unwrap();
        let before: Vec<Tensor> = state.iter().map(|(_, tensor)| tensor.copy()).collect();
        for (_, tensor) in &mut state {
            let _ = tensor.g_mul_scalar_(3.0);
        }
        let digest = snapshot.write(&path, ("foil", "{}")).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 4);
        for ((name, _), tensor) in state.iter().zip(&before) {
            let found = file.tensor(name).unwrap();
            let mut expected = vec![0; tensor.numel() * 4];
            tensor.contiguous().copy_data_u8(&mut expected, tensor.numel());
            assert!(found.data() == expected, "{name}");
        }
    }

    #[test]
    fn the_second_snapshot_takes_the_memory_of_the_first() {
        let state = tensors(0.5);
        let elements: u64 = state.iter().map(|(_, tensor)| tensor.numel() as u64).sum();
        let first = Snapshot::of(borrowed(&state), Device::Cpu, small_blocks()).unwrap();
        let memory = first.into_memory();
        let counted = CpuMemory::count().unwrap();
        let second = Snapshot::of(borrowed(&state), Device::Cpu, memory).unwrap();
        // A transposed matrix is made contiguous.
        assert!(counted.peak() <= 12 * 4, "{} bytes for {elements} elements", counted.peak());
        drop(second);
        drop(counted);
        let counted = CpuMemory::count().unwrap();
        drop(Snapshot::of(borrowed(&state), Device::Cpu, small_blocks()).unwrap());
        assert!((elements * 4..elements * 4 + 64).contains(&counted.peak()), "{}", counted.peak());
    }
}

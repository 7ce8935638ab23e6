//! Reads tensors from files.

use std::fs::File;
use std::os::fd::AsRawFd;

use cxx::UniquePtr;
use tch::{Device, Kind, Tensor};

use crate::error::{During, Error, Result};
use crate::ffi::{self, native};

const OPERATION: &str = "reading a tensor";

/// Reads tensors from files to a device. A tensor goes to a GPU in pieces through pinned memory, of which one
/// part is filled while the other is copied, and is converted there.
pub struct FileReader {
    inner: UniquePtr<ffi::FileReader>,
    device: Device,
}

impl FileReader {
    /// Creates a reader to `device`. For a GPU it takes 64 MiB of pinned memory, which libtorch keeps for
    /// later use.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if memory is short.
    pub fn new(device: Device) -> Result<Self> {
        let for_gpu = matches!(device, Device::Cuda(_));
        Ok(Self { inner: ffi::new_file_reader(for_gpu).during("preparing to read tensors")?, device })
    }

    /// Reads `elements` that are stored as `stored` from byte `start` in the machine's memory format, and
    /// converts them to `kind`: `[elements]`, on the device. The host does not wait for a GPU at the end.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if the file ends too early, cannot be read, or memory is short.
    pub fn read(&self, file: &File, start: u64, elements: i64, stored: Kind, kind: Kind) -> Result<Tensor> {
        let empty = |elements, options| {
            Tensor::f_empty([elements], options)
                .map_err(|error| Error::Torch { operation: OPERATION, detail: error.to_string() })
        };
        let into = empty(elements, (kind, self.device))?;
        let like = empty(0, (stored, Device::Cpu))?;
        self.inner.read(file.as_raw_fd(), start, native(&like), native(&into)).during(OPERATION)?;
        Ok(into)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use tch::{Device, Kind, Tensor};

    use super::FileReader;

    fn file_of(numbers: &[f32]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(b"seven b").unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn read(file: &File, start: u64, elements: i64, kind: Kind) -> crate::Result<Tensor> {
        FileReader::new(Device::Cpu)?.read(file, start, elements, Kind::Float, kind)
    }

    #[test]
    fn elements_are_read_where_they_are() {
        let stored: Vec<f32> = (0..1000).map(|number| number as f32 * 0.37 - 11.0).collect();
        let mut file = file_of(&stored);
        // Reading is by position and does not move the file's own position.
        file.seek(SeekFrom::Start(3)).unwrap();
        assert!(read(&file, 7, 1000, Kind::Float).unwrap().equal(&Tensor::from_slice(&stored)));
        assert!(read(&file, 7 + 40, 5, Kind::Float).unwrap().equal(&Tensor::from_slice(&stored[10..15])));
        let converted = Tensor::from_slice(&stored).to_kind(Kind::BFloat16);
        assert!(read(&file, 7, 1000, Kind::BFloat16).unwrap().equal(&converted));
        assert_eq!(read(&file, 7, 0, Kind::BFloat16).unwrap().size(), [0]);
        assert_eq!(file.stream_position().unwrap(), 3);
        let error = read(&file, 11, 1000, Kind::Float).unwrap_err().to_string();
        assert!(error.contains("ends before"), "{error}");
        let directory = File::open("/").unwrap();
        let error = read(&directory, 0, 1, Kind::Float).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("is a directory"), "{error}");
    }

    /// Several threads read parts of 4 MiB.
    #[test]
    fn large_tensors_are_read_whole() {
        let stored: Vec<f32> = (0..(9 << 18) + 5).map(|number| (number as f32).sin()).collect();
        let file = file_of(&stored);
        let all = stored.len() as i64;
        assert!(read(&file, 7, all, Kind::Float).unwrap().equal(&Tensor::from_slice(&stored)));
        let error = read(&file, 11, all, Kind::Float).unwrap_err().to_string();
        assert!(error.contains("ends before"), "{error}");
    }
}

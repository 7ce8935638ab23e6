//! Reads tensors from files.

use std::fs::File;
use std::os::fd::AsRawFd;

use tch::{Device, Kind, Tensor};

use crate::error::{During, Error, Result};
use crate::ffi::{self, native};

/// Reads `elements` of `kind`, stored from byte `offset` in the machine's memory format: `[elements]`, on the
/// CPU. The bytes are copied once.
///
/// # Errors
/// [`crate::Error::Torch`] if the file ends too early, cannot be read, or memory is short.
pub fn read(file: &File, offset: u64, elements: i64, kind: Kind) -> Result<Tensor> {
    const OPERATION: &str = "reading a tensor";
    let failed = |error: tch::TchError| Error::Torch { operation: OPERATION, detail: error.to_string() };
    let tensor = Tensor::f_empty([elements], (kind, Device::Cpu)).map_err(failed)?;
    ffi::read_into(file.as_raw_fd(), offset, native(&tensor)).during(OPERATION)?;
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use tch::{Kind, Tensor};

    use super::read;

    #[test]
    fn elements_are_read_where_they_are() {
        let mut file = tempfile::tempfile().unwrap();
        let stored: Vec<f32> = (0..1000).map(|number| number as f32 * 0.37 - 11.0).collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|number| number.to_le_bytes()).collect();
        file.write_all(b"seven b").unwrap();
        file.write_all(&bytes).unwrap();
        // Reading is by position and does not move the file's own position.
        file.seek(SeekFrom::Start(3)).unwrap();
        assert!(read(&file, 7, 1000, Kind::Float).unwrap().equal(&Tensor::from_slice(&stored)));
        assert!(read(&file, 7 + 40, 5, Kind::Float).unwrap().equal(&Tensor::from_slice(&stored[10..15])));
        assert_eq!(read(&file, 7, 0, Kind::BFloat16).unwrap().size(), [0]);
        assert_eq!(file.stream_position().unwrap(), 3);
        let error = read(&file, 11, 1000, Kind::Float).unwrap_err().to_string();
        assert!(error.contains("ends before"), "{error}");
        let directory = File::open("/").unwrap();
        let error = read(&directory, 0, 1, Kind::Float).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("is a directory"), "{error}");
    }
}

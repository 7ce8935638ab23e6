//! Scans of the numbers in a checkpoint, for faults that no header shows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use safetensors::Dtype;

use super::{DecoderConfig, HeadKind, ModelFilesError, TensorEntry, WeightFiles};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

impl WeightFiles {
    /// Reads all tensors and looks for NaN and infinity. `moved` is called with the number of bytes read.
    ///
    /// # Errors
    /// The first tensor that holds NaN or infinity, with their number and the first position; files that
    /// cannot be read.
    pub fn scan(&self, moved: &mut dyn FnMut(u64)) -> Result<(), ModelFilesError> {
        for (name, entry) in self.iter() {
            let (mut count, mut first, mut index) = (0u64, None, 0u64);
            let is_finite = finite(name, entry)?;
            self.pieces(entry, &mut |piece| {
                for number in piece.chunks_exact(is_finite.width) {
                    if !(is_finite.holds)(number) {
                        count += 1;
                        first.get_or_insert(index);
                    }
                    index += 1;
                }
                moved(piece.len() as u64);
            })?;
            if let Some(first) = first {
                let reason = format!(
                    "{count} of its {index} numbers are NaN or infinite, the first at index {first}; training would \
                     spread them: take another checkpoint"
                );
                return Err(ModelFilesError::tensor(name, reason));
            }
        }
        Ok(())
    }

    /// Checks that a stored tied head has the bytes of the embeddings, up to the first difference. A head in
    /// another number format is checked when the model is loaded.
    ///
    /// # Errors
    /// A head that differs; files that cannot be read.
    pub fn check_tied_head(&self, config: &DecoderConfig, head: HeadKind) -> Result<(), ModelFilesError> {
        let stored = (self.get(super::LM_HEAD), self.get(super::EMBEDDINGS));
        let (Some(own), Some(shared)) = stored else { return Ok(()) };
        if !self.stores_tied_head(config, head) || own.dtype != shared.dtype || self.equal(own, shared)? {
            return Ok(());
        }
        Err(ModelFilesError::different_head(&own.shape))
    }

    /// Whether two tensors of equal length have equal bytes.
    fn equal(&self, one: &TensorEntry, other: &TensorEntry) -> Result<bool, ModelFilesError> {
        let open = |entry: &TensorEntry| {
            let path = &self.paths()[entry.file];
            let opened = File::open(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(entry.start))?;
                Ok(file.take(entry.bytes))
            });
            opened.map_err(ModelFilesError::read(path))
        };
        let (mut first, mut second) = (open(one)?, open(other)?);
        let (mut a, mut b) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
        loop {
            for (file, piece, entry) in [(&mut first, &mut a, one), (&mut second, &mut b, other)] {
                piece.clear();
                let read = Read::by_ref(file).take(PIECE as u64).read_to_end(piece);
                read.map_err(ModelFilesError::read(&self.paths()[entry.file]))?;
            }
            if a != b || a.is_empty() {
                return Ok(a == b);
            }
        }
    }

    fn pieces(&self, entry: &TensorEntry, look: &mut dyn FnMut(&[u8])) -> Result<(), ModelFilesError> {
        let path = &self.paths()[entry.file];
        let mut read = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(entry.start))?;
            let mut left = entry.bytes;
            let mut piece = vec![0; PIECE];
            while left > 0 {
                let size = left.min(PIECE as u64) as usize;
                file.read_exact(&mut piece[..size])?;
                look(&piece[..size]);
                left -= size as u64;
            }
            Ok(())
        };
        read().map_err(ModelFilesError::read(path))
    }
}

/// The test for finite numbers of a format: their exponent is not all ones.
struct Finite {
    width: usize,
    holds: fn(&[u8]) -> bool,
}

fn finite(name: &str, entry: &TensorEntry) -> Result<Finite, ModelFilesError> {
    match entry.dtype {
        Dtype::F32 => Ok(Finite {
            width: 4,
            holds: |n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]) & 0x7f80_0000 != 0x7f80_0000,
        }),
        Dtype::BF16 => {
            Ok(Finite { width: 2, holds: |n| u16::from_le_bytes([n[0], n[1]]) & 0x7f80 != 0x7f80 })
        }
        Dtype::F16 => Ok(Finite { width: 2, holds: |n| u16::from_le_bytes([n[0], n[1]]) & 0x7c00 != 0x7c00 }),
        other => Err(ModelFilesError::tensor(
            name,
            format!("stored as {other}, but only F32, BF16 and F16 can be read"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// A file with one tensor of `width` bytes per number.
    fn write(dir: &Path, dtype: &str, width: usize, bytes: &[u8]) -> WeightFiles {
        let shape = [bytes.len() / width];
        let header = json!({ "w": { "dtype": dtype, "shape": shape, "data_offsets": [0, bytes.len()] } });
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(bytes);
        let path = dir.join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        let mut files = WeightFiles::default();
        files.add_file(path).unwrap();
        files
    }

    #[test]
    fn nans_and_infinities_are_counted_and_located() {
        let dir = tempfile::tempdir().unwrap();
        let f32s = |numbers: &[f32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let mut seen = 0;
        let whole = f32s(&[0.0, -1.5, f32::MAX, f32::MIN_POSITIVE]);
        write(dir.path(), "F32", 4, &whole).scan(&mut |bytes| seen += bytes).unwrap();
        assert_eq!(seen, 16);
        let holed = f32s(&[1.0, f32::NAN, f32::NEG_INFINITY, 2.0]);
        let error = write(dir.path(), "F32", 4, &holed).scan(&mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("tensor w: 2 of its 4 numbers") && error.contains("index 1"), "{error}");
        // 65504 is float16's largest number, 0x7c00 its infinity; as bfloat16 both are finite.
        let halves: Vec<u8> = [0x7bff_u16, 0x7c00].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert!(
            write(dir.path(), "F16", 2, &halves)
                .scan(&mut |_| {})
                .unwrap_err()
                .to_string()
                .contains("index 1")
        );
        write(dir.path(), "BF16", 2, &halves).scan(&mut |_| {}).unwrap();
        let infinite = 0xff80_u16.to_le_bytes();
        assert!(write(dir.path(), "BF16", 2, &infinite).scan(&mut |_| {}).is_err());
        assert!(write(dir.path(), "I32", 4, &whole).scan(&mut |_| {}).is_err());
    }

    #[test]
    fn tensors_are_compared_to_their_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![7; 2 * PIECE + 8];
        let whole = write(dir.path(), "F32", 4, &bytes);
        let entry = whole.get("w").unwrap().clone();
        let half =
            |start| TensorEntry { start: entry.start + start, bytes: PIECE as u64 + 4, ..entry.clone() };
        assert!(whole.equal(&half(0), &half(PIECE as u64 + 4)).unwrap());
        bytes[2 * PIECE + 7] = 8;
        let whole = write(dir.path(), "F32", 4, &bytes);
        assert!(!whole.equal(&half(0), &half(PIECE as u64 + 4)).unwrap());
    }
}

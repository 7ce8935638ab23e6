//! The shards of an export: which tensors each has, and its header.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use foil_common::model::{INDEX, SINGLE, WeightFiles};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::numbers::format;

/// Maximum number of shards, given the five digits in their names.
const MOST_SHARDS: usize = 99_999;
/// Alignment of the numbers after a header, which is padded to it.
const ALIGNMENT: usize = 8;

/// A tensor as it is read and as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) from: Dtype,
    pub(super) to: Dtype,
    shape: Vec<usize>,
    /// Its first byte in the source file, and its number of bytes.
    pub(super) start: u64,
    pub(super) bytes: u64,
    written: u64,
    pub(super) shard: usize,
}

/// A file to read, with its tensors in their order in it.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) items: Vec<Item>,
}

/// A file to write.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) name: String,
    /// Preceded by its length.
    pub(super) header: Vec<u8>,
    pub(super) data: u64,
}

impl Shard {
    pub(super) fn size(&self) -> u64 {
        self.header.len() as u64 + self.data
    }
}

#[derive(Debug)]
pub(super) struct Layout {
    pub(super) files: Vec<SourceFile>,
    pub(super) shards: Vec<Shard>,
    /// The index, if there are several shards.
    pub(super) index: Option<Value>,
    pub(super) parameters: u64,
}

impl Layout {
    /// Lays tensors out in the order in which they are read, so that every file is read once from start to
    /// end. A shard has at most `limit` bytes of numbers, or one tensor. `to` is none to keep each
    /// tensor's format; `single` is the name of a file that may not be split.
    pub(super) fn new(
        weights: &WeightFiles,
        to: Option<Dtype>,
        limit: u64,
        single: Option<&str>,
    ) -> Result<Self> {
        let mut files: Vec<SourceFile> =
            weights.paths().iter().map(|path| SourceFile { path: path.clone(), items: Vec::new() }).collect();
        for (name, entry) in weights.iter() {
            let (Some((_, width)), Some((_, wider))) =
                (format(entry.dtype), format(to.unwrap_or(entry.dtype)))
            else {
                bail!(
                    "tensor {name} is stored as {}, but only F32, BF16 and F16 can be exported; export the model that it was \
                     made of",
                    entry.dtype
                );
            };
            let shape: Vec<usize> =
                entry.shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
            files[entry.file].items.push(Item {
                name: name.to_owned(),
                from: entry.dtype,
                to: to.unwrap_or(entry.dtype),
                shape,
                start: entry.start,
                bytes: entry.bytes,
                written: entry.bytes / width as u64 * wider as u64,
                shard: 0,
            });
        }
        files.iter_mut().for_each(|file| file.items.sort_by_key(|item| item.start));
        let count = assign(&mut files, if single.is_some() { u64::MAX } else { limit });
        if count > MOST_SHARDS {
            bail!(
                "{count} shards are too many, expected at most {MOST_SHARDS}; give a larger --max-shard-size"
            );
        }
        let name = |shard: usize| match (single, count) {
            (Some(name), _) => name.to_owned(),
            (None, ..=1) => SINGLE.to_owned(),
            (None, _) => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        let shards = (0..count).map(|shard| make(name(shard), shard, &files)).collect::<Result<Vec<_>>>()?;
        let items = || files.iter().flat_map(|file| &file.items);
        let parameters =
            items().map(|item| item.shape.iter().map(|&size| size as u64).product::<u64>()).sum();
        let index = (count > 1).then(|| {
            let map: BTreeMap<&str, &str> =
                items().map(|item| (item.name.as_str(), shards[item.shard].name.as_str())).collect();
            let size: u64 = items().map(|item| item.written).sum();
            json!({ "metadata": { "total_parameters": parameters, "total_size": size }, "weight_map": map })
        });
        Ok(Self { files, shards, index, parameters })
    }

    /// Bytes to read, and bytes to write.
    pub(super) fn sizes(&self) -> (u64, u64) {
        let read = self.files.iter().flat_map(|file| &file.items).map(|item| item.bytes).sum();
        (read, self.shards.iter().map(Shard::size).sum())
    }

    /// The file of the index.
    pub(super) fn index_name() -> &'static str {
        INDEX
    }
}

/// Fills one shard after the other; returns their number.
fn assign(files: &mut [SourceFile], limit: u64) -> usize {
    let (mut shard, mut used) = (0, 0u64);
    for item in files.iter_mut().flat_map(|file| &mut file.items) {
        if used > 0 && used.saturating_add(item.written) > limit {
            (shard, used) = (shard + 1, 0);
        }
        used += item.written;
        item.shard = shard;
    }
    shard + 1
}

fn make(name: String, shard: usize, files: &[SourceFile]) -> Result<Shard> {
    let (mut tensors, mut end) = (Vec::new(), 0usize);
    for item in files.iter().flat_map(|file| &file.items).filter(|item| item.shard == shard) {
        let start = end;
        end += usize::try_from(item.written)?;
        let info = TensorInfo { dtype: item.to, shape: item.shape.clone(), data_offsets: (start, end) };
        tensors.push((item.name.clone(), info));
    }
    // transformers refuses a file whose metadata does not name its framework.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let header = Metadata::new(Some(metadata), tensors).with_context(|| format!("cannot lay out {name}"))?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut header);
    Ok(Shard { name, header: bytes, data: end as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files: the first with two tensors of 8 and 4 numbers, the second with one of 6.
    fn weights(dir: &std::path::Path) -> WeightFiles {
        let mut files = WeightFiles::default();
        for (file, tensors) in
            [("a.safetensors", &[("z", 8usize), ("a", 4)][..]), ("b.safetensors", &[("m", 6)])]
        {
            let (mut header, mut end) = (serde_json::Map::new(), 0);
            for (name, count) in tensors {
                header.insert(
                    (*name).into(),
                    json!({ "dtype": "F32", "shape": [count], "data_offsets": [end, end + 4 * count] }),
                );
                end += 4 * count;
            }
            let header = Value::Object(header).to_string();
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes.resize(bytes.len() + end, 0);
            std::fs::write(dir.join(file), bytes).unwrap();
            files.add_file(dir.join(file)).unwrap();
        }
        files
    }

    #[test]
    fn tensors_fill_shards_in_the_order_of_reading() {
        let dir = tempfile::tempdir().unwrap();
        let weights = weights(dir.path());
        let layout = Layout::new(&weights, Some(Dtype::BF16), 24, None).unwrap();
        let names: Vec<&str> = layout.shards.iter().map(|shard| shard.name.as_str()).collect();
        assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]);
        assert_eq!(layout.shards.iter().map(|shard| shard.data).collect::<Vec<_>>(), [24, 12]);
        let index = layout.index.as_ref().unwrap();
        assert_eq!(index["metadata"], json!({ "total_parameters": 18, "total_size": 36 }));
        assert_eq!(index["weight_map"]["m"], names[1]);
        assert_eq!(layout.sizes().0, 72);
        for shard in &layout.shards {
            let length = u64::from_le_bytes(*shard.header.first_chunk().unwrap());
            assert_eq!((length % 8, length as usize + 8), (0, shard.header.len()));
            let mut file = shard.header.clone();
            file.resize(shard.size() as usize, 0);
            let read = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert!(read.iter().all(|(_, view)| view.dtype() == Dtype::BF16));
        }
    }

    #[test]
    fn a_tensor_larger_than_a_shard_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let weights = weights(dir.path());
        let count = |limit, single| Layout::new(&weights, None, limit, single).unwrap().shards.len();
        assert_eq!([count(1, None), count(72, None), count(71, None), count(1, Some("x"))], [3, 1, 2, 1]);
        let whole = Layout::new(&weights, None, 72, None).unwrap();
        assert_eq!((whole.shards[0].name.as_str(), whole.index.is_none()), (SINGLE, true));
    }
}

//! The headers of a model's safetensors files: one `model.safetensors`, or shards under an index.

mod header;
mod index;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::input_file::{self, LFS_POINTER};

use self::index::Index;
use super::contents;
use super::names::{EMBEDDINGS, INDEX, LM_HEAD, SCORE, SINGLE};
use super::{DecoderConfig, HeadKind, ModelFilesError};

/// Maximum size of a header by the safetensors format.
const FORMAT_LIMIT: u64 = 100_000_000;
/// Maximum size of a header that is read: its tensors take about ten times as much memory. A header of a
/// hundred thousand tensors has about 11 MB.
const HEADER_LIMIT: u64 = 16 << 20;
/// Maximum size of an index, whose names take about ten times as much memory. An index of a hundred thousand
/// tensors has this size.
const INDEX_LIMIT: u64 = 8 << 20;
/// Size of the field before the header, which holds its length.
const LENGTH: u64 = 8;
/// A tensor that every model has, which reveals the prefix of its tensor names.
const LANDMARK: &str = "layers.0.self_attn.q_proj.weight";

/// Suffixes of the names of quantized tensors, and the libraries that write them.
const QUANTIZED: [(&str, &str); 12] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".g_idx", "GPTQ"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "FP8"),
    (".weight_scale_inv", "FP8"),
    (".input_scale", "FP8"),
];

/// Names of the head of a reward or value model in other trainers.
const VALUE_HEADS: [&str; 6] =
    ["v_head.", "value_head.", "reward_head.", "regression_layer.", "classifier.", "score.bias"];

/// The location and shape of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Index into [`WeightFiles::paths`].
    pub file: usize,
    pub dtype: Dtype,
    pub shape: Vec<i64>,
    /// Byte offset in the file.
    pub start: u64,
    pub bytes: u64,
}

/// All tensors of a model's safetensors files, by name.
#[derive(Debug, Default)]
pub struct WeightFiles {
    paths: Vec<PathBuf>,
    entries: BTreeMap<String, TensorEntry>,
    /// Metadata of the last file.
    metadata: HashMap<String, String>,
}

/// The length of a file's header, from the first eight bytes of the file.
///
/// # Errors
/// A length that exceeds the file or the limit.
pub fn header_length(path: &Path, start: &[u8], file_length: u64) -> Result<u64, ModelFilesError> {
    let wrong = |reason: String| ModelFilesError::Weights { path: path.to_owned(), reason };
    let Some(size) = start.first_chunk::<8>() else {
        return Err(wrong(format!("{file_length} bytes are too few for a safetensors file; copy it again")));
    };
    if size == b"version " {
        return Err(wrong(format!("it is not a safetensors file: it is {LFS_POINTER}")));
    }
    if size.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        let text = String::from_utf8_lossy(size);
        return Err(wrong(format!(
            "it is not a safetensors file: it starts with the text {text:?}; copy it again"
        )));
    }
    let size = u64::from_le_bytes(*size);
    if size > FORMAT_LIMIT || size > file_length.saturating_sub(LENGTH) {
        return Err(wrong(format!(
            "it is not a safetensors file: its header claims {size} bytes, but the file has {file_length}; copy it again"
        )));
    }
    if size > HEADER_LIMIT {
        return Err(wrong(format!(
            "its header has {size} bytes, more than {HEADER_LIMIT}; save the model in shards (max_shard_size)"
        )));
    }
    Ok(size)
}

/// The `weight_map` of an index: tensor name → file name, which must be a plain name.
///
/// # Errors
/// An index that is not JSON or maps a tensor to something else.
pub fn shards(path: &Path, index: &[u8]) -> Result<BTreeMap<String, String>, ModelFilesError> {
    let read = input_file::json(index).map_err(|error| ModelFilesError::Weights {
        path: path.to_owned(),
        reason: format!("it is not an index of shards: {error}"),
    });
    read.map(|index: Index| index.weight_map.0)
}

impl WeightFiles {
    /// Reads the headers of a directory's safetensors files.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn open(dir: &Path) -> Result<Self, ModelFilesError> {
        let mut files = Self::default();
        let index = dir.join(INDEX);
        if dir.join(SINGLE).is_file() {
            files.add_file(dir.join(SINGLE))?;
            return Ok(files);
        }
        if !index.is_file() {
            let instead =
                contents::instead(dir).unwrap_or_else(|| "copy the weights there, in safetensors".to_owned());
            let reason = format!("holds neither {SINGLE} nor {INDEX}; {instead}");
            return Err(ModelFilesError::Weights { path: dir.to_owned(), reason });
        }
        let text = input_file::read(&index, INDEX_LIMIT).map_err(ModelFilesError::read(&index))?;
        let shards = shards(&index, &text)?;
        for name in shards.values().collect::<std::collections::BTreeSet<_>>() {
            if !dir.join(name).exists() {
                let reason = format!("names {name}, which is not beside it; copy the missing file there");
                return Err(ModelFilesError::Weights { path: index, reason });
            }
            files.add_file(dir.join(name))?;
        }
        files.require_shards(&index, &shards)?;
        Ok(files)
    }

    /// Reads the header of one file.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn add_file(&mut self, path: PathBuf) -> Result<(), ModelFilesError> {
        let read = || {
            let mut file = File::open(&path)?;
            let length = file.metadata()?.len();
            let mut start = Vec::new();
            Read::by_ref(&mut file).take(LENGTH).read_to_end(&mut start)?;
            Ok((file, length, start))
        };
        let (file, length, start) = read().map_err(ModelFilesError::read(&path))?;
        let size = header_length(&path, &start, length)?;
        let mut header = Vec::new();
        file.take(size).read_to_end(&mut header).map_err(ModelFilesError::read(&path))?;
        self.add(path, &header, length)
    }

    /// Adds the tensors of a file of `file_length` bytes whose header is `header`.
    ///
    /// # Errors
    /// A header that does not describe the file; a tensor that is also in another file.
    pub fn add(&mut self, path: PathBuf, header: &[u8], file_length: u64) -> Result<(), ModelFilesError> {
        let wrong = |path: &Path, reason: String| ModelFilesError::Weights { path: path.to_owned(), reason };
        let parsed = header::parse(header)
            .map_err(|error| wrong(&path, format!("its safetensors header is damaged: {error}")))?;
        let data_start = LENGTH + header.len() as u64;
        let expected = data_start.saturating_add(parsed.data_len() as u64);
        if expected != file_length {
            let reason = format!(
                "its header describes {expected} bytes, but the file has {file_length}; it was cut short or changed, copy it again"
            );
            return Err(wrong(&path, reason));
        }
        let file = self.paths.len();
        for (name, info) in parsed.tensors() {
            let entry = TensorEntry {
                file,
                dtype: info.dtype,
                shape: info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect(),
                start: data_start + info.data_offsets.0 as u64,
                bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(wrong(&path, format!("tensor {name} is also in another shard")));
            }
        }
        self.metadata = parsed.metadata().clone().unwrap_or_default();
        self.paths.push(path);
        Ok(())
    }

    /// Checks that every tensor of an index is in the shard that the index names.
    ///
    /// # Errors
    /// The first tensor that is not.
    pub fn require_shards(
        &self,
        index: &Path,
        shards: &BTreeMap<String, String>,
    ) -> Result<(), ModelFilesError> {
        for (tensor, file) in shards {
            let at = self.entries.get(tensor).and_then(|entry| self.paths[entry.file].file_name());
            if at != Some(file.as_ref()) {
                let reason = format!("tensor {tensor} should be in {file} but is not; copy the shards again");
                return Err(ModelFilesError::Weights { path: index.to_owned(), reason });
            }
        }
        Ok(())
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.entries.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// An entry of the metadata of the last file.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Whether a tied head is stored in addition to the embeddings: redundant, if the two are equal.
    pub fn stores_tied_head(&self, config: &DecoderConfig, head: HeadKind) -> bool {
        let shape = |name| self.get(name).map(|entry| &entry.shape);
        config.tied_embeddings
            && head == HeadKind::LanguageModel
            && shape(LM_HEAD).is_some()
            && shape(LM_HEAD) == shape(EMBEDDINGS)
    }

    /// Checks that these are exactly the tensors of a model of this shape with this head, in a supported
    /// number format. Stored rotary frequencies and [a tied head](Self::stores_tied_head) are ignored.
    ///
    /// # Errors
    /// The first tensor that is missing, unexpected, misshapen or in another format.
    pub fn check(&self, config: &DecoderConfig, head: HeadKind) -> Result<(), ModelFilesError> {
        self.refuse_quantized()?;
        self.refuse_other_names()?;
        let expected = config.tensors(head);
        self.refuse_unexpected(config, head, &expected)?;
        for (name, shape) in &expected {
            match self.get(name) {
                None => return Err(self.missing(name, shape)),
                Some(entry) if entry.shape != *shape => {
                    return Err(misshapen(name, &entry.shape, shape));
                }
                Some(entry) => require_format(name, entry.dtype)?,
            }
        }
        Ok(())
    }

    fn refuse_quantized(&self) -> Result<(), ModelFilesError> {
        let by = |name: &str| QUANTIZED.iter().find(|(end, _)| name.ends_with(end)).map(|(_, by)| *by);
        match self.entries.keys().find_map(|name| Some((name, by(name)?))) {
            None => Ok(()),
            Some((name, by)) => Err(ModelFilesError::tensor(
                name,
                format!(
                    "the weights are quantized ({by}), which is not implemented; give the checkpoint in float32, bfloat16 or float16"
                ),
            )),
        }
    }

    /// Refuses names with a prefix other than `model.`: the checkpoint was saved from another class.
    fn refuse_other_names(&self) -> Result<(), ModelFilesError> {
        let own = format!("model.{LANDMARK}");
        if self.entries.contains_key(&own) {
            return Ok(());
        }
        let Some(name) = self.entries.keys().find(|name| name.ends_with(LANDMARK)) else { return Ok(()) };
        let reason = match name.strip_suffix(LANDMARK) {
            Some("") => {
                "the checkpoint's names lack the prefix \"model.\": it was saved from the bare …Model; save it from …ForCausalLM or …ForSequenceClassification"
                    .to_owned()
            }
            prefix => format!(
                "the checkpoint's names start with {:?}, expected \"model.\": save the model itself, without what wraps it",
                prefix.unwrap_or_default()
            ),
        };
        Err(ModelFilesError::tensor(name, reason))
    }

    fn refuse_unexpected(
        &self,
        config: &DecoderConfig,
        head: HeadKind,
        expected: &[(String, Vec<i64>)],
    ) -> Result<(), ModelFilesError> {
        for (name, entry) in self.iter() {
            let known = expected.binary_search_by(|(probe, _)| probe.as_str().cmp(name)).is_ok();
            let tied = name == LM_HEAD && self.stores_tied_head(config, head);
            if known || tied || name.ends_with(".rotary_emb.inv_freq") {
                continue;
            }
            let advice = match (name, head) {
                (LM_HEAD, HeadKind::LanguageModel) => DIFFERENT_HEAD,
                (SCORE, HeadKind::LanguageModel) => {
                    "this is a reward model: name …ForSequenceClassification under architectures, and give it as reward.model"
                }
                (LM_HEAD, HeadKind::Reward) if self.get(SCORE).is_some() => {
                    "a reward model has a score alone; remove the tensor"
                }
                (LM_HEAD, HeadKind::Reward) => "this is a language model; give it as one",
                (name, _) if VALUE_HEADS.iter().any(|head| name.starts_with(head)) => {
                    "the head of a reward model is score.weight, without a bias, [1, hidden_size]; save it under that name"
                }
                _ => "the checkpoint belongs to another config.json",
            };
            let (name, found, advice) = (name.to_owned(), entry.shape.clone(), advice.to_owned());
            return Err(ModelFilesError::Unexpected { name, found, advice });
        }
        Ok(())
    }

    fn missing(&self, name: &str, shape: &[i64]) -> ModelFilesError {
        let advice = match name {
            SCORE => "this is a language model; give it as a causal LM, and it gets a fresh reward head",
            LM_HEAD if self.get(SCORE).is_some() => "this is a reward model, which cannot write text",
            LM_HEAD => "set tie_word_embeddings to true in config.json if the head is the embedding matrix",
            _ => "the checkpoint is incomplete, or belongs to another config.json",
        };
        ModelFilesError::Missing {
            name: name.to_owned(),
            expected: shape.to_vec(),
            advice: advice.to_owned(),
        }
    }
}

/// Advice about a head that config.json ties and that differs from the embeddings.
const DIFFERENT_HEAD: &str =
    "it differs from the embeddings; set tie_word_embeddings to false in config.json to use it";

impl ModelFilesError {
    /// The error of a stored tied head that differs from the embeddings.
    pub fn different_head(shape: &[i64]) -> Self {
        let (name, found) = (LM_HEAD.to_owned(), shape.to_vec());
        Self::Unexpected { name, found, advice: DIFFERENT_HEAD.to_owned() }
    }
}

fn misshapen(name: &str, found: &[i64], expected: &[i64]) -> ModelFilesError {
    if name == SCORE {
        let reason =
            format!("shape {found:?}, but a reward model has one label, so {expected:?} is expected");
        return ModelFilesError::tensor(name, reason);
    }
    ModelFilesError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() }
}

fn require_format(name: &str, dtype: Dtype) -> Result<(), ModelFilesError> {
    match dtype {
        Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(()),
        other => Err(ModelFilesError::tensor(
            name,
            format!("stored as {other}, but only F32, BF16 and F16 can be read"),
        )),
    }
}

#[cfg(test)]
mod tests;

//! The files of an export other than its weights.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use foil_common::input_file;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::numbers::format;
use crate::card::{ModelFile, Provenance};
use crate::local_file::write_atomic;

/// Text and tokenizer files that are copied unchanged.
const TEXT: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
const CONFIG: &str = "config.json";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Maximum size of these files. The largest is tokenizer.json.
const LIMIT: u64 = 256 << 20;

/// Reads the small files of a model and writes those of its export.
pub(super) struct Files<'a> {
    pub(super) from: &'a Path,
    pub(super) to: &'a Path,
    pub(super) made: Option<&'a Provenance>,
}

impl Files<'_> {
    /// The hash that a file was trained with, by its path in the model's directory.
    pub(super) fn expected(made: Option<&Provenance>, name: &str) -> Option<String> {
        let objects = &made?.artifact.objects;
        objects.iter().find(|object| object.path == name).map(|object| object.blake3.clone())
    }

    /// Copies the text and tokenizer files.
    pub(super) fn text(&self) -> Result<Vec<ModelFile>> {
        let names = TEXT.iter().filter(|name| self.from.join(name).is_file());
        names.map(|name| self.write(name, &self.read(name)?)).collect()
    }

    /// config.json, which names the format of the weights.
    pub(super) fn config(&self, dtype: Option<Dtype>) -> Result<ModelFile> {
        let bytes = self.read(CONFIG)?;
        let Some((name, _)) = dtype.and_then(format) else { return self.write(CONFIG, &bytes) };
        let mut config = self.json(CONFIG, &bytes)?;
        // transformers writes `dtype` from version 5 on and reads both.
        if config.contains_key("dtype") {
            config.insert("dtype".to_owned(), json!(name));
        }
        if config.contains_key("torch_dtype") || !config.contains_key("dtype") {
            config.insert("torch_dtype".to_owned(), json!(name));
        }
        self.write(CONFIG, format!("{:#}\n", Value::Object(config)).as_bytes())
    }

    /// adapter_config.json, which names the base model.
    pub(super) fn adapter_config(&self, folder: &str, base: &str) -> Result<ModelFile> {
        let name = format!("{folder}/{ADAPTER_CONFIG}");
        let mut config = self.json(&name, &self.read(&name)?)?;
        config.insert("base_model_name_or_path".to_owned(), json!(base));
        self.write(ADAPTER_CONFIG, format!("{:#}\n", Value::Object(config)).as_bytes())
    }

    fn json(&self, name: &str, bytes: &[u8]) -> Result<serde_json::Map<String, Value>> {
        let shown = self.from.join(name);
        match input_file::json(bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(_) => bail!("{} is not a JSON object", shown.display()),
            Err(error) => bail!("{}: {error}", shown.display()),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.from.join(name);
        let bytes =
            input_file::read(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
        let found = blake3::hash(&bytes).to_hex().to_string();
        match Self::expected(self.made, name) {
            Some(expected) if expected != found => bail!(super::convert::Corrupt { path, expected, found }),
            _ => Ok(bytes),
        }
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<ModelFile> {
        let path = self.to.join(name);
        write_atomic(&path, bytes)?;
        // The rename that places the export must not reach the disk before its content.
        let synced = fs::File::open(&path).and_then(|file| file.sync_all());
        synced.with_context(|| format!("cannot write {}", path.display()))?;
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        Ok(ModelFile { name: name.to_owned(), size: bytes.len() as u64, blake3 })
    }
}

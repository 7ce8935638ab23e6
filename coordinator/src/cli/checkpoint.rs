//! Whether a model directory's weights are whole, by their headers alone: what a rank would find out much later, told
//! before anything is uploaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;

/// The bound that the safetensors format itself sets on its header.
const LARGEST_HEADER: u64 = 100_000_000;
const LAYERS: &str = ".layers.";

#[derive(Debug, Error)]
pub(crate) enum CheckpointError {
    #[error("{}: {error}; check the file", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{}: its header describes {expected} bytes, but the file has {found}: it was cut short or changed, copy it again",
        path.display()
    )]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: it is no safetensors file: {reason}; copy it again", path.display())]
    Header { path: PathBuf, reason: String },
    #[error(
        "{}: tensor {tensor} is missing, which other layers have: the checkpoint is incomplete, copy or convert the model again",
        dir.display()
    )]
    Tensor { dir: PathBuf, tensor: String },
}

/// Checks the safetensors files `names` of a model directory: each has the length that its header describes, and all
/// layers, as many as config.json says, have the same tensors.
pub(crate) fn check(dir: &Path, names: &[String]) -> Result<(), CheckpointError> {
    let mut tensors = BTreeSet::new();
    for name in names.iter().filter(|name| name.ends_with(".safetensors")) {
        tensors.extend(header(&dir.join(name))?);
    }
    match missing(&tensors, layers(dir)) {
        Some(tensor) => Err(CheckpointError::Tensor { dir: dir.to_owned(), tensor }),
        None => Ok(()),
    }
}

/// The tensors that a file's header names.
fn header(path: &Path) -> Result<Vec<String>, CheckpointError> {
    let failed = |error| CheckpointError::Read { path: path.to_owned(), error };
    let wrong = |reason: &str| CheckpointError::Header { path: path.to_owned(), reason: reason.to_owned() };
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| wrong("it is shorter than a header"))?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER || size + 8 > found {
        return Err(wrong(&format!("its header claims {size} bytes, but the file has {found}")));
    }
    let mut text = Vec::new();
    file.take(size).read_to_end(&mut text).map_err(failed)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| wrong(&format!("its header is damaged: {error}")))?;
    let ends = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    let expected = ends.max().unwrap_or(0).saturating_add(8 + size);
    if expected != found {
        return Err(CheckpointError::Length { path: path.to_owned(), expected, found });
    }
    Ok(header.into_iter().map(|(name, _)| name).filter(|name| name != "__metadata__").collect())
}

/// As config.json says; the rest of that file is read by who knows models.
fn layers(dir: &Path) -> Option<u64> {
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).ok()?).ok()?;
    config["num_hidden_layers"].as_u64()
}

/// The first tensor that one layer lacks and another has.
fn missing(tensors: &BTreeSet<String>, layers: Option<u64>) -> Option<String> {
    // What stands before the layer's number, to what stands after it.
    let mut parts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut highest = 0;
    for tensor in tensors {
        let Some(at) = tensor.find(LAYERS) else { continue };
        let (stem, rest) = tensor.split_at(at + LAYERS.len());
        let Some((number, part)) = rest.split_once('.') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        highest = highest.max(number + 1);
        parts.entry(stem).or_default().insert(part);
    }
    // A number that no checkpoint could fill is config.json's fault, not the checkpoint's.
    let layers = layers.unwrap_or(highest).min(highest + tensors.len() as u64);
    let names = parts.iter().flat_map(|(stem, parts)| {
        (0..layers).flat_map(move |layer| parts.iter().map(move |part| format!("{stem}{layer}.{part}")))
    });
    names.into_iter().find(|name| !tensors.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, tensors: &[&str], cut: usize) {
        let entries = tensors.iter().enumerate().map(|(at, tensor)| {
            let offsets = [4 * at, 4 * at + 4];
            let entry = serde_json::json!({ "dtype": "F32", "shape": [1], "data_offsets": offsets });
            ((*tensor).to_owned(), entry)
        });
        let metadata = ("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
        let header = Value::Object(entries.chain([metadata]).collect()).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + 4 * tensors.len() - cut, 0);
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    fn told(dir: &Path, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        check(dir, &names).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_layer_that_lacks_a_tensor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.safetensors", &["lm_head.weight", "model.layers.0.q", "model.layers.0.k"], 0);
        write(dir.path(), "b.safetensors", &["model.layers.1.q", "model.layers.1.k"], 0);
        assert_eq!(told(dir.path(), &["a.safetensors", "b.safetensors", "config.json"]), "");
        std::fs::write(dir.path().join("config.json"), r#"{"num_hidden_layers": 3}"#).unwrap();
        let error = told(dir.path(), &["a.safetensors", "b.safetensors"]);
        assert!(error.contains("tensor model.layers.2.k is missing"), "{error}");
        write(dir.path(), "b.safetensors", &["model.layers.1.k", "model.layers.2.k", "model.layers.2.q"], 0);
        let error = told(dir.path(), &["a.safetensors", "b.safetensors"]);
        assert!(error.contains("tensor model.layers.1.q is missing"), "{error}");
    }

    #[test]
    fn a_file_that_was_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "model.safetensors", &["model.layers.0.q"], 1);
        let error = told(dir.path(), &["model.safetensors"]);
        assert!(error.contains("model.safetensors: its header describes"), "{error}");
        std::fs::write(dir.path().join("model.safetensors"), "version https://git-lfs.github.com/spec/v1")
            .unwrap();
        let error = told(dir.path(), &["model.safetensors"]);
        assert!(error.contains("it is no safetensors file"), "{error}");
    }
}

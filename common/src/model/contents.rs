//! Recognition of directories that are not a model of safetensors files, by the names of their files.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::ModelFilesError;
use super::names::{INDEX, SINGLE};
use crate::input_file;

const ADAPTER: &str = "adapter_config.json";
/// Maximum size of an adapter's configuration.
const ADAPTER_LIMIT: u64 = 1 << 20;

/// Other formats of weights: prefix and suffix of file names, description, and advice.
const FORMATS: [(&str, &str, &str, &str); 7] = [
    (
        "",
        ".gguf",
        "GGUF weights",
        "take the checkpoint they were made of, or dequantize them, and save it as safetensors",
    ),
    ("pytorch_model", "", "PyTorch weights", PICKLED),
    ("consolidated", "", "weights in the layout of Meta or Mistral", "convert them to Hugging Face's"),
    ("", ".pth", "PyTorch weights", PICKLED),
    ("", ".pt", "PyTorch weights", PICKLED),
    ("", ".msgpack", "Flax weights", "load them with transformers and save them as safetensors"),
    ("", ".h5", "TensorFlow weights", "load them with transformers and save them as safetensors"),
];
const PICKLED: &str = "load them with transformers and call save_pretrained, which writes safetensors";

/// A description of the contents of a directory that lacks a model's files, with advice.
pub fn instead(dir: &Path) -> Option<String> {
    let names = names(dir);
    if names.contains(ADAPTER) {
        return Some(format!("it holds an adapter, not a model: {}", merge(dir)));
    }
    if names.contains("snapshots") && names.contains("blobs") {
        return Some(
            "it is an entry of the Hugging Face cache: name the directory of a commit below snapshots/"
                .to_owned(),
        );
    }
    if let Some(link) = [SINGLE, INDEX, "config.json"].iter().find(|name| is_dangling(&dir.join(name))) {
        return Some(format!("{link} is a link to a file that is not there: download the model again"));
    }
    if let Some((name, what, advice)) = other_format(&names) {
        return Some(format!("it holds {name}, {what}: {advice}"));
    }
    let shard = names.iter().find(|name| name.ends_with(".safetensors"))?;
    (!names.contains(INDEX) && !names.contains(SINGLE)).then(|| {
        format!("it holds {shard}, but {INDEX} is missing, which says what the shards are: copy it too")
    })
}

/// Whether a directory's weights are in a format that cannot be read.
pub fn has_other_weights(dir: &Path) -> bool {
    let names = names(dir);
    names.contains(ADAPTER)
        || other_format(&names).is_some()
        || [SINGLE, INDEX].iter().any(|name| is_dangling(&dir.join(name)))
}

/// Refuses a model with an adapter in its directory: transformers would load the adapter and its base model
/// instead.
///
/// # Errors
/// An adapter's configuration is in the directory.
pub fn refuse_adapter(dir: &Path) -> Result<(), ModelFilesError> {
    if !dir.join(ADAPTER).exists() {
        return Ok(());
    }
    let reason =
        format!("the directory holds an adapter too: {}, or move adapter_config.json away", merge(dir));
    Err(ModelFilesError::Weights { path: dir.join(ADAPTER), reason })
}

fn merge(dir: &Path) -> String {
    let base = input_file::read(&dir.join(ADAPTER), ADAPTER_LIMIT).ok();
    let base = base.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let base = base.as_ref().and_then(|config| config.get("base_model_name_or_path")?.as_str());
    let base = base.filter(|name| !name.is_empty()).map_or_else(
        || "its base model".to_owned(),
        |name| format!("its base model, {:?}", name.chars().take(120).collect::<String>()),
    );
    format!("merge it into {base} (peft: merge_and_unload, then save_pretrained)")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

fn is_dangling(path: &Path) -> bool {
    path.is_symlink() && !path.exists()
}

fn other_format(names: &BTreeSet<String>) -> Option<(&str, &'static str, &'static str)> {
    FORMATS.into_iter().find_map(|(start, end, what, advice)| {
        let name = names.iter().find(|name| name.starts_with(start) && name.ends_with(end))?;
        Some((name.as_str(), what, advice))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WeightFiles;

    #[test]
    fn a_directory_without_a_model_is_described_by_its_contents() {
        for (files, what) in [
            (&["adapter_config.json", "adapter_model.safetensors"][..], "merge it into its base model"),
            (&["model-q4.gguf"], "GGUF"),
            (&["pytorch_model.bin"], "save_pretrained"),
            (&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "save_pretrained"),
            (&["consolidated.safetensors"], "Mistral"),
            (&["model-00001-of-00002.safetensors"], "model.safetensors.index.json is missing"),
            (&["blobs", "snapshots"], "below snapshots/"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                std::fs::write(dir.path().join(file), "{}").unwrap();
            }
            let found = instead(dir.path()).unwrap_or_default();
            assert!(found.contains(what), "{files:?}: {found}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((instead(dir.path()), has_other_weights(dir.path())), (None, false));
        std::os::unix::fs::symlink("nowhere", dir.path().join(SINGLE)).unwrap();
        assert!(instead(dir.path()).unwrap().contains("is a link to a file that is not there"));
        assert!(has_other_weights(dir.path()));
        let error = WeightFiles::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("neither") && error.contains("is a link"), "{error}");
    }

    #[test]
    fn a_model_with_an_adapter_in_its_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        refuse_adapter(dir.path()).unwrap();
        std::fs::write(dir.path().join(ADAPTER), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
        let error = refuse_adapter(dir.path()).unwrap_err().to_string();
        assert!(error.contains("adapter_config.json") && error.contains("\"org/base\""), "{error}");
    }
}

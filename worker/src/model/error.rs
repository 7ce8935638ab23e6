//! What can be wrong with a model directory, a batch or a cache.

use std::path::PathBuf;

/// A model that cannot be read, built, run or written; every message says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: not valid JSON: {source}", path = path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("config.json: {field}: found {found}, expected {expected}")]
    Config { field: String, found: String, expected: String },
    #[error("config.json: {feature} is not implemented: {advice}")]
    Unsupported { feature: String, advice: String },
    #[error("{path}: {reason}", path = path.display())]
    Weights { path: PathBuf, reason: String },
    #[error(
        "tensor {name}: shape {found:?} in the checkpoint, but config.json asks for {expected:?}; the two files do not belong together"
    )]
    Shape { name: String, found: Vec<i64>, expected: Vec<i64> },
    #[error("tensor {name}, of shape {expected:?}, is missing from the checkpoint: {advice}")]
    Missing { name: String, expected: Vec<i64>, advice: String },
    #[error(
        "tensor {name}, of shape {found:?}, is in the checkpoint but config.json has no place for it: {advice}"
    )]
    Unexpected { name: String, found: Vec<i64>, advice: String },
    #[error("tensor {name}: {reason}")]
    Tensor { name: String, reason: String },
    #[error("batch: {0}")]
    Batch(String),
    #[error("key/value cache: {0}")]
    Cache(String),
    #[error(transparent)]
    Layer(#[from] foil_c10d::Error),
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    #[error("pad token id {pad}: {reason}")]
    Pad { pad: u32, reason: String },
}

impl ModelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn json(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |source| Self::Json { path, source }
    }
}

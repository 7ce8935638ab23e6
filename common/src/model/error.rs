//! The error of reading a model directory.

use std::path::PathBuf;

use crate::input_file;

/// A fault of a model directory; every message states its location and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelFilesError {
    #[error("{path}: {reason}", path = path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{path}: not valid JSON: {reason}", path = path.display())]
    Json { path: PathBuf, reason: String },
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
    #[error("pad token id {pad}: {reason}")]
    Pad { pad: u32, reason: String },
}

impl ModelFilesError {
    /// Advice for users.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Read { .. } => "make sure that the model directory is complete and can be read",
            Self::Json { .. } => "write the file again; it may have been cut short",
            Self::Config { .. } => "correct that field, or take the config.json that the model came with",
            Self::Unsupported { .. } => "give a model that does not need it",
            Self::Weights { .. } => "save the weights again as safetensors",
            Self::Shape { .. } | Self::Missing { .. } | Self::Unexpected { .. } => {
                "give config.json and weights that were saved together"
            }
            Self::Tensor { .. } => "give a checkpoint without that fault",
            Self::Pad { .. } => "set text.pad_token to a token that no text yields",
        }
    }

    pub fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Read { path, reason: error.to_string() }
    }

    /// The JSON value that a file holds.
    ///
    /// # Errors
    /// The file is not JSON.
    pub fn parse(path: impl Into<PathBuf>, bytes: &[u8]) -> Result<serde_json::Value, Self> {
        input_file::json(bytes).map_err(|reason| Self::Json { path: path.into(), reason })
    }

    pub fn json(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |error| Self::Json { path, reason: error.to_string() }
    }

    pub fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }
}

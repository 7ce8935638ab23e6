//! Errors of a model directory, a batch or a cache.

use std::path::PathBuf;

use foil_common::model::ModelFilesError;

/// An error in reading, building, running or writing a model. Every message says where it occurred and what
/// to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Files(#[from] ModelFilesError),
    #[error("batch: {0}")]
    Batch(String),
    #[error("key/value cache: {0}")]
    Cache(String),
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Layer(#[from] foil_torch::Error),
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl ModelError {
    /// Advice to add to the message; `None` if the model directory is not at fault.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Files(error) => Some(error.advice()),
            Self::Batch(_) | Self::Cache(_) | Self::Write { .. } | Self::Layer(_) | Self::Torch(_) => None,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| ModelFilesError::read(path)(error).into()
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn json(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |error| ModelFilesError::json(path)(error).into()
    }
}

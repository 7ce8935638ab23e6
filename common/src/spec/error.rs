use std::fmt::Display;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A fault of a job file: where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("{field}: found {found}, expected {expected}{}", advice.as_deref().map(|a| format!("; {a}")).unwrap_or_default())]
    Field { field: String, found: String, expected: String, advice: Option<String> },
    #[error("{field} is missing{}", advice.as_deref().map(|a| format!("; {a}")).unwrap_or_default())]
    Missing { field: String, advice: Option<String> },
    #[error("{field}: there is no such field{}", hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Unknown { field: String, hint: Option<String> },
    #[error("{0}")]
    Syntax(String),
    #[error("cannot be read: {0}")]
    Read(String),
    #[error("{}: {error}", file.display())]
    InFile { file: PathBuf, error: Box<SpecError> },
    #[error("--set {setting}: {error}")]
    InSetting { setting: String, error: Box<SpecError> },
}

impl SpecError {
    pub(crate) fn field(field: &str, found: impl Display, expected: &str) -> Self {
        let found = match found.to_string() {
            empty if empty.is_empty() => "nothing".to_owned(),
            text => text,
        };
        Self::Field { field: field.to_owned(), found, expected: expected.to_owned(), advice: None }
    }

    pub(crate) fn missing(field: &str) -> Self {
        Self::Missing { field: field.to_owned(), advice: None }
    }

    pub(crate) fn advice(mut self, text: &str) -> Self {
        if let Self::Field { advice, .. } | Self::Missing { advice, .. } = &mut self {
            *advice = Some(text.to_owned());
        }
        self
    }

    pub(crate) fn in_file(self, file: &Path) -> Self {
        Self::InFile { file: file.to_owned(), error: Box::new(self) }
    }

    pub(crate) fn in_setting(self, setting: &str) -> Self {
        Self::InSetting { setting: setting.to_owned(), error: Box::new(self) }
    }

    /// The same error with the field renamed, if `rename` gives another name.
    pub(crate) fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Self {
        if let Self::Field { field, .. } | Self::Missing { field, .. } | Self::Unknown { field, .. } =
            &mut self
            && let Some(name) = rename(field)
        {
            *field = name;
        }
        self
    }

    /// The dotted path of the field at fault, if it is known.
    pub fn field_path(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } | Self::Missing { field, .. } | Self::Unknown { field, .. } => {
                Some(field)
            }
            Self::InFile { error, .. } | Self::InSetting { error, .. } => error.field_path(),
            Self::Syntax(_) | Self::Read(_) => None,
        }
    }
}

use std::time::Duration;

use foil_common::data::folder::FolderError;
use foil_common::data::parse::ParseError;
use foil_common::data::row_set::SpillError;
use foil_common::model::ModelFilesError;
use foil_common::plural::counted;
use foil_common::spec::SpecError;
use foil_common::storage::StoreError;
use foil_common::text::TextError;
use serde::{Deserialize, Serialize};

/// The reason why a job's inputs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(
        "{field}: {path} is a local path, which only a client can read; submit the job with `foil submit` or `foil run`"
    )]
    NotUploaded { field: &'static str, path: String },
    #[error(
        "{field}: {name} is in a store; bring it here with `foil pull` and name the local path, or ask the coordinator: foil submit --dry-run --server"
    )]
    Uploaded { field: &'static str, name: String },
    #[error("{field}: {path} cannot be read: {what}")]
    Unreadable { field: &'static str, path: String, what: String, absent: bool },
    #[error("{field}: {fault}")]
    Folder { field: &'static str, fault: FolderError },
    #[error("{field}: {name} was not uploaded completely ({key}); submit the job again")]
    Missing { field: &'static str, name: String, key: String },
    #[error("{field}: the model directory {name} {problem}; {advice}")]
    Model { field: &'static str, name: String, problem: String, advice: &'static str },
    #[error("{field}: {}", named(name, fault))]
    ModelFiles { field: &'static str, name: String, fault: ModelFilesError },
    #[error(
        "text.max_length: found {found}, expected at most {limit}, the positions that {model} has \
         (max_position_embeddings in the config.json of {name}); lower it, or take a model for longer texts"
    )]
    Positions { model: &'static str, found: usize, limit: i64, name: String },
    // Not a `source`: the message already includes it.
    #[error("{field}: {fault}")]
    Text { field: &'static str, fault: TextError },
    #[error("{field}: {fault}")]
    Data { field: &'static str, fault: ParseError },
    #[error(
        "{field}: {bad} of {} cannot be encoded by the model, more than data.max_bad_fraction ({allowed}) allows; the first is \
         {first}",
        counted(*rows, "row")
    )]
    Unencodable { field: &'static str, bad: u64, rows: u64, allowed: f64, first: String },
    #[error("{field}: no row is left for {set}{lost}; {advice}")]
    Empty { field: &'static str, set: &'static str, lost: String, advice: String },
    #[error("reading the job's inputs crashed; please report it with the input that did it")]
    Crashed,
    #[error(
        "reading the job's inputs takes more than the {} MiB of memory that a submission has; give less data, or \
         raise --input-memory of foil serve",
        bytes >> 20
    )]
    Memory { bytes: u64 },
    #[error("reading the job's inputs takes more than the {limit:?} that a submission has; give less data")]
    Deadline { limit: Duration },
    #[error("the inputs of {} are waiting to be read; submit the job again later", counted(*waiting, "other job"))]
    Busy { waiting: usize },
    #[error("cannot start the process that reads the job's inputs: {reason}")]
    Process { reason: String },
    #[error("{}", .0.message)]
    Remote(RemoteError),
    #[error(transparent)]
    Spec(#[from] Box<SpecError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// A [`ResolveError`] that has crossed a process boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteError {
    /// The field of the specification to fix, if the user's input is at fault.
    pub field: Option<String>,
    pub message: String,
    /// The store is unavailable, and the same request may succeed later.
    pub transient: bool,
    /// The store is at fault.
    pub store: bool,
}

/// The fault's message, prefixed by the directory unless it already names it.
fn named(name: &str, fault: &ModelFilesError) -> String {
    let fault = fault.to_string();
    if fault.contains(name) { fault } else { format!("{name}: {fault}") }
}

impl ResolveError {
    /// The field of the specification to fix, if the user's input is at fault.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::NotUploaded { field, .. }
            | Self::Uploaded { field, .. }
            | Self::Unreadable { field, .. }
            | Self::Folder { field, .. }
            | Self::Missing { field, .. }
            | Self::Model { field, .. }
            | Self::ModelFiles { field, .. }
            | Self::Text { field, .. }
            | Self::Data { field, .. }
            | Self::Unencodable { field, .. }
            | Self::Empty { field, .. } => Some(field),
            Self::Positions { .. } => Some("text.max_length"),
            Self::Remote(error) => error.field.as_deref(),
            Self::Memory { .. } | Self::Deadline { .. } => Some("data"),
            Self::Spec(error) => error.field_path(),
            Self::Crashed | Self::Busy { .. } | Self::Process { .. } | Self::Store(_) | Self::Spill(_) => {
                None
            }
        }
    }

    /// True if a local file does not exist and the existing ones had no errors.
    pub fn is_missing_file(&self) -> bool {
        matches!(self, Self::Unreadable { absent: true, .. })
    }

    /// True if the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Remote(error) => error.transient,
            _ => false,
        }
    }

    /// True if the store is at fault.
    pub fn is_store_error(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Remote(error) => error.store,
            _ => false,
        }
    }
}

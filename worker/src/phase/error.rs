//! Why a task failed, whose cause that is, and what to do.

use foil_common::data::rows::RowError;
use foil_common::spec::SpecError;
use foil_common::text::TextError;
use foil_proto::v1;

use crate::collective::CollectiveError;
use crate::generate::GenerateError;
use crate::model::ModelError;
use crate::rank::cache::ObjectError;
use crate::train::TrainError;

/// A failed task.
#[derive(Debug, thiserror::Error)]
pub enum PhaseError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("model {artifact}: {source}")]
    Model { artifact: String, source: ModelError },
    #[error("{0}")]
    Batch(ModelError),
    #[error("model {artifact}: {source}")]
    Text { artifact: String, source: TextError },
    #[error("row {row}: {source}")]
    Encode { row: u64, source: TextError },
    #[error(transparent)]
    Rows(#[from] RowError),
    #[error(transparent)]
    Sampling(#[from] SpecError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("ranks cannot meet or part: {0}")]
    Gang(#[from] CollectiveError),
    #[error("the session ended before rank 0's address came")]
    NoRendezvous,
    #[error("{object}: {what}")]
    Samples { object: String, what: String },
    #[error("{set}: none of its {rows} rows can be trained on: {why}")]
    NothingLeft { set: &'static str, rows: usize, why: &'static str },
    #[error("the checkpoint after step {step} cannot be read: {key}: {message}")]
    Checkpoint { step: u64, key: String, message: String },
    #[error("stopped after step {step}, as asked; a checkpoint of it is kept")]
    Stopped { step: u64 },
    #[error("{what} is not finite for row {row}")]
    NonFinite { what: &'static str, row: u64 },
    #[error("the task lacks {0}")]
    Incomplete(&'static str),
}

/// A failure as the coordinator is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// As in `v1::TaskFailure`.
    pub class: &'static str,
    pub message: String,
    pub advice: String,
}

const REPORT: &str = "look at the rank's log; if it names no cause of yours, please report it";
const FIX_MODEL: &str = "give a complete Hugging Face model directory that belongs together";
const MEMORY: &str =
    "lower the step's optimizer.micro_batch_tokens or generation.slots, or use a device with more memory";

impl PhaseError {
    /// Whether the coordinator no longer takes what this attempt writes.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Object(ObjectError::Stale { .. }))
    }

    /// Whether this is no failure: the process was asked to end.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    pub fn failure(&self) -> Failure {
        let message = self.to_string();
        if is_out_of_memory(&message) {
            return Failure { class: "out_of_memory", message, advice: MEMORY.to_owned() };
        }
        let (class, advice) = self.class();
        Failure { class, message, advice: advice.to_owned() }
    }

    fn class(&self) -> (&'static str, &'static str) {
        match self {
            Self::Object(ObjectError::Store { .. } | ObjectError::Disk { .. }) => {
                ("store", "check free space and the object store's health")
            }
            Self::Object(ObjectError::Damaged { .. }) => {
                ("store", "look at the object store: something changed what Foil wrote there")
            }
            Self::Checkpoint { .. } => ("checkpoint", "nothing: the one before it is used"),
            Self::Stopped { .. } => ("internal", "nothing: another rank process goes on"),
            Self::Object(ObjectError::Path { .. }) => ("user", FIX_MODEL),
            Self::Object(ObjectError::Stale { .. }) => {
                ("internal", "nothing: a newer attempt has taken over")
            }
            Self::Model { .. } => ("user", FIX_MODEL),
            Self::Text { .. } => ("user", "look at text in the job file and at the model's tokenizer files"),
            Self::Sampling(_) => ("user", "look at the sampling settings in the job file"),
            Self::Generate(GenerateError::TooLong { .. } | GenerateError::NoSlots) => {
                ("user", "lower text.max_length or sampling.max_new_tokens")
            }
            Self::Encode { .. } | Self::Generate(GenerateError::EmptyPrompt { .. }) => {
                ("data", "repair or drop that row")
            }
            Self::Rows(_) => ("data", "submit the job again"),
            Self::NothingLeft { .. } => ("data", "look at the data sets' counts and at text.max_length"),
            Self::NonFinite { .. } => ("nonfinite", "lower the learning rate; the model has diverged"),
            Self::Train(error) => (error.class(), train_advice(error.class())),
            Self::Batch(_) | Self::Generate(_) | Self::Gang(_) | Self::NoRendezvous => ("internal", REPORT),
            Self::Samples { .. } | Self::Incomplete(_) => ("internal", REPORT),
        }
    }
}

fn train_advice(class: &str) -> &'static str {
    match class {
        "nonfinite" => "lower the learning rate, look at these rows, or set on_nonfinite: skip",
        "data" => "look at the data sets' counts and at the weights in reward_step",
        _ => REPORT,
    }
}

impl Failure {
    /// libtorch's errors come as panics from calls that have no other way.
    pub fn of_panic(text: &str) -> Self {
        let (class, advice) =
            if is_out_of_memory(text) { ("out_of_memory", MEMORY) } else { ("internal", REPORT) };
        Self { class, message: format!("the device thread panicked: {text}"), advice: advice.to_owned() }
    }
}

/// As CUDA's and the CPU's allocators say it.
fn is_out_of_memory(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory"]
        .iter()
        .any(|said| text.contains(said))
}

/// A required message of a task.
pub(super) fn need<'a, T>(field: &'a Option<T>, what: &'static str) -> Result<&'a T, PhaseError> {
    field.as_ref().ok_or(PhaseError::Incomplete(what))
}

/// Ties an error to the object it is about.
pub(super) fn samples_error(object: &v1::Object, what: impl Into<String>) -> PhaseError {
    PhaseError::Samples { object: object.key.clone(), what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_classes() {
        let stale = PhaseError::from(ObjectError::Stale { message: "attempt 2".into() });
        assert!(stale.is_stale());
        let store = PhaseError::from(ObjectError::Store { key: "k".into(), message: "gone".into() });
        assert_eq!((store.failure().class, store.is_stale()), ("store", false));
        let nonfinite =
            TrainError::NonFinite { step: 3, loss: f64::NAN, grad_norm: 1.0, rows: "row 7".into() };
        assert_eq!(PhaseError::from(nonfinite).failure().class, "nonfinite");
    }

    #[test]
    fn memory_that_runs_out_is_told_apart_from_other_panics() {
        let cpu = "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes";
        let cuda = "CUDA out of memory. Tried to allocate 20.00 MiB";
        assert_eq!(Failure::of_panic(cpu).class, "out_of_memory");
        assert_eq!(Failure::of_panic(cuda).class, "out_of_memory");
        assert_eq!(Failure::of_panic("index out of range").class, "internal");
    }
}

//! Failures of tasks: their class and advice.

use foil_common::data::rows::RowError;
use foil_common::failpoint::Injected;
use foil_common::failure::FailureClass;
use foil_common::oom;
use foil_common::plural::counted;
use foil_common::text::TextError;

use super::records::MemoryShortage;
use crate::collective::CollectiveError;
use crate::generate::GenerateError;
use crate::model::ModelError;
use crate::task::{Object, TaskError};
use crate::task_io::artifact_cache::ObjectError;
use crate::train::TrainError;

/// An error of a task.
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
    Task(#[from] TaskError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("rendezvous or shutdown of the process group failed: {0}")]
    Gang(#[from] CollectiveError),
    #[error("the session ended before rank 0's address arrived")]
    NoRendezvous,
    #[error("{object}: {reason}")]
    Record { object: String, reason: String },
    #[error("{set}: none of its {} can be used for training: {reason}", counted(*rows, "row"))]
    NothingLeft { set: &'static str, rows: usize, reason: &'static str },
    #[error("the checkpoint after step {step} cannot be read: {key}: {message}")]
    Checkpoint { step: u64, key: String, message: String },
    #[error("stopped after step {step} as requested; its checkpoint is written")]
    Stopped { step: u64 },
    #[error("{what} is not finite for row {row}")]
    NonFinite { what: &'static str, row: u64 },
    #[error(transparent)]
    Injected(#[from] Injected),
    #[error("the thread that uploads checkpoints panicked")]
    CheckpointThread,
}

/// A failure as reported to the coordinator; fields as in `v1::TaskFailure`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    pub class: FailureClass,
    pub message: String,
    pub advice: String,
    pub step: Option<u64>,
    pub rows: Vec<String>,
    pub memory: Option<MemoryShortage>,
}

const REPORT: &str = "look at the rank's log; if it shows no cause on your side, please report it";
const FILE_NAMES: &str = "use a model directory whose files have safe names";
const NOT_FINITE: &str = "if this job trained the model, it has diverged: lower the learning rate; a start model that was \
                          not trained by it overflows, so use another or set resources.precision: fp32";
const LOOK_AT_REWARDS: &str = "look at the samples and their rewards (`foil ui`); if the rewards of other samples are equal too, the reward \
                               model has collapsed: look at its loss, and lower reward_step.learning_rate";
const FIX_ADDRESS: &str = "start foil-worker on that machine with --advertise-address and an address that the others can connect to";
const FREE_DISK: &str = "free space there, or start foil-worker with a --work-dir on a larger disk";
const FIX_PORTS: &str =
    "start foil-worker on that machine with more --rendezvous-ports, or end the program that holds them";
const MEMORY: &str = "lower the step's optimizer.micro_batch_tokens or generation.max_num_seqs, or use a device with more memory";

impl PhaseError {
    /// Whether the coordinator no longer accepts writes of this attempt.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Object(ObjectError::Stale { .. }))
    }

    /// Whether the task stopped because the process was asked to.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// Whether this error destroys the CUDA context (a device-side assertion, an illegal access, ECC,
    /// NVLink), so that every later call in this process fails too. Out of memory does not.
    pub fn leaves_device_broken(&self) -> bool {
        let message = self.to_string();
        message.contains("CUDA error:") && self.shortage(&message).is_none()
    }

    pub fn failure(&self) -> Failure {
        let message = self.to_string();
        if let Some(shortage) = self.shortage(&message) {
            return Failure::of_memory(shortage, &message);
        }
        let (class, advice) = self.class();
        let (step, rows) = self.rows();
        Failure { class, message, advice: advice.to_owned(), step, rows, memory: None }
    }

    /// The memory shortage that a library's message reports. Messages about the store or the user's files
    /// never count as one.
    fn shortage(&self, message: &str) -> Option<MemoryShortage> {
        match self {
            Self::Object(_) | Self::Rows(_) | Self::Record { .. } | Self::Task(_) => None,
            _ => oom::parse(message),
        }
    }

    /// The step and the rows of a non-finite value.
    fn rows(&self) -> (Option<u64>, Vec<String>) {
        match self {
            Self::Train(TrainError::NonFinite { step, rows, .. }) => (Some(*step), rows.clone()),
            Self::NonFinite { row, .. } => (None, vec![format!("row {row}")]),
            _ => (None, Vec::new()),
        }
    }

    fn class(&self) -> (FailureClass, &'static str) {
        match self {
            Self::Object(ObjectError::Store { .. } | ObjectError::Disk { .. }) => {
                (FailureClass::Store, "check free space and the object store's health")
            }
            Self::Object(ObjectError::NoRoom { .. }) => (FailureClass::Store, FREE_DISK),
            Self::Object(ObjectError::Damaged { .. }) => {
                (FailureClass::Store, "check the object store: something modified what Foil wrote there")
            }
            Self::Checkpoint { .. } => (FailureClass::Checkpoint, "nothing: the previous checkpoint is used"),
            Self::Stopped { .. } => (FailureClass::Preempted, "nothing: another rank process continues"),
            Self::Object(ObjectError::Path { .. }) => (FailureClass::User, FILE_NAMES),
            Self::Object(ObjectError::Stale { .. }) => {
                (FailureClass::Internal, "nothing: a newer attempt has taken over")
            }
            Self::Model { source: ModelError::Write { .. }, .. } => (FailureClass::Store, FREE_DISK),
            Self::Model { source, .. } => match source.advice() {
                Some(advice) => (FailureClass::User, advice),
                None => (FailureClass::Internal, REPORT),
            },
            Self::Text { .. } => {
                (FailureClass::User, "look at text in the job file and at the model's tokenizer files")
            }
            Self::Task(TaskError::Sampling(_)) => {
                (FailureClass::User, "look at the sampling settings in the job file")
            }
            Self::Generate(GenerateError::TooLong { .. } | GenerateError::NoSlots) => {
                (FailureClass::User, "lower text.max_length or sampling.max_new_tokens")
            }
            Self::Encode { .. } | Self::Generate(GenerateError::EmptyPrompt { .. }) => {
                (FailureClass::Data, "repair or remove that row")
            }
            Self::Rows(_) => (FailureClass::Data, "submit the job again"),
            Self::NothingLeft { .. } => (FailureClass::Data, LOOK_AT_REWARDS),
            Self::NonFinite { .. } => (FailureClass::Nonfinite, NOT_FINITE),
            Self::Train(error) => (error.class(), train_advice(error.class())),
            Self::Gang(CollectiveError::Unreachable { .. } | CollectiveError::Listen { .. }) => {
                (FailureClass::Unreachable, FIX_ADDRESS)
            }
            Self::Gang(CollectiveError::NoFreePort { .. }) => (FailureClass::Unreachable, FIX_PORTS),
            Self::Batch(_) | Self::Generate(_) | Self::Gang(_) | Self::NoRendezvous => {
                (FailureClass::Internal, REPORT)
            }
            Self::Record { .. } | Self::Injected(_) | Self::Task(_) | Self::CheckpointThread => {
                (FailureClass::Internal, REPORT)
            }
        }
    }
}

fn train_advice(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Nonfinite => "lower the learning rate, look at these rows, or set on_nonfinite: skip",
        FailureClass::Data => "look at the data sets' counts and at the weights in reward_step",
        _ => REPORT,
    }
}

impl Failure {
    /// The failure for a panic; tch turns libtorch's errors into panics.
    pub fn of_panic(text: &str) -> Self {
        match oom::parse(text) {
            Some(shortage) => Self::of_memory(shortage, text),
            None => Self {
                class: FailureClass::Internal,
                message: format!("the device thread panicked: {text}"),
                advice: REPORT.to_owned(),
                ..Self::default()
            },
        }
    }

    fn of_memory(shortage: MemoryShortage, message: &str) -> Self {
        let shortage = crate::memory::with_usage(shortage);
        // libtorch appends its stack trace.
        let cause = message.lines().next().unwrap_or_default();
        Self {
            class: FailureClass::OutOfMemory,
            message: format!("{} ({cause})", oom::Message(&shortage)),
            advice: MEMORY.to_owned(),
            memory: Some(shortage),
            ..Self::default()
        }
    }
}

/// An error about a stored object.
pub(in crate::phase) fn samples_error(object: &Object, reason: impl Into<String>) -> PhaseError {
    PhaseError::Record { object: object.key.clone(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use foil_common::model::ModelFilesError;

    use super::*;
    use crate::collective::PortRange;

    #[test]
    fn causes_have_classes() {
        let stale = PhaseError::from(ObjectError::Stale { message: "attempt 2".into() });
        assert!(stale.is_stale());
        let store = PhaseError::from(ObjectError::Store { key: "k".into(), message: "gone".into() });
        assert_eq!((store.failure().class, store.is_stale()), (FailureClass::Store, false));
        let source = std::io::ErrorKind::ConnectionRefused.into();
        let unreachable =
            CollectiveError::Unreachable { peer: 0, address: "127.0.0.1:39159".to_owned(), source };
        let failure = PhaseError::from(unreachable).failure();
        assert_eq!(failure.class, FailureClass::Unreachable);
        assert!(failure.message.contains("127.0.0.1:39159"), "{}", failure.message);
        assert!(failure.advice.contains("--advertise-address"), "{}", failure.advice);
    }

    #[test]
    fn a_rank_that_cannot_listen_is_unreachable() {
        let elsewhere = PortRange::ANY.listen("192.0.2.1").unwrap_err();
        let failure = PhaseError::from(elsewhere).failure();
        assert_eq!(failure.class, FailureClass::Unreachable, "{}", failure.message);
        assert!(failure.advice.contains("--advertise-address"), "{}", failure.advice);
        let held = PortRange::ANY.listen("127.0.0.1").unwrap();
        let taken = PortRange::only(held.local_addr().unwrap().port()).listen("127.0.0.1").unwrap_err();
        let failure = PhaseError::from(taken).failure();
        assert_eq!(failure.class, FailureClass::Unreachable, "{}", failure.message);
        assert!(failure.advice.contains("--rendezvous-ports"), "{}", failure.advice);
    }

    #[test]
    fn model_errors_come_with_their_own_advice() {
        let advice = |source| PhaseError::Model { artifact: "policy@0".into(), source }.failure();
        let wide = ModelFilesError::Shape { name: "w".into(), found: vec![2], expected: vec![1] };
        let pad = ModelFilesError::Pad { pad: 2, reason: "it ends texts".into() };
        let (wide, pad) = (advice(wide.into()), advice(pad.into()));
        assert!(wide.advice.contains("saved together") && pad.advice.contains("text.pad_token"));
        assert_eq!((wide.class, pad.class), (FailureClass::User, FailureClass::User));
        assert_eq!(advice(ModelError::Batch("empty".into())).class, FailureClass::Internal);
    }

    #[test]
    fn a_non_finite_loss_is_reported_with_its_step_and_all_rows() {
        let rows: Vec<String> = (0..70).map(|row| format!("human pair {row}")).collect();
        let error = TrainError::NonFinite { step: 3, loss: f64::NAN, grad_norm: 1.0, rows: rows.clone() };
        let failure = PhaseError::from(error).failure();
        assert_eq!((failure.class, failure.step, &failure.rows), (FailureClass::Nonfinite, Some(3), &rows));
        assert!(failure.message.ends_with("human pair 7 and 62 more"), "{}", failure.message);
        let failure = PhaseError::NonFinite { what: "the reward", row: 5 }.failure();
        assert_eq!((failure.class, failure.rows), (FailureClass::Nonfinite, vec!["row 5".to_owned()]));
    }

    #[test]
    fn out_of_memory_is_distinguished_from_other_panics() {
        let cpu = "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nException raised from alloc_cpu";
        let cuda = "CUDA out of memory. Tried to allocate 20.00 MiB";
        for (message, place, requested) in [(cpu, "host", 9), (cuda, "device", 20 << 20)] {
            let failure = Failure::of_panic(message);
            let memory = failure.memory.unwrap();
            assert_eq!((failure.class, memory.place.as_str()), (FailureClass::OutOfMemory, place));
            assert_eq!(memory.requested_bytes, Some(requested));
            assert!(failure.message.starts_with(&format!("out of {place} memory")), "{}", failure.message);
            assert!(!failure.message.contains("Exception"), "{}", failure.message);
        }
        assert_eq!(Failure::of_panic("index out of range").class, FailureClass::Internal);
        let disk = ObjectError::Store { key: "k".into(), message: "cannot allocate memory".into() };
        assert_eq!(PhaseError::from(disk).failure().class, FailureClass::Store);
    }
}

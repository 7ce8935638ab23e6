//! The tasks that a rank executes.
//!
//! Commands are parsed once, where they arrive ([`crate::rank`]). Beyond that point no task has a missing
//! field, a map phase's chunk cannot carry a gang phase's work, and settings have been checked. The `TryFrom`
//! implementations are in [`wire`].

mod wire;

use foil_common::otlp::TraceContext;
use foil_common::spec::Sampling;

pub use self::wire::TaskError;

/// An immutable object of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub size: u64,
    /// BLAKE3 of its bytes, in hex.
    pub blake3: String,
    /// Its file name inside its artifact.
    pub path: String,
}

/// A named set of objects: the files of a model's directory, or the outputs of a phase's chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    pub name: String,
    pub objects: Vec<Object>,
}

/// One data set of the job: an object of JSON lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pub name: String,
    pub object: Object,
    /// Number of rows.
    pub rows: u64,
}

/// The source of preference pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairSource {
    /// Human pairs.
    Pairs(Dataset),
    /// Golden answers, each preferred to every completion of its prompt.
    Golden { golden: Dataset, completions: Artifact },
    /// Two completions per prompt, one of which the gold reward prefers.
    GoldLabeled { prompts: Dataset, completions: Artifact },
}

/// Generates completions for prompts.
#[derive(Clone, Debug)]
pub struct Generate {
    pub policy: Artifact,
    pub prompts: Dataset,
    /// Number of completions per prompt.
    pub samples: u32,
    pub sampling: Sampling,
}

/// Scores a chunk of completions.
#[derive(Clone, Debug)]
pub struct Score {
    pub reward_model: Artifact,
    pub prompts: Dataset,
    pub completions: Object,
}

/// Computes the log-probabilities that policy training needs in addition to the policy's own.
#[derive(Clone, Debug)]
pub struct RefLogProbs {
    /// π_ref, if the method has one.
    pub reference: Option<Artifact>,
    /// The policy that generated the completions, if the method needs its log-probabilities.
    pub old_policy: Option<Artifact>,
    pub prompts: Dataset,
    pub completions: Artifact,
    pub scores: Artifact,
    /// The policy that generated the completions, regardless of what the method needs; used for the drift.
    pub generated_by: Option<Artifact>,
}

/// Evaluates a reward model on pairs.
#[derive(Clone, Debug)]
pub struct EvaluateReward {
    pub reward_model: Artifact,
    pub pairs: PairSource,
    /// The scores of the same chunk by round 1's reward model, from round 2 on.
    pub first: Option<Object>,
}

/// Evaluates a policy on prompts.
#[derive(Clone, Debug)]
pub struct EvaluatePolicy {
    pub policy: Artifact,
    /// π_ref of the KL divergence, which is not computed without it.
    pub reference: Option<Artifact>,
    /// `None` before the first reward model is trained.
    pub reward_model: Option<Artifact>,
    pub prompts: Dataset,
    pub sampling: Sampling,
    /// Completions of the start policy and of the previous round's policy for the same prompts.
    pub start: Option<Artifact>,
    pub previous: Option<Artifact>,
}

/// Supervised fine-tuning.
#[derive(Clone, Debug)]
pub struct Sft {
    pub policy: Artifact,
    pub demonstrations: Dataset,
}

/// Trains a reward model.
#[derive(Clone, Debug)]
pub struct TrainReward {
    /// A reward model, or a language model that gets a fresh head.
    pub start: Artifact,
    pub human: Option<PairSource>,
    pub golden: Option<PairSource>,
}

/// Trains the policy on its scored completions.
#[derive(Clone, Debug)]
pub struct TrainPolicy {
    pub policy: Artifact,
    pub prompts: Dataset,
    pub completions: Artifact,
    pub scores: Artifact,
    /// Output of [`RefLogProbs`], if the method needs it.
    pub log_probs: Option<Artifact>,
}

/// The work of a map phase, done chunk by chunk.
#[derive(Clone, Debug)]
pub enum MapWork {
    Generate(Generate),
    Score(Score),
    RefLogProbs(RefLogProbs),
    EvaluateReward(EvaluateReward),
    EvaluatePolicy(EvaluatePolicy),
}

impl MapWork {
    /// The models that stay resident during the phase.
    pub fn models(&self) -> Vec<&Artifact> {
        match self {
            Self::Generate(work) => vec![&work.policy],
            Self::Score(work) => vec![&work.reward_model],
            Self::RefLogProbs(work) => work.reference.iter().chain(&work.old_policy).collect(),
            Self::EvaluateReward(work) => vec![&work.reward_model],
            Self::EvaluatePolicy(work) => {
                std::iter::once(&work.policy).chain(&work.reference).chain(&work.reward_model).collect()
            }
        }
    }
}

/// The work of a gang phase, done by all ranks together.
#[derive(Clone, Debug)]
pub enum GangWork {
    Sft(Sft),
    TrainReward(TrainReward),
    TrainPolicy(TrainPolicy),
}

impl GangWork {
    /// The model that is trained.
    pub fn start(&self) -> &Artifact {
        match self {
            Self::Sft(work) => &work.policy,
            Self::TrainReward(work) => &work.start,
            Self::TrainPolicy(work) => &work.policy,
        }
    }
}

/// A phase of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The name, for example `r01.policy.generate`.
    pub name: String,
    pub round: u32,
}

impl Phase {
    /// The phase's name without its round; keys its random numbers.
    pub fn purpose(&self) -> &str {
        self.name.split_once('.').map_or(self.name.as_str(), |(_, purpose)| purpose)
    }
}

/// Rows `first .. first + count` of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    pub first: u64,
    pub count: u64,
}

impl RowRange {
    pub const ALL: Self = Self { first: 0, count: u64::MAX };

    /// The rows of `all` within the range.
    pub fn select<T>(self, all: Vec<T>) -> Vec<T> {
        let (first, count) = (saturate(self.first), saturate(self.count));
        all.into_iter().skip(first).take(count).collect()
    }
}

fn saturate(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// A leased chunk of a map phase.
#[derive(Clone, Debug)]
pub struct ChunkTask {
    pub phase: Phase,
    pub work: MapWork,
    pub lease: u64,
    /// Index of the chunk in its phase.
    pub chunk: u32,
    pub rows: RowRange,
    /// Key of the output's object.
    pub key: String,
    /// The chunk's span.
    pub trace: Option<TraceContext>,
}

/// A gang phase on one of its ranks.
#[derive(Clone, Debug)]
pub struct GangTask {
    pub phase: Phase,
    pub work: GangWork,
    pub attempt: u32,
    pub rank: u32,
    pub world: u32,
    /// Key prefix of the attempt's objects; ends in '/'.
    pub key_prefix: String,
    /// The checkpoint to resume from.
    pub resume: Option<Checkpoint>,
    /// The rank's span in this phase.
    pub trace: Option<TraceContext>,
}

/// A committed checkpoint: one shard per rank that wrote it, in rank order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub step: u64,
    pub shards: Vec<Object>,
}

/// Address at which rank 0 of a gang listens for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    pub phase: String,
    pub attempt: u32,
    pub host: String,
    pub port: u16,
}

use compact_str::{CompactString, format_compact};
use foil_proto::v1;

/// The work of a phase; together with the round it makes the phase's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    Sft,
    /// Two samples for each prompt of a gold-labeled training pair.
    GeneratePreferences,
    GenerateEvaluationPreferences,
    /// Samples for golden prompts, including the held-out ones.
    GenerateGolden,
    TrainReward,
    /// Evaluation of the reward model on human pairs.
    EvaluateReward,
    /// Evaluation of the reward model on held-out golden answers against the current policy's samples.
    EvaluateRewardFresh,
    GeneratePolicy,
    ScorePolicy,
    /// Log-probabilities of the policy's samples under the models that training compares the policy with.
    RefLogProbs,
    TrainPolicy,
    EvaluatePolicy,
}

impl Work {
    const ALL: [Self; 12] = [
        Self::Sft,
        Self::GeneratePreferences,
        Self::GenerateEvaluationPreferences,
        Self::GenerateGolden,
        Self::TrainReward,
        Self::EvaluateReward,
        Self::EvaluateRewardFresh,
        Self::GeneratePolicy,
        Self::ScorePolicy,
        Self::RefLogProbs,
        Self::TrainPolicy,
        Self::EvaluatePolicy,
    ];

    /// The part of the phase's id after its round.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::GeneratePreferences => "preferences.generate",
            Self::GenerateEvaluationPreferences => "preferences.evaluation.generate",
            Self::GenerateGolden => "reward.generate",
            Self::TrainReward => "reward.train",
            Self::EvaluateReward => "reward.evaluate",
            Self::EvaluateRewardFresh => "reward.evaluate_fresh",
            Self::GeneratePolicy => "policy.generate",
            Self::ScorePolicy => "policy.score",
            Self::RefLogProbs => "policy.ref_log_probs",
            Self::TrainPolicy => "policy.train",
            Self::EvaluatePolicy => "policy.evaluate",
        }
    }

    /// Kind of the phase, as in `v1::PhasePlan.kind`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::GeneratePreferences
            | Self::GenerateEvaluationPreferences
            | Self::GenerateGolden
            | Self::GeneratePolicy => "generate",
            Self::ScorePolicy => "score",
            Self::RefLogProbs => "ref_log_probs",
            Self::TrainReward => "train_reward",
            Self::TrainPolicy => "train_policy",
            Self::EvaluateReward | Self::EvaluateRewardFresh => "evaluate_reward",
            Self::EvaluatePolicy => "evaluate_policy",
        }
    }

    /// True if all ranks step together; otherwise chunks are leased to them one by one.
    pub fn is_gang(self) -> bool {
        matches!(self, Self::Sft | Self::TrainReward | Self::TrainPolicy)
    }

    /// Unit in which progress is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Sft | Self::TrainReward | Self::TrainPolicy => "steps",
            Self::EvaluateReward | Self::EvaluateRewardFresh => "pairs",
            _ => "prompts",
        }
    }
}

/// One phase of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// For example `r02.policy.generate`. Nearly all ids fit inline, which saves the heap memory of many
    /// jobs' plans.
    pub id: CompactString,
    /// Round of the phase; 0 for phases before round 1.
    pub round: u32,
    pub work: Work,
    /// Number of chunks of a map phase; 0 for a gang phase.
    pub chunks: u32,
    /// Number of steps of a gang phase; 0 for a map phase.
    pub steps: u32,
}

impl Phase {
    pub fn map(round: u32, work: Work, chunks: u32) -> Self {
        Self { id: Self::id_of(round, work), round, work, chunks, steps: 0 }
    }

    pub fn gang(round: u32, work: Work, steps: u32) -> Self {
        Self { id: Self::id_of(round, work), round, work, chunks: 0, steps }
    }

    pub fn id_of(round: u32, work: Work) -> CompactString {
        format_compact!("r{round:02}.{}", work.name())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the plan holds a phase {id:?} that this version does not know")]
pub struct PlanError {
    id: String,
}

impl TryFrom<&v1::PhasePlan> for Phase {
    type Error = PlanError;

    fn try_from(wire: &v1::PhasePlan) -> Result<Self, PlanError> {
        let work = Work::ALL
            .into_iter()
            .find(|work| Phase::id_of(wire.round, *work) == wire.id)
            .ok_or_else(|| PlanError { id: wire.id.clone() })?;
        Ok(Self {
            id: wire.id.as_str().into(),
            round: wire.round,
            work,
            chunks: wire.chunks,
            steps: wire.steps,
        })
    }
}

impl From<&Phase> for v1::PhasePlan {
    fn from(phase: &Phase) -> Self {
        Self {
            id: phase.id.to_string(),
            round: phase.round,
            kind: phase.work.kind().to_owned(),
            chunks: phase.chunks,
            steps: phase.steps,
        }
    }
}

/// The name and the kind of the artifact that a phase commits.
pub fn artifact_name(phase: &Phase) -> (String, &'static str) {
    match phase.work {
        Work::Sft => ("policy@0".to_owned(), "policy"),
        Work::TrainPolicy => (format!("policy@{}", phase.round), "policy"),
        Work::TrainReward => (format!("reward@{}", phase.round), "reward"),
        Work::GeneratePreferences
        | Work::GenerateEvaluationPreferences
        | Work::GenerateGolden
        | Work::GeneratePolicy => (format!("samples/{}", phase.id), "samples"),
        Work::ScorePolicy => (format!("scores/{}", phase.id), "scores"),
        Work::RefLogProbs => (format!("ref_log_probs/{}", phase.id), "ref_log_probs"),
        Work::EvaluateReward | Work::EvaluateRewardFresh | Work::EvaluatePolicy => {
            (format!("evaluation/{}", phase.id), "evaluation")
        }
    }
}

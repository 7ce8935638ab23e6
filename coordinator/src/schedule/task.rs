//! Builds the self-contained tasks of a planned phase from the artifacts committed so far.

use foil_common::datasets as sets;
use foil_common::spec::{ReferencePolicy, RewardStart};
use foil_proto::v1::{self, pair_source::Source, task::Work as TaskWork};

use super::context::Problem;
use crate::job::{JobState, rows};
use crate::plan::{Phase, Work, chunks_of, segments};

/// Samples per prompt of a gold-labeled pair.
const PAIR_SAMPLES: u32 = 2;

/// A chunk of a map phase: a task and its rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lease {
    pub(crate) task: v1::Task,
    /// Rows `[first, first + count)` of the task's data set.
    pub(crate) first: u64,
    pub(crate) count: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(
        "phase {phase} needs {what}, which the job does not have; this is a bug of the plan, please report it"
    )]
    Missing { phase: String, what: String },
    #[error("phase {phase} has no chunk {chunk}")]
    NoChunk { phase: String, chunk: u32 },
}

impl TaskError {
    /// The plan requires something that the job lacks, so no attempt can succeed.
    pub(super) fn into_problem(self, rank: usize, phase: &Phase) -> Problem {
        let failure = v1::TaskFailure {
            phase: phase.id.to_string(),
            class: v1::FailureClass::Data.into(),
            message: self.to_string(),
            ..Default::default()
        };
        Problem::fatal(rank, failure)
    }
}

/// Lease of the chunk with this index (from 0) in a map phase.
pub(crate) fn lease(job: &JobState, phase: &Phase, chunk: u32) -> Result<Lease, TaskError> {
    let Some(span) = rows::span(job, phase, chunk) else {
        return Err(TaskError::NoChunk { phase: phase.id.to_string(), chunk });
    };
    let task = Builder { job, phase }.map(span.set, span.local)?;
    Ok(Lease { task, first: span.first, count: span.count })
}

/// The task of a gang phase, the same for all its ranks.
pub(crate) fn gang_task(job: &JobState, phase: &Phase) -> Result<v1::Task, TaskError> {
    Builder { job, phase }.gang()
}

struct Builder<'a> {
    job: &'a JobState,
    phase: &'a Phase,
}

impl Builder<'_> {
    /// `local` counts chunks within the data set.
    fn map(&self, set: &str, local: u32) -> Result<v1::Task, TaskError> {
        let round = self.phase.round;
        let before = round.saturating_sub(1);
        let step = &self.job.spec;
        let work = match self.phase.work {
            Work::GeneratePreferences | Work::GenerateEvaluationPreferences => {
                self.generate(0, set, PAIR_SAMPLES)?
            }
            Work::GenerateGolden => self.generate(before, set, step.reward_step.samples)?,
            Work::GeneratePolicy => self.generate(before, set, step.policy_step.samples)?,
            Work::ScorePolicy => TaskWork::Score(v1::Score {
                reward: Some(self.reward()?),
                prompts: Some(self.dataset(set)?),
                samples: Some(only(self.samples(round, Work::GeneratePolicy)?, local)),
            }),
            Work::RefLogProbs => self.compute_ref_log_probs(set, local)?,
            Work::EvaluateReward => {
                let first = self.evaluated(1, Work::EvaluateReward, local);
                self.evaluate_reward(self.human_evaluation(set, local)?, first)?
            }
            Work::EvaluateRewardFresh => {
                let skip = match segments(&self.job.spec, round, Work::GenerateGolden).len() {
                    2 => self.chunks(sets::GOLDEN),
                    _ => 0,
                };
                let samples = only(self.samples(round, Work::GenerateGolden)?, skip + local);
                let golden = v1::GoldenPairs { golden: Some(self.dataset(set)?), samples: Some(samples) };
                self.evaluate_reward(Source::Golden(golden), None)?
            }
            Work::EvaluatePolicy => self.evaluate_policy(set, local)?,
            Work::Sft | Work::TrainReward | Work::TrainPolicy => return Err(self.missing("chunks")),
        };
        Ok(self.task(work))
    }

    fn gang(&self) -> Result<v1::Task, TaskError> {
        let round = self.phase.round;
        let work = match self.phase.work {
            Work::Sft => TaskWork::Sft(v1::Sft {
                policy: Some(self.job.submitted.policy.clone()),
                demonstrations: Some(self.dataset(sets::SFT)?),
            }),
            Work::TrainReward => TaskWork::TrainReward(v1::TrainReward {
                start: Some(self.reward_start()?),
                human: self.human_training()?.map(pairs),
                golden: self.golden_training()?.map(pairs),
            }),
            Work::TrainPolicy => TaskWork::TrainPolicy(v1::TrainPolicy {
                policy: Some(self.policy(round.saturating_sub(1))?),
                prompts: Some(self.dataset(sets::PROMPTS)?),
                samples: Some(self.samples(round, Work::GeneratePolicy)?),
                scores: Some(self.samples(round, Work::ScorePolicy)?),
                ref_log_probs: self.ref_log_probs()?,
            }),
            _ => return Err(self.missing("a gang")),
        };
        Ok(self.task(work))
    }

    fn task(&self, work: TaskWork) -> v1::Task {
        v1::Task { phase: self.phase.id.to_string(), round: self.phase.round, work: Some(work) }
    }

    fn generate(&self, policy: u32, set: &str, samples: u32) -> Result<TaskWork, TaskError> {
        Ok(TaskWork::Generate(v1::Generate {
            policy: Some(self.policy(policy)?),
            prompts: Some(self.dataset(set)?),
            samples,
            sampling: Some((&self.job.spec.sampling).into()),
        }))
    }

    fn compute_ref_log_probs(&self, set: &str, local: u32) -> Result<TaskWork, TaskError> {
        let (needs, round) = (self.job.spec.policy_step.method.needs(), self.phase.round);
        let before = round.saturating_sub(1);
        let reference = needs.reference.map(|reference| match reference {
            ReferencePolicy::RoundStart => self.policy(before),
            ReferencePolicy::Initial => self.policy(0),
        });
        Ok(TaskWork::RefLogProbs(v1::RefLogProbs {
            reference: reference.transpose()?,
            old_policy: needs.old_log_probs.then(|| self.policy(before)).transpose()?,
            prompts: Some(self.dataset(set)?),
            samples: Some(only(self.samples(round, Work::GeneratePolicy)?, local)),
            scores: Some(only(self.samples(round, Work::ScorePolicy)?, local)),
            generated_by: Some(self.policy(before)?),
        }))
    }

    /// The artifact of the round's RefLogProbs phase; none if the plan has no such phase.
    fn ref_log_probs(&self) -> Result<Option<v1::Artifact>, TaskError> {
        let id = Phase::id_of(self.phase.round, Work::RefLogProbs);
        let planned = self.job.phases.iter().any(|phase| phase.id == id);
        planned.then(|| self.samples(self.phase.round, Work::RefLogProbs)).transpose()
    }

    fn evaluate_reward(&self, source: Source, first: Option<v1::Artifact>) -> Result<TaskWork, TaskError> {
        Ok(TaskWork::EvaluateReward(v1::EvaluateReward {
            reward: Some(self.reward()?),
            pairs: Some(pairs(source)),
            first,
        }))
    }

    /// An earlier round's evaluation of the same kind on chunk `local`, which covers the same rows. None if
    /// that round is not finished.
    fn evaluated(&self, round: u32, work: Work, local: u32) -> Option<v1::Artifact> {
        let done = self.job.done(&Phase::id_of(round, work)).filter(|_| round < self.phase.round);
        done.map(|done| only(done.artifact.clone(), local))
    }

    fn evaluate_policy(&self, set: &str, local: u32) -> Result<TaskWork, TaskError> {
        let measured = &self.job.spec.evaluation;
        let round = self.phase.round;
        let with_kl = round > 0 && measured.kl_prompts > 0;
        Ok(TaskWork::EvaluatePolicy(v1::EvaluatePolicy {
            policy: Some(self.policy(round)?),
            reference: with_kl.then(|| self.policy(0)).transpose()?,
            reward: (round > 0).then(|| self.reward()).transpose()?,
            prompts: Some(self.dataset(set)?),
            sampling: Some((&measured.sampling).into()),
            start: self.evaluated(0, Work::EvaluatePolicy, local),
            // In round 1, the previous policy is the start policy.
            previous: (round > 1).then(|| self.evaluated(round - 1, Work::EvaluatePolicy, local)).flatten(),
        }))
    }

    fn human_evaluation(&self, set: &str, local: u32) -> Result<Source, TaskError> {
        if self.job.spec.data.gold_preferences.is_none() {
            return Ok(Source::Pairs(self.dataset(set)?));
        }
        Ok(Source::GoldLabeled(v1::GoldLabeled {
            prompts: Some(self.dataset(set)?),
            samples: Some(only(self.samples(0, Work::GenerateEvaluationPreferences)?, local)),
        }))
    }

    /// Human pairs, D_P; none if their weight is zero.
    fn human_training(&self) -> Result<Option<Source>, TaskError> {
        if self.job.spec.reward_step.human_weight == 0.0 {
            return Ok(None);
        }
        if self.job.spec.data.gold_preferences.is_none() {
            return Ok(Some(Source::Pairs(self.dataset(sets::PREFERENCES)?)));
        }
        Ok(Some(Source::GoldLabeled(v1::GoldLabeled {
            prompts: Some(self.dataset(sets::GOLD_PREFERENCE_PROMPTS)?),
            samples: Some(self.samples(0, Work::GeneratePreferences)?),
        })))
    }

    /// Golden pairs, D_APO; none if their weight is zero.
    fn golden_training(&self) -> Result<Option<Source>, TaskError> {
        if self.job.spec.reward_step.apo_weight == 0.0 {
            return Ok(None);
        }
        let mut samples = self.samples(self.phase.round, Work::GenerateGolden)?;
        // The objects after these belong to the holdout.
        samples.objects.truncate(self.chunks(sets::GOLDEN) as usize);
        let golden = self.dataset(sets::GOLDEN)?;
        Ok(Some(Source::Golden(v1::GoldenPairs { golden: Some(golden), samples: Some(samples) })))
    }

    fn policy(&self, round: u32) -> Result<v1::Artifact, TaskError> {
        let name = format!("policy@{round}");
        match self.job.artifact(&name) {
            Some(artifact) => Ok(artifact.clone()),
            None if round == 0 && !self.job.spec.has_sft() => Ok(self.job.submitted.policy.clone()),
            None => Err(self.missing(&name)),
        }
    }

    /// The reward model of this round: the last one trained.
    fn reward(&self) -> Result<v1::Artifact, TaskError> {
        (1..=self.phase.round)
            .rev()
            .find_map(|round| self.job.artifact(&format!("reward@{round}")))
            .cloned()
            .ok_or_else(|| self.missing("a trained reward model"))
    }

    fn reward_start(&self) -> Result<v1::Artifact, TaskError> {
        let round = self.phase.round;
        if self.job.spec.reward_step.start == RewardStart::Previous
            && round > 1
            && let Some(previous) = self.job.artifact(&format!("reward@{}", round - 1))
        {
            return Ok(previous.clone());
        }
        match &self.job.submitted.reward {
            Some(reward) => Ok(reward.clone()),
            None => self.policy(0),
        }
    }

    /// The committed artifact of another phase.
    fn samples(&self, round: u32, work: Work) -> Result<v1::Artifact, TaskError> {
        let id = Phase::id_of(round, work);
        self.job.done(&id).map(|done| done.artifact.clone()).ok_or_else(|| self.missing(&id))
    }

    fn dataset(&self, name: &str) -> Result<v1::Dataset, TaskError> {
        self.job.dataset(name).cloned().ok_or_else(|| self.missing(&format!("the data set {name}")))
    }

    fn chunks(&self, set: &str) -> u32 {
        let rows = self.job.dataset(set).map_or(0, |dataset| dataset.rows);
        chunks_of(rows, self.job.spec.generation.chunk_prompts)
    }

    fn missing(&self, what: &str) -> TaskError {
        TaskError::Missing { phase: self.phase.id.to_string(), what: what.to_owned() }
    }
}

fn pairs(source: Source) -> v1::PairSource {
    v1::PairSource { source: Some(source) }
}

/// The artifact with only the object that a chunk needs.
fn only(artifact: v1::Artifact, object: u32) -> v1::Artifact {
    let objects = artifact.objects.into_iter().skip(object as usize).take(1).collect();
    v1::Artifact { objects, ..artifact }
}

/// The start model's objects that training does not change: neither config nor weights.
pub(super) fn inherited(state: &JobState, phase: &Phase) -> Vec<v1::Object> {
    let start = match gang_task(state, phase).ok().and_then(|task| task.work) {
        Some(TaskWork::Sft(task)) => task.policy,
        Some(TaskWork::TrainReward(task)) => task.start,
        Some(TaskWork::TrainPolicy(task)) => task.policy,
        _ => None,
    };
    let kept = |object: &v1::Object| {
        object.path != "config.json"
            && !object.path.contains(".safetensors")
            && !object.path.ends_with(".bin")
            // An adapter of the start model.
            && !object.path.contains('/')
    };
    start.map(|artifact| artifact.objects.into_iter().filter(kept).collect()).unwrap_or_default()
}

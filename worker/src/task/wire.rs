//! Parses tasks from their wire format.

use foil_common::spec::{Sampling, SpecError};
use foil_proto::v1;
use foil_proto::v1::pair_source::Source;
use foil_proto::v1::task::Work;

use super::{
    Artifact, Checkpoint, ChunkTask, Dataset, EvaluatePolicy, EvaluateReward, GangTask, GangWork, Generate,
    MapWork, Object, PairSource, Phase, RefLogProbs, Rendezvous, RowRange, Score, Sft, TrainPolicy,
    TrainReward,
};

/// A command that cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("task is missing `{0}`")]
    Missing(&'static str),
    #[error("a command for {expected} carries the work of another kind of phase")]
    Work { expected: &'static str },
    #[error("rank 0 listens at port {0}, which does not exist")]
    Port(u32),
    #[error(transparent)]
    Sampling(#[from] SpecError),
}

/// Returns a required field or an error.
fn required<T>(field: Option<T>, name: &'static str) -> Result<T, TaskError> {
    field.ok_or(TaskError::Missing(name))
}

impl From<v1::Object> for Object {
    fn from(object: v1::Object) -> Self {
        let v1::Object { key, size, blake3, path } = object;
        Self { key, size, blake3, path }
    }
}

impl From<Object> for v1::Object {
    fn from(object: Object) -> Self {
        let Object { key, size, blake3, path } = object;
        Self { key, size, blake3, path }
    }
}

fn objects(objects: Vec<v1::Object>) -> Vec<Object> {
    objects.into_iter().map(Object::from).collect()
}

impl From<v1::Artifact> for Artifact {
    fn from(artifact: v1::Artifact) -> Self {
        Self { name: artifact.name, objects: objects(artifact.objects) }
    }
}

fn artifact(field: Option<v1::Artifact>, name: &'static str) -> Result<Artifact, TaskError> {
    required(field, name).map(Artifact::from)
}

impl TryFrom<v1::Dataset> for Dataset {
    type Error = TaskError;

    fn try_from(dataset: v1::Dataset) -> Result<Self, TaskError> {
        let object = required(dataset.object, "object of a data set")?.into();
        Ok(Self { name: dataset.name, object, rows: dataset.rows })
    }
}

fn dataset(field: Option<v1::Dataset>, name: &'static str) -> Result<Dataset, TaskError> {
    required(field, name)?.try_into()
}

fn sampling(field: Option<v1::SamplingSpec>) -> Result<Sampling, TaskError> {
    Ok(Sampling::try_from(&required(field, "sampling")?)?)
}

impl TryFrom<v1::PairSource> for PairSource {
    type Error = TaskError;

    fn try_from(pairs: v1::PairSource) -> Result<Self, TaskError> {
        Ok(match required(pairs.source, "source of pairs")? {
            Source::Pairs(pairs) => Self::Pairs(pairs.try_into()?),
            Source::Golden(pairs) => Self::Golden {
                golden: dataset(pairs.golden, "golden")?,
                completions: artifact(pairs.samples, "samples")?,
            },
            Source::GoldLabeled(pairs) => Self::GoldLabeled {
                prompts: dataset(pairs.prompts, "prompts")?,
                completions: artifact(pairs.samples, "samples")?,
            },
        })
    }
}

impl TryFrom<v1::Generate> for Generate {
    type Error = TaskError;

    fn try_from(work: v1::Generate) -> Result<Self, TaskError> {
        Ok(Self {
            policy: artifact(work.policy, "policy")?,
            prompts: dataset(work.prompts, "prompts")?,
            samples: work.samples,
            sampling: sampling(work.sampling)?,
        })
    }
}

impl TryFrom<v1::Score> for Score {
    type Error = TaskError;

    fn try_from(work: v1::Score) -> Result<Self, TaskError> {
        let completions = artifact(work.samples, "samples")?.objects.into_iter().next();
        Ok(Self {
            reward_model: artifact(work.reward, "reward")?,
            prompts: dataset(work.prompts, "prompts")?,
            completions: required(completions, "samples of the chunk")?,
        })
    }
}

impl TryFrom<v1::RefLogProbs> for RefLogProbs {
    type Error = TaskError;

    fn try_from(work: v1::RefLogProbs) -> Result<Self, TaskError> {
        Ok(Self {
            reference: work.reference.map(Artifact::from),
            old_policy: work.old_policy.map(Artifact::from),
            prompts: dataset(work.prompts, "prompts")?,
            completions: artifact(work.samples, "samples")?,
            scores: artifact(work.scores, "scores")?,
            generated_by: work.generated_by.map(Artifact::from),
        })
    }
}

impl TryFrom<v1::EvaluateReward> for EvaluateReward {
    type Error = TaskError;

    fn try_from(work: v1::EvaluateReward) -> Result<Self, TaskError> {
        Ok(Self {
            reward_model: artifact(work.reward, "reward")?,
            pairs: required(work.pairs, "pairs")?.try_into()?,
            first: work.first.and_then(|first| first.objects.into_iter().next()).map(Object::from),
        })
    }
}

impl TryFrom<v1::EvaluatePolicy> for EvaluatePolicy {
    type Error = TaskError;

    fn try_from(work: v1::EvaluatePolicy) -> Result<Self, TaskError> {
        Ok(Self {
            policy: artifact(work.policy, "policy")?,
            reference: work.reference.map(Artifact::from),
            reward_model: work.reward.map(Artifact::from),
            prompts: dataset(work.prompts, "prompts")?,
            sampling: sampling(work.sampling)?,
            start: work.start.map(Artifact::from),
            previous: work.previous.map(Artifact::from),
        })
    }
}

impl TryFrom<v1::Sft> for Sft {
    type Error = TaskError;

    fn try_from(work: v1::Sft) -> Result<Self, TaskError> {
        Ok(Self {
            policy: artifact(work.policy, "policy")?,
            demonstrations: dataset(work.demonstrations, "demonstrations")?,
        })
    }
}

impl TryFrom<v1::TrainReward> for TrainReward {
    type Error = TaskError;

    fn try_from(work: v1::TrainReward) -> Result<Self, TaskError> {
        Ok(Self {
            start: artifact(work.start, "start")?,
            human: work.human.map(PairSource::try_from).transpose()?,
            golden: work.golden.map(PairSource::try_from).transpose()?,
        })
    }
}

impl TryFrom<v1::TrainPolicy> for TrainPolicy {
    type Error = TaskError;

    fn try_from(work: v1::TrainPolicy) -> Result<Self, TaskError> {
        Ok(Self {
            policy: artifact(work.policy, "policy")?,
            prompts: dataset(work.prompts, "prompts")?,
            completions: artifact(work.samples, "samples")?,
            scores: artifact(work.scores, "scores")?,
            log_probs: work.ref_log_probs.map(Artifact::from),
        })
    }
}

impl TryFrom<Work> for MapWork {
    type Error = TaskError;

    fn try_from(work: Work) -> Result<Self, TaskError> {
        Ok(match work {
            Work::Generate(work) => Self::Generate(work.try_into()?),
            Work::Score(work) => Self::Score(work.try_into()?),
            Work::RefLogProbs(work) => Self::RefLogProbs(work.try_into()?),
            Work::EvaluateReward(work) => Self::EvaluateReward(work.try_into()?),
            Work::EvaluatePolicy(work) => Self::EvaluatePolicy(work.try_into()?),
            Work::Sft(_) | Work::TrainReward(_) | Work::TrainPolicy(_) => {
                return Err(TaskError::Work { expected: "a chunk of a map phase" });
            }
        })
    }
}

impl TryFrom<Work> for GangWork {
    type Error = TaskError;

    fn try_from(work: Work) -> Result<Self, TaskError> {
        Ok(match work {
            Work::Sft(work) => Self::Sft(work.try_into()?),
            Work::TrainReward(work) => Self::TrainReward(work.try_into()?),
            Work::TrainPolicy(work) => Self::TrainPolicy(work.try_into()?),
            Work::Generate(_)
            | Work::Score(_)
            | Work::RefLogProbs(_)
            | Work::EvaluateReward(_)
            | Work::EvaluatePolicy(_) => return Err(TaskError::Work { expected: "a gang phase" }),
        })
    }
}

fn parts(task: Option<v1::Task>) -> Result<(Phase, Work), TaskError> {
    let v1::Task { phase, round, work } = required(task, "task")?;
    Ok((Phase { name: phase, round }, required(work, "work")?))
}

impl TryFrom<v1::RunChunk> for ChunkTask {
    type Error = TaskError;

    fn try_from(command: v1::RunChunk) -> Result<Self, TaskError> {
        let (phase, work) = parts(command.task)?;
        Ok(Self {
            phase,
            work: work.try_into()?,
            lease: command.lease,
            chunk: command.chunk,
            rows: RowRange { first: command.first, count: command.count },
            key: command.key,
            // An invalid one is ignored, as W3C Trace Context specifies.
            trace: command.traceparent.parse().ok(),
        })
    }
}

impl TryFrom<v1::RunGang> for GangTask {
    type Error = TaskError;

    fn try_from(command: v1::RunGang) -> Result<Self, TaskError> {
        let (phase, work) = parts(command.task)?;
        let v1::RunGang { attempt, rank, world, key_prefix, resume, traceparent, .. } = command;
        let trace = traceparent.parse().ok();
        let resume = resume
            .map(|checkpoint| Checkpoint { step: checkpoint.step, shards: objects(checkpoint.objects) });
        Ok(Self { phase, work: work.try_into()?, attempt, rank, world, key_prefix, resume, trace })
    }
}

impl TryFrom<v1::Rendezvous> for Rendezvous {
    type Error = TaskError;

    fn try_from(rendezvous: v1::Rendezvous) -> Result<Self, TaskError> {
        let v1::Rendezvous { phase, attempt, host, port } = rendezvous;
        let port = u16::try_from(port).map_err(|_| TaskError::Port(port))?;
        Ok(Self { phase, attempt, host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> Option<v1::Dataset> {
        Some(v1::Dataset { name: name.into(), object: Some(v1::Object::default()), rows: 3 })
    }

    fn model() -> Option<v1::Artifact> {
        Some(v1::Artifact { objects: vec![v1::Object::default()], ..Default::default() })
    }

    fn chunk(work: Work) -> v1::RunChunk {
        let task = v1::Task { phase: "r01.policy.generate".into(), round: 1, work: Some(work) };
        let key = "k".to_owned();
        v1::RunChunk { task: Some(task), lease: 7, chunk: 4, first: 32, count: 8, key, ..Default::default() }
    }

    fn generate() -> v1::Generate {
        let sampling = Some(v1::SamplingSpec::from(&Sampling::default()));
        v1::Generate { policy: model(), prompts: set("prompts"), samples: 2, sampling }
    }

    #[test]
    fn a_chunk_is_parsed_with_its_work_and_rows() {
        let task = ChunkTask::try_from(chunk(Work::Generate(generate()))).unwrap();
        assert_eq!((task.phase.name.as_str(), task.phase.round), ("r01.policy.generate", 1));
        assert_eq!((task.lease, task.chunk, task.rows), (7, 4, RowRange { first: 32, count: 8 }));
        assert_eq!(task.rows.select((0..36).collect()), [32, 33, 34, 35]);
        let MapWork::Generate(work) = task.work else { panic!("not a generation") };
        assert_eq!((work.samples, work.prompts.name.as_str()), (2, "prompts"));
    }

    #[test]
    fn a_missing_field_is_an_error_that_names_it() {
        let error = |work| ChunkTask::try_from(chunk(Work::Generate(work))).unwrap_err().to_string();
        assert_eq!(error(v1::Generate { policy: None, ..generate() }), "task is missing `policy`");
        assert_eq!(error(v1::Generate { prompts: None, ..generate() }), "task is missing `prompts`");
        assert_eq!(error(v1::Generate { sampling: None, ..generate() }), "task is missing `sampling`");
        let without_object = v1::Dataset { object: None, ..set("prompts").unwrap() };
        let message = error(v1::Generate { prompts: Some(without_object), ..generate() });
        assert_eq!(message, "task is missing `object of a data set`");
        for command in
            [v1::RunGang::default(), v1::RunGang { task: Some(v1::Task::default()), ..Default::default() }]
        {
            assert!(matches!(GangTask::try_from(command), Err(TaskError::Missing("task" | "work"))));
        }
        let pairs = Some(v1::PairSource { source: None });
        let work = v1::TrainReward { start: model(), human: pairs, golden: None };
        assert!(matches!(TrainReward::try_from(work), Err(TaskError::Missing("source of pairs"))));
    }

    #[test]
    fn a_chunk_of_a_gang_phase_and_a_gang_of_a_map_phase_are_errors() {
        let sft = Work::Sft(v1::Sft { policy: model(), demonstrations: set("sft") });
        assert!(matches!(ChunkTask::try_from(chunk(sft)), Err(TaskError::Work { .. })));
        let task = chunk(Work::Generate(generate())).task;
        let gang = v1::RunGang { task, world: 1, ..Default::default() };
        assert!(matches!(GangTask::try_from(gang), Err(TaskError::Work { .. })));
    }

    #[test]
    fn a_port_beyond_16_bits_is_an_error() {
        let rendezvous = |port| Rendezvous::try_from(v1::Rendezvous { port, ..Default::default() });
        assert_eq!(rendezvous(65_535).unwrap().port, 65_535);
        assert!(matches!(rendezvous(65_536), Err(TaskError::Port(65_536))));
    }
}

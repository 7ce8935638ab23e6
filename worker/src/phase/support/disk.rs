//! Disk space for the files that a job keeps in the directories of a machine's ranks.

use foil_common::memory::{Head, ModelShape};
use foil_common::spec::{self, Lora, SaveDtype};

use crate::phase::{PhaseError, TaskContext};
use crate::task::{Artifact, ChunkTask, GangTask, GangWork, MapWork};
use crate::task_io::artifact_cache::KEEP_ROUNDS;

/// Bytes per checkpointed element: the parameter and its two moments, in fp32.
const CHECKPOINTED: u64 = 12;
/// Number of versions of a model on disk at the end of a round: the trained model, the model it started from,
/// and the previous round's model, which is kept.
const KEPT: usize = KEEP_ROUNDS as usize + 2;

/// A model that the job trains.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trained {
    shape: ModelShape,
    /// Size in bytes of the files from which its training starts.
    start: u64,
}

/// Sizes of the job's trained models that are known so far.
#[derive(Debug, Default)]
pub(in crate::phase) struct TrainedModels {
    policy: Option<Trained>,
    reward: Option<Trained>,
}

/// The number of ranks on this machine, and in total.
#[derive(Debug, Clone, Copy)]
struct Ranks {
    here: u64,
    all: u64,
}

/// The maximum total size in bytes of consecutive versions that are kept at the same time.
fn kept(versions: impl Iterator<Item = u64>) -> u64 {
    let versions: Vec<u64> = versions.collect();
    versions.windows(KEPT.min(versions.len())).map(|kept| kept.iter().sum()).max().unwrap_or(0)
}

impl TrainedModels {
    /// Disk space in bytes on a machine whose ranks share models: the kept versions, and the checkpoints that
    /// its ranks write at the same time.
    fn bytes(&self, job: &spec::Job, ranks: Ranks) -> u64 {
        let (policy_step, reward_step) = (&job.policy_step, &job.reward_step);
        let versions = (job.rounds as usize).min(KEPT);
        let policy = self.policy.as_ref().map_or(0, |policy| {
            let parameters = policy.shape.parameters(Head::Language);
            let tuned = job.has_sft().then_some(SaveDtype::Fp32.size() * parameters);
            let trained = vec![policy_step.save_dtype.size() * parameters; versions];
            kept([policy.start].into_iter().chain(tuned).chain(trained))
        });
        let reward = self.reward.as_ref().map_or(0, |reward| {
            let bytes = reward_step.save_dtype.size() * reward.shape.parameters(Head::Reward);
            kept([reward.start].into_iter().chain(vec![bytes; versions]))
        });
        let checkpoint = |model: &Option<Trained>, head, lora: Option<&Lora>| {
            let shape = &model.as_ref()?.shape;
            let all = shape.parameters(head);
            let tuned = lora.map(|lora| shape.adapters(lora.rank.into(), &lora.target_modules));
            Some(CHECKPOINTED * tuned.unwrap_or(all).div_ceil(ranks.all.max(1)) * ranks.here)
        };
        let is_kept = job.resources.checkpoints.steps.is_some() || job.resources.checkpoints.every.is_some();
        let of_policy = checkpoint(&self.policy, Head::Language, policy_step.lora.as_ref());
        let of_reward = checkpoint(&self.reward, Head::Reward, reward_step.lora.as_ref());
        policy + reward + of_policy.max(of_reward).filter(|_| is_kept).unwrap_or(0)
    }
}

impl TaskContext {
    /// Calls [`TaskContext::check_disk`] for a chunk, before its models are downloaded.
    pub(in crate::phase) fn check_disk_for_chunk(&mut self, task: &ChunkTask) -> Result<(), PhaseError> {
        let round = task.phase.round;
        match &task.work {
            MapWork::Generate(work) => self.check_disk(Head::Language, &work.policy, round),
            MapWork::EvaluatePolicy(work) => self.check_disk(Head::Language, &work.policy, round),
            MapWork::Score(_) | MapWork::RefLogProbs(_) | MapWork::EvaluateReward(_) => Ok(()),
        }
    }

    /// Calls [`TaskContext::check_disk`] for a gang phase, before its model is downloaded.
    pub(in crate::phase) fn check_disk_for_gang(&mut self, task: &GangTask) -> Result<(), PhaseError> {
        let head = match &task.work {
            GangWork::Sft(_) | GangWork::TrainPolicy(_) => Head::Language,
            GangWork::TrainReward(_) => Head::Reward,
        };
        self.check_disk(head, task.work.start(), task.phase.round)
    }

    /// Fails if the disk has too little space for the job. Each of the two models counts once its
    /// configuration has been seen in an `artifact` of `round`.
    fn check_disk(&mut self, head: Head, artifact: &Artifact, round: u32) -> Result<(), PhaseError> {
        let known = match head {
            Head::Language => &self.trained_models.policy,
            Head::Reward => &self.trained_models.reward,
        };
        if known.is_some() {
            return Ok(());
        }
        // Loading the model reports a configuration that cannot be read.
        let Some(shape) = self.shape(artifact)? else { return Ok(()) };
        // In later rounds, the start is a trained model. A reward model without its own files starts as the
        // policy.
        let has_files = round <= 1 && (head == Head::Language || self.job.reward.model.is_some());
        let start = artifact.objects.iter().map(|object| object.size).filter(|_| has_files).sum();
        let trained = Some(Trained { shape, start });
        match head {
            Head::Language => self.trained_models.policy = trained,
            Head::Reward => self.trained_models.reward = trained,
        }
        let ranks = Ranks { here: self.cache.ranks(), all: self.job.resources.ranks.into() };
        Ok(self.cache.require(self.trained_models.bytes(&self.job, ranks))?)
    }
}

#[cfg(test)]
mod tests {
    use foil_common::memory::ModelShape;
    use foil_proto::v1;
    use serde_json::json;

    use super::*;

    /// Llama-2-7B.
    fn trained() -> Option<Trained> {
        let config = json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        });
        Some(Trained { shape: ModelShape::from_config(&config).unwrap(), start: 1000 })
    }

    const POLICY: u64 = 6_738_415_616;
    const REWARD: u64 = 6_607_347_712;

    fn job(change: impl FnOnce(&mut v1::JobSpec)) -> spec::Job {
        let mut job = crate::phase::tests::letters_job();
        job.rounds = Some(3);
        change(&mut job);
        job.try_into().unwrap()
    }

    #[test]
    fn a_machine_keeps_three_versions_of_each_model_and_its_ranks_checkpoints() {
        let ranks = Ranks { here: 4, all: 8 };
        let both = TrainedModels { policy: trained(), reward: trained() };
        let letters = job(|_| ());
        assert!(letters.has_sft());
        // Models in fp32, plus half of the checkpoints' 12 bytes per parameter.
        assert_eq!(both.bytes(&letters, ranks), 3 * 4 * (POLICY + REWARD) + 12 * POLICY / 8 * 4);
        let policy = TrainedModels { policy: trained(), reward: None };
        assert_eq!(policy.bytes(&letters, ranks), 3 * 4 * POLICY + 12 * POLICY / 8 * 4);
        let once = job(|job| {
            job.rounds = Some(1);
            job.resources = Some(v1::ResourceSpec { checkpoint_seconds: Some(0), ..Default::default() });
            job.policy_step.as_mut().unwrap().save_dtype = "bf16".to_owned();
        });
        // The start model, the result of SFT, and the round's model.
        assert_eq!(both.bytes(&once, ranks), 1000 + 4 * POLICY + 2 * POLICY + 1000 + 4 * REWARD);
    }
}

//! Checks that training resumed from a checkpoint is bitwise equal to uninterrupted training.

use std::path::{Path, PathBuf};

use foil_common::spec::{Normalization, Sharding};
use foil_common::storage::object::Digest;
use tch::Device;

use super::super::{
    CheckpointShard, Checkpointer, Ended, LoadedCheckpoint, OrderKey, PairRanking, SnapshotMemory,
    StepMetrics, StepRequests, TrainConfig, TrainError, train,
};
use super::{fixture, fixtures, linear, optimizer, pairs};
use crate::collective::Gang;
use crate::collective::testing::in_threads;
use crate::model::{Holding, Precision, RewardModel, ShardPlacement};

/// Writes a file for each shard. Requests checkpoints after the steps `checkpoints`, and a stop after `stop`.
struct Folder<'a> {
    dir: &'a Path,
    rank: usize,
    checkpoints: &'a [u64],
    stop: Option<u64>,
    from: Vec<PathBuf>,
    memory: SnapshotMemory,
}

fn file(dir: &Path, step: u64, rank: usize) -> PathBuf {
    dir.join(format!("{step}-{rank}.safetensors"))
}

impl Checkpointer for Folder<'_> {
    fn load(&mut self) -> Option<LoadedCheckpoint> {
        (!self.from.is_empty()).then(|| LoadedCheckpoint::open(&self.from).unwrap())
    }

    fn requests(&mut self, step: u64) -> StepRequests {
        StepRequests { checkpoint: self.checkpoints.contains(&step), stop: self.stop == Some(step) }
    }

    fn memory(&mut self) -> Result<SnapshotMemory, TrainError> {
        Ok(std::mem::take(&mut self.memory))
    }

    fn save(&mut self, shard: CheckpointShard) -> Result<(), TrainError> {
        let path = file(self.dir, shard.step(), self.rank);
        let (digest, memory) = shard.write(&path)?;
        assert_eq!(digest, Digest::of(&std::fs::read(path).unwrap()));
        self.memory = memory;
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Plan<'a> {
    checkpoints: &'a [u64],
    /// The step after which the last rank requests a stop.
    stop: Option<u64>,
    /// The step and the number of ranks of the checkpoint to resume from.
    from: Option<(u64, usize)>,
}

#[derive(Debug, PartialEq)]
struct Run {
    ended: Ended,
    losses: Vec<f64>,
    blake3: String,
}

fn run_rank(gang: &Gang, sharding: Sharding, dir: &Path, plan: Plan<'_>) -> Run {
    let rows = pairs(&fixture("loops.json")["pairs"]);
    let (human, golden) = rows.split_at(4);
    let holding = match sharding {
        Sharding::Fsdp => Holding::Shards(ShardPlacement {
            rank: gang.rank(),
            world: gang.world(),
            precision: Precision::Fp32,
        }),
        Sharding::Ddp | Sharding::Zero1 => Holding::Masters,
    };
    let path = fixtures().join("model/llama-tied");
    let model = RewardModel::from_language_model_held(&path, 4, Device::Cpu, holding).unwrap();
    let objective = PairRanking::new(&model, human, golden, Precision::Fp32, Normalization::Global);
    let (optimizer, schedule) = (optimizer(Some(0.5), 30), linear(2));
    let config = TrainConfig {
        order: OrderKey { seed: 5, round: 1 },
        epochs: 5,
        batch_size: 4,
        peak_learning_rate: 1e-3,
        optimizer,
        schedule,
        sharding,
    };
    let from = plan
        .from
        .map_or_else(Vec::new, |(step, world)| (0..world).map(|rank| file(dir, step, rank)).collect());
    let stop = plan.stop.filter(|_| gang.rank() + 1 == gang.world());
    let mut checkpointer = Folder {
        dir,
        rank: gang.rank(),
        checkpoints: plan.checkpoints,
        stop,
        from,
        memory: SnapshotMemory::default(),
    };
    let mut losses = Vec::new();
    let mut report = |metrics: &StepMetrics| losses.push(metrics.loss);
    let ended = train(&objective, model.parameters(), &config, gang, &mut checkpointer, &mut report).unwrap();
    let ended = match ended {
        // Times differ between runs.
        Ended::Done(summary) => Ended::Done(super::super::Summary { seconds: 0.0, ..summary }),
        stopped @ Ended::Stopped { .. } => stopped,
    };
    Run { ended, losses, blake3: model.parameters().blake3().unwrap() }
}

/// Runs a gang of threads and returns the outcome of every rank.
fn run_all(world: usize, sharding: Sharding, dir: &Path, plan: Plan<'_>) -> Vec<Run> {
    in_threads(world, |gang| run_rank(gang, sharding, dir, plan))
}

#[test]
fn resumed_training_is_bitwise_equal_to_uninterrupted_training() {
    for (world, sharding) in [
        (1, Sharding::Ddp),
        (2, Sharding::Ddp),
        (3, Sharding::Ddp),
        (4, Sharding::Ddp),
        (2, Sharding::Zero1),
        (3, Sharding::Zero1),
        (4, Sharding::Zero1),
        (2, Sharding::Fsdp),
        (3, Sharding::Fsdp),
        (4, Sharding::Fsdp),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let whole = run_all(world, sharding, dir.path(), Plan::default());
        let Ended::Done(summary) = &whole[0].ended else { panic!("{:?}", whole[0]) };
        assert!(summary.steps >= 8);
        // Saving checkpoints changes nothing, and a stop request from one rank stops all.
        let stopping = Plan { checkpoints: &[2], stop: Some(5), ..Plan::default() };
        for rank in run_all(world, sharding, dir.path(), stopping) {
            assert_eq!(rank.ended, Ended::Stopped { step: 5 });
            assert_eq!(rank.losses, whole[0].losses[..5]);
        }
        for step in [2, 5] {
            let resumed = Plan { from: Some((step, world)), ..Plan::default() };
            for (rank, uninterrupted) in run_all(world, sharding, dir.path(), resumed).iter().zip(&whole) {
                assert_eq!(rank, uninterrupted, "{world} ranks, {sharding:?}, after step {step}");
            }
        }
    }
}

#[test]
fn another_number_of_ranks_resumes_with_the_same_losses() {
    for sharding in [Sharding::Ddp, Sharding::Zero1, Sharding::Fsdp] {
        let dir = tempfile::tempdir().unwrap();
        let whole = run_all(3, sharding, dir.path(), Plan { checkpoints: &[4], ..Plan::default() });
        let resumed = run_all(2, sharding, dir.path(), Plan { from: Some((4, 3)), ..Plan::default() });
        for (found, expected) in resumed[0].losses.iter().zip(&whole[0].losses) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} not {expected}");
        }
    }
}

#[test]
fn shards_of_different_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    run_all(2, Sharding::Ddp, dir.path(), Plan { checkpoints: &[1, 2], ..Plan::default() });
    let error = |paths: &[PathBuf]| LoadedCheckpoint::open(paths).unwrap_err().to_string();
    let mixed = error(&[file(dir.path(), 1, 0), file(dir.path(), 2, 1)]);
    assert!(mixed.contains("rank 1 of 2 after step 2, expected rank 1 of 2 after step 1"), "{mixed}");
    let single = error(&[file(dir.path(), 1, 0)]);
    assert!(single.contains("rank 0 of 2"), "{single}");
    let bytes = std::fs::read(file(dir.path(), 1, 1)).unwrap();
    std::fs::write(file(dir.path(), 1, 1), &bytes[..bytes.len() - 8]).unwrap();
    assert!(error(&[file(dir.path(), 1, 0), file(dir.path(), 1, 1)]).contains("cut short"));
}

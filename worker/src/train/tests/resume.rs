//! Training that was stopped and goes on elsewhere has the bits of training that never stopped.

use std::path::{Path, PathBuf};

use foil_common::spec::{Normalization, Sharding};
use tch::Device;

use super::super::{
    Ended, Keeper, OrderKey, PairRanking, Saved, Snapshot, StepFigures, TrainConfig, TrainError, Wishes,
    train,
};
use super::{fixture, fixtures, linear, optimizer, pairs};
use crate::collective::Gang;
use crate::collective::testing::in_threads;
use crate::model::{LanguageModel, Precision, RewardModel};

/// Keeps every snapshot as a file of its rank, and asks for those after `snapshots` and to stop after `stop`.
struct Folder<'a> {
    dir: &'a Path,
    rank: usize,
    snapshots: &'a [u64],
    stop: Option<u64>,
    from: Vec<PathBuf>,
}

fn file(dir: &Path, step: u64, rank: usize) -> PathBuf {
    dir.join(format!("{step}-{rank}.safetensors"))
}

impl Keeper for Folder<'_> {
    fn saved(&mut self) -> Option<Saved> {
        (!self.from.is_empty()).then(|| Saved::open(&self.from).unwrap())
    }

    fn wishes(&mut self, step: u64) -> Wishes {
        Wishes { snapshot: self.snapshots.contains(&step), stop: self.stop == Some(step) }
    }

    fn keep(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        snapshot.write(&file(self.dir, snapshot.step(), self.rank))?;
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Plan<'a> {
    snapshots: &'a [u64],
    /// The last rank's wish.
    stop: Option<u64>,
    /// Goes on after this step of so many ranks.
    from: Option<(u64, usize)>,
}

#[derive(Debug, PartialEq)]
struct Played {
    ended: Ended,
    losses: Vec<f64>,
    blake3: String,
}

fn play(gang: &Gang, sharding: Sharding, dir: &Path, plan: Plan<'_>) -> Played {
    let rows = pairs(&fixture("loops.json")["pairs"]);
    let (human, golden) = rows.split_at(4);
    let model = LanguageModel::random(&fixtures().join("model/llama-tied"), 3, Device::Cpu).unwrap();
    let model = RewardModel::with_fresh_head(model, 4);
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
    let mut keeper = Folder { dir, rank: gang.rank(), snapshots: plan.snapshots, stop, from };
    let mut losses = Vec::new();
    let mut report = |figures: &StepFigures| losses.push(figures.loss);
    let ended = train(&objective, model.parameters(), &config, gang, &mut keeper, &mut report).unwrap();
    let ended = match ended {
        // Steps took other times.
        Ended::Done(summary) => Ended::Done(super::super::Summary { seconds: 0.0, ..summary }),
        stopped @ Ended::Stopped { .. } => stopped,
    };
    Played { ended, losses, blake3: model.parameters().blake3() }
}

/// Every rank's outcome of a gang of threads.
fn play_all(world: usize, sharding: Sharding, dir: &Path, plan: Plan<'_>) -> Vec<Played> {
    in_threads(world, |gang| play(gang, sharding, dir, plan))
}

#[test]
fn what_goes_on_has_the_bits_of_what_never_stopped() {
    for (world, sharding) in [
        (1, Sharding::Ddp),
        (2, Sharding::Ddp),
        (3, Sharding::Ddp),
        (4, Sharding::Ddp),
        (2, Sharding::Zero1),
        (3, Sharding::Zero1),
        (4, Sharding::Zero1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let whole = play_all(world, sharding, dir.path(), Plan::default());
        let Ended::Done(summary) = &whole[0].ended else { panic!("{:?}", whole[0]) };
        assert!(summary.steps >= 8);
        // Snapshots change nothing, and every rank hears that one rank is asked to stop.
        let stopping = Plan { snapshots: &[2], stop: Some(5), ..Plan::default() };
        for rank in play_all(world, sharding, dir.path(), stopping) {
            assert_eq!(rank.ended, Ended::Stopped { step: 5 });
            assert_eq!(rank.losses, whole[0].losses[..5]);
        }
        for step in [2, 5] {
            let resumed = Plan { from: Some((step, world)), ..Plan::default() };
            for (rank, undisturbed) in play_all(world, sharding, dir.path(), resumed).iter().zip(&whole) {
                assert_eq!(rank, undisturbed, "{world} ranks, {sharding:?}, after step {step}");
            }
        }
    }
}

#[test]
fn another_number_of_ranks_goes_on_with_the_same_numbers() {
    for sharding in [Sharding::Ddp, Sharding::Zero1] {
        let dir = tempfile::tempdir().unwrap();
        let whole = play_all(3, sharding, dir.path(), Plan { snapshots: &[4], ..Plan::default() });
        let resumed = play_all(2, sharding, dir.path(), Plan { from: Some((4, 3)), ..Plan::default() });
        for (found, expected) in resumed[0].losses.iter().zip(&whole[0].losses) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} not {expected}");
        }
    }
}

#[test]
fn shares_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    play_all(2, Sharding::Ddp, dir.path(), Plan { snapshots: &[1, 2], ..Plan::default() });
    let error = |paths: &[PathBuf]| Saved::open(paths).unwrap_err().to_string();
    let mixed = error(&[file(dir.path(), 1, 0), file(dir.path(), 2, 1)]);
    assert!(mixed.contains("rank 1 of 2 after step 2, expected rank 1 of 2 after step 1"), "{mixed}");
    let alone = error(&[file(dir.path(), 1, 0)]);
    assert!(alone.contains("rank 0 of 2"), "{alone}");
    let bytes = std::fs::read(file(dir.path(), 1, 1)).unwrap();
    std::fs::write(file(dir.path(), 1, 1), &bytes[..bytes.len() - 8]).unwrap();
    assert!(error(&[file(dir.path(), 1, 0), file(dir.path(), 1, 1)]).contains("cut short"));
}

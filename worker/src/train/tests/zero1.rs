//! Training with a sharded optimizer is equal to training with a whole one.

use std::path::Path;
use std::time::Instant;

use foil_torch::CpuMemory;
use tch::{Device, Kind, Tensor};

use super::super::checkpoint::{CheckpointMetadata, MEAN};
use super::super::snapshot::{Snapshot, SnapshotMemory};
use super::super::zero1::Zero1;
use super::super::{CheckpointShard, LoadedCheckpoint};
use super::fsdp::{How, assert_same_training};
use super::optimizer;
use crate::collective::testing::in_threads;
use crate::model::{LanguageModel, Parameters};

#[test]
fn a_sharded_optimizer_takes_the_same_steps_as_a_whole_one() {
    for (world, reward, checkpointing, batch) in
        [(2, false, false, 6), (3, true, false, 6), (4, false, true, 6), (3, false, false, 2)]
    {
        // Ranks have different numbers of micro-batches, and with a batch of 2 one of three ranks has none.
        let how = How { zero1: true, reward, checkpointing, budget: 25, batch, ..How::default() };
        assert_same_training(world, how, 1e-4);
    }
}

#[test]
fn a_sharded_optimizer_of_adapters_takes_the_same_steps() {
    for (world, reward, batch) in [(2, false, 6), (3, true, 2)] {
        let how = How { zero1: true, reward, lora: true, budget: 25, batch, ..How::default() };
        assert_same_training(world, how, 1e-4);
    }
}

/// Masters are fp32, but may round to a different bf16 number where sums round differently.
#[test]
fn a_sharded_optimizer_in_bf16_comes_near_a_whole_one() {
    for (reward, checkpointing, lora) in [(false, true, false), (true, false, false), (true, true, true)] {
        let how = How { zero1: true, reward, bf16: true, checkpointing, lora, budget: 25, batch: 6 };
        assert_same_training(2, how, 5e-3);
    }
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

#[test]
fn each_rank_has_the_moments_of_its_shard() {
    // Both are in the first layer, the second one from element 64 on: shards of 64 elements.
    let named = || {
        let named = [("model.layers.0.a", vec![7, 1]), ("model.layers.0.b", vec![40, 1])];
        Parameters::from_named(named.map(|(name, shape)| (name.to_owned(), zeros(&shape))).into())
    };
    let moments = in_threads(2, |gang| {
        let zero1 = Zero1::new(&named(), &optimizer(None, 1), gang).unwrap();
        let moments = zero1.optimizer().moments();
        moments.map(|(name, tensor)| (name, tensor.numel())).collect::<Vec<_>>()
    });
    let part = |rank: usize, elements: usize| {
        ["exp_avg", "exp_avg_sq"].map(|moment| (format!("{moment}.layers.0.0.part{rank}"), elements))
    };
    assert_eq!(moments, [part(0, 64), part(1, 40)]);
}

/// Checks that parameters are moved, not copied.
#[test]
fn gradients_and_a_shard_of_the_moments_are_all_that_it_adds() {
    let added = in_threads(2, |gang| {
        let memory = CpuMemory::count().unwrap();
        let model =
            LanguageModel::random(&super::fixtures().join("model/llama-tied"), 3, Device::Cpu).unwrap();
        model.parameters().set_requires_grad(true);
        let before = memory.current();
        let zero1 = Zero1::new(model.parameters(), &optimizer(None, 1), gang).unwrap();
        let added = memory.current() - before;
        drop(zero1);
        (added, model.parameters().count(), model.parameters().tensors().len())
    });
    for (added, elements, tensors) in added {
        // Gradients and half of two moments. Each parameter is padded to 64 elements, and all its tensors
        // count.
        let (least, padding) = (8 * elements as u64, 12 * 64 * tensors as u64);
        assert!((least..least + padding).contains(&added), "{added} bytes for {elements} elements");
    }
}

fn saved_before_units(path: &Path) -> LoadedCheckpoint {
    let metadata = CheckpointMetadata { step: 1, steps: 4, updates: 1, world: 1, ..Default::default() };
    let mean = zeros(&[5]).detach();
    let state = vec![(format!("{MEAN}bucket0.part0"), &mean)];
    let snapshot = Snapshot::of(state, Device::Cpu, SnapshotMemory::default()).unwrap();
    CheckpointShard { begun: Instant::now(), metadata, snapshot }.write(path).unwrap();
    LoadedCheckpoint::open(&[path.to_owned()]).unwrap()
}

#[test]
fn a_checkpoint_of_an_earlier_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let errors = in_threads(2, |gang| {
        let saved = saved_before_units(&dir.path().join(format!("{}.safetensors", gang.rank())));
        let parameters = Parameters::from_named(vec![("model.norm.weight".to_owned(), zeros(&[80]))]);
        let mut zero1 = Zero1::new(&parameters, &optimizer(None, 1), gang).unwrap();
        zero1.restore(&saved).unwrap_err().to_string()
    });
    for error in errors {
        assert!(error.contains("exp_avg.norms.0.part0"), "{error}");
        assert!(error.contains("another version of foil-worker saved it"), "{error}");
    }
}

//! Memory savings end to end on the letters job: activation checkpointing, adapters and shards.

use std::path::Path;

use foil_tests::{Outcome, Run};
use foil_worker::model::{Adapter, DecoderConfig, HeadKind, LanguageModel, RewardModel};
use tch::{Device, Tensor};

/// The maximum relative distance of two models' parameters.
fn max_distance<'a>(found: impl Iterator<Item = &'a Tensor>, expected: &[Tensor]) -> f64 {
    let distance = |(a, b): (&Tensor, &Tensor)| ((a - b).norm() / b.norm()).double_value(&[]);
    found.zip(expected).map(distance).fold(0.0, f64::max)
}

fn adapter(model: &Path, head: HeadKind) -> Adapter {
    let config = DecoderConfig::load(model).expect("a model's configuration");
    Adapter::load(&model.join("adapter"), &config, head, Device::Cpu).expect("an adapter beside the model")
}

#[test]
fn activation_checkpointing_changes_no_bits() {
    let job = || Run::letters().ranks(2);
    let kept = job().finish().weights();
    assert!(job().set("resources.activation_checkpointing=true").finish().weights() == kept);
}

/// Only the order of sums over ranks differs, so nearly the same completions are sampled and selected.
#[test]
fn models_in_shards_end_where_whole_ones_do() {
    let job = || Run::letters().ranks(2).set_all(&["rounds=1", "policy_step.method=dpo"]);
    // Keeps the runs alive, since their directories are removed on drop.
    let whole_run = job();
    let sharded_run = job().set_all(&["resources.sharding=fsdp", "resources.activation_checkpointing=true"]);
    let (whole, sharded) = (whole_run.finish(), sharded_run.finish());
    let policy = |outcome: &Outcome| LanguageModel::load(&outcome.artifact("policy"), Device::Cpu).unwrap();
    let reward = |outcome: &Outcome| RewardModel::load(&outcome.artifact("reward"), Device::Cpu).unwrap();
    let distances = [
        max_distance(policy(&sharded).parameters().tensors().iter(), policy(&whole).parameters().tensors()),
        max_distance(reward(&sharded).parameters().tensors().iter(), reward(&whole).parameters().tensors()),
    ];
    assert!(distances.iter().all(|distance| *distance < 1e-2), "{distances:?}");
}

#[test]
fn adapters_are_saved_with_their_merged_models() {
    let run = Run::letters().ranks(2).set_all(&[
        "rounds=2",
        "policy_step.lora={rank: 4, target_modules: [q_proj, v_proj]}",
        "policy_step.learning_rate=1e-2",
        "reward_step.lora={rank: 8}",
        "reward_step.learning_rate=1e-3",
        "resources.sharding=zero1",
    ]);
    let outcome = run.finish();
    assert!(outcome.last().estimate("policy", "kl").value > 0.0, "{}", outcome.json);
    assert!(outcome.last().estimate("reward", "fresh_accuracy").value > 0.5, "{}", outcome.json);
    let rounds = run.out().join("rounds");

    // The policy and its adapter continue from round to round, so there is one adapter of the start policy.
    let end = LanguageModel::load(&outcome.artifact("policy"), Device::Cpu).unwrap();
    let mut start = LanguageModel::load(&rounds.join("policy@0"), Device::Cpu).unwrap();
    let moved = max_distance(start.parameters().tensors().iter(), end.parameters().tensors());
    assert!(moved > 1e-3, "{moved}");
    start.set_adapter(adapter(&outcome.artifact("policy"), HeadKind::LanguageModel));
    start.merge().unwrap().unwrap();
    assert!(max_distance(start.parameters().tensors().iter(), end.parameters().tensors()) < 1e-5);

    // The reward model of every round starts from the same base.
    let judge = RewardModel::load(&outcome.artifact("reward"), Device::Cpu).unwrap();
    let base = LanguageModel::load(&rounds.join("policy@0"), Device::Cpu).unwrap();
    let mut base = RewardModel::with_fresh_head(base, 0);
    base.set_adapter(adapter(&outcome.artifact("reward"), HeadKind::Reward));
    base.merge().unwrap().unwrap();
    assert!(max_distance(base.parameters().tensors().iter(), judge.parameters().tensors()) < 1e-5);
}

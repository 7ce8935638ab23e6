//! Training with shards is equal to training with whole parameters.

use std::path::Path;

use foil_common::spec::{Lora, LoraTarget, Normalization, Sharding};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::super::{
    Comparison, Demonstration, Demonstrations, Ended, MicroBatchLoss, NoCheckpoints, Objective, OrderKey,
    PairRanking, RowShape, StepMetrics, TrainConfig, TrainError, train,
};
use super::{linear, optimizer};
use crate::collective::Gang;
use crate::collective::testing::in_threads;
use crate::model::{Holding, LanguageModel, Parameters, Precision, RewardModel, SaveDtype, ShardPlacement};

const VOCABULARY: u32 = 37;

/// A model of a random shape on disk, and rows for it.
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) dir: tempfile::TempDir,
    pub(super) demonstrations: Vec<Demonstration>,
    pub(super) pairs: Vec<Comparison>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct How {
    /// Whether to hold whole parameters with a sharded optimizer rather than shards.
    pub(super) zero1: bool,
    pub(super) reward: bool,
    pub(super) bf16: bool,
    pub(super) checkpointing: bool,
    pub(super) lora: bool,
    /// Maximum number of tokens of a micro-batch.
    pub(super) budget: usize,
    pub(super) batch: usize,
}

impl How {
    pub(super) fn precision(self) -> Precision {
        if self.bf16 { Precision::Bf16 } else { Precision::Fp32 }
    }
}

struct Outcome {
    losses: Vec<f64>,
    norms: Vec<f64>,
    blake3: String,
    /// The bytes of the saved model.
    saved: Vec<u8>,
    parameters: Tensor,
}

/// Shapes that no number of ranks divides, with biases, head norms, and tied embeddings or a separate head.
fn random_config(random: &mut ChaCha8Rng) -> Value {
    let family = ["llama", "qwen2", "qwen3"][random.random_range(0..3)];
    json!({
        "model_type": family, "hidden_size": 4 * random.random_range(4..7), "num_attention_heads": 2,
        "num_key_value_heads": random.random_range(1..3), "head_dim": 8,
        "intermediate_size": random.random_range(17..40), "num_hidden_layers": random.random_range(1..4),
        "vocab_size": VOCABULARY, "max_position_embeddings": 64, "tie_word_embeddings": random.random::<bool>(),
        "initializer_range": 0.2, "sliding_window": null,
    })
}

pub(super) fn case() -> Case {
    let seed = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut config = random_config(&mut random);
    if config["model_type"] == "qwen2" {
        // Its heads are as wide as the hidden state.
        config["head_dim"] = json!(config["hidden_size"].as_u64().unwrap() / 2);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = crate::model::DecoderConfig::from_hf(&config).unwrap();
    LanguageModel::from_config(&config, seed, Device::Cpu).save(dir.path(), SaveDtype::Fp32).unwrap();
    let mut tokens = |least: usize| -> Vec<u32> {
        (0..random.random_range(least..14)).map(|_| random.random_range(0..VOCABULARY)).collect()
    };
    let demonstrations = (0..9).map(|id| {
        let (prompt, response) = (tokens(1), tokens(2));
        Demonstration { id, ids: [prompt.as_slice(), &response].concat(), response_start: prompt.len() }
    });
    let demonstrations = demonstrations.collect();
    let pairs = (0..9).map(|id| {
        let prompt = tokens(1);
        let mut answer = || [prompt.as_slice(), &tokens(1)].concat();
        Comparison { id, chosen: answer(), rejected: vec![answer(), answer()], weight: 0.7, margin: 0.0 }
    });
    Case { seed, demonstrations, pairs: pairs.collect(), dir }
}

/// Whole for a gang of one and with ZeRO-1; in other cases sharded.
pub(super) fn holding(gang: &Gang, how: How) -> Holding {
    match gang.world() {
        world if world > 1 && !how.zero1 => {
            Holding::Shards(ShardPlacement { rank: gang.rank(), world, precision: how.precision() })
        }
        _ => Holding::Masters,
    }
}

fn lora() -> Lora {
    Lora { rank: 3, alpha: 6.0, target_modules: vec![LoraTarget::QProj, LoraTarget::DownProj] }
}

fn run(gang: &Gang, case: &Case, how: How) -> Outcome {
    let (path, precision) = (case.dir.path(), how.precision());
    let holding = holding(gang, how);
    let saved = tempfile::tempdir().unwrap();
    let (steps, blake3) = if how.reward {
        let model = RewardModel::from_language_model_held(path, 4, Device::Cpu, holding).unwrap();
        let mut model = model.with_checkpointing(how.checkpointing);
        if how.lora {
            model.add_lora(&lora(), (case.seed, 1)).unwrap();
        }
        let (human, golden) = case.pairs.split_at(4);
        let objective = PairRanking::new(&model, human, golden, precision, Normalization::Global);
        let steps = train_all(gang, how, &objective, model.trainable());
        let adapter = model.merge().unwrap();
        assert_eq!(adapter.is_some(), how.lora);
        model.save(saved.path(), SaveDtype::Fp32, 36).unwrap();
        (steps, model.parameters().blake3().unwrap())
    } else {
        let model = LanguageModel::load_held(path, Device::Cpu, holding).unwrap();
        let mut model = model.with_checkpointing(how.checkpointing);
        if how.lora {
            model.add_lora(&lora(), (case.seed, 1)).unwrap();
        }
        let objective = Demonstrations::new(&model, &case.demonstrations, precision);
        let steps = train_all(gang, how, &objective, model.trainable());
        model.merge().unwrap();
        model.save(saved.path(), SaveDtype::Fp32).unwrap();
        (steps, model.parameters().blake3().unwrap())
    };
    outcome(&steps, blake3, saved.path(), how.reward)
}

pub(super) fn train_all(
    gang: &Gang,
    how: How,
    objective: &dyn Objective,
    parameters: &Parameters,
) -> Vec<StepMetrics> {
    let config = config(how);
    let mut steps = Vec::new();
    let mut report = |metrics: &StepMetrics| steps.push(metrics.clone());
    let ended = train(objective, parameters, &config, gang, &mut NoCheckpoints, &mut report).unwrap();
    assert!(matches!(ended, Ended::Done(_)), "{ended:?}");
    parameters.set_requires_grad(false);
    steps
}

fn config(how: How) -> TrainConfig {
    TrainConfig {
        order: OrderKey { seed: 5, round: 1 },
        epochs: 2,
        batch_size: how.batch,
        peak_learning_rate: 1e-3,
        optimizer: optimizer(Some(0.5), how.budget),
        schedule: linear(1),
        sharding: if how.zero1 { Sharding::Zero1 } else { Sharding::Fsdp },
    }
}

fn outcome(steps: &[StepMetrics], blake3: String, saved: &Path, reward: bool) -> Outcome {
    let flat = |parameters: &Parameters| {
        let flat: Vec<Tensor> = parameters.tensors().iter().map(|tensor| tensor.reshape([-1])).collect();
        Tensor::cat(&flat, 0)
    };
    let parameters = match reward {
        true => flat(RewardModel::load(saved, Device::Cpu).unwrap().parameters()),
        false => flat(LanguageModel::load(saved, Device::Cpu).unwrap().parameters()),
    };
    Outcome {
        losses: steps.iter().map(|step| step.loss).collect(),
        norms: steps.iter().map(|step| step.grad_norm).collect(),
        blake3,
        saved: std::fs::read(saved.join("model.safetensors")).unwrap(),
        parameters,
    }
}

/// The largest of |a − b| / |b|.
fn furthest(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found / expected - 1.0).abs()).fold(0.0, f64::max)
}

pub(super) fn assert_same_training(world: usize, how: How, bound: f64) {
    let case = case();
    let what = format!("{how:?} on {world} ranks, seed {}", case.seed);
    let whole = run(&Gang::single(), &case, how);
    let ranks = in_threads(world, |gang| run(gang, &case, how));
    for rank in &ranks {
        assert!(
            furthest(&rank.losses, &whole.losses) < bound,
            "{what}: {:?} {:?}",
            rank.losses,
            whole.losses
        );
        assert!(
            furthest(&rank.norms, &whole.norms) < 10.0 * bound,
            "{what}: {:?} {:?}",
            rank.norms,
            whole.norms
        );
        let distance = (&rank.parameters - &whole.parameters).norm() / whole.parameters.norm();
        assert!(distance.double_value(&[]) < bound, "{what}: {distance}");
        assert_eq!(rank.blake3, ranks[0].blake3, "{what}");
        assert!(rank.saved == ranks[0].saved, "{what}: ranks save other bytes");
    }
}

#[test]
fn shards_take_the_same_steps_as_whole_parameters() {
    for (world, reward, checkpointing, batch) in [
        (2, false, false, 6),
        (3, true, false, 6),
        (2, true, true, 6),
        (4, false, true, 6),
        (3, false, false, 2),
    ] {
        // Ranks have different numbers of micro-batches, and with a batch of 2 one of three ranks has none.
        let how = How { reward, checkpointing, budget: 25, batch, ..How::default() };
        assert_same_training(world, how, 1e-4);
    }
}

#[test]
fn adapters_of_models_in_shards_take_the_same_steps() {
    for (world, reward, checkpointing) in [(2, false, false), (3, true, true)] {
        let how = How { reward, checkpointing, lora: true, budget: 25, batch: 6, ..How::default() };
        assert_same_training(world, how, 1e-4);
    }
}

/// Unlike with whole masters, embeddings, a head and their gradients are rounded too.
#[test]
fn shards_in_bf16_come_near_whole_parameters() {
    for (world, reward, checkpointing, lora) in
        [(2, false, true, false), (3, true, false, false), (2, true, false, true)]
    {
        let how = How { reward, bf16: true, checkpointing, lora, budget: 25, batch: 6, ..How::default() };
        assert_same_training(world, how, 2e-2);
    }
}

#[test]
fn checkpointing_in_shards_changes_no_bits() {
    let case = case();
    for reward in [false, true] {
        let of = |checkpointing| {
            let how = How { reward, checkpointing, bf16: true, budget: 25, batch: 6, ..How::default() };
            in_threads(2, |gang| run(gang, &case, how).blake3)
        };
        assert_eq!(of(true), of(false), "seed {}", case.seed);
    }
}

/// An objective for which one rank can only take micro-batches of `capacity` tokens.
struct LimitedMemory<'a> {
    inner: Demonstrations<'a>,
    capacity: usize,
}

impl Objective for LimitedMemory<'_> {
    fn sets(&self) -> Vec<usize> {
        self.inner.sets()
    }

    fn shape(&self, row: usize) -> RowShape {
        self.inner.shape(row)
    }

    fn row_name(&self, row: usize) -> String {
        self.inner.row_name(row)
    }

    fn loss(&self, rows: &[usize]) -> Result<MicroBatchLoss, TrainError> {
        let loss = self.inner.loss(rows)?;
        let tokens: usize = rows.iter().map(|&row| self.shape(row).cost).sum();
        if tokens > self.capacity {
            let message =
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB";
            return Err(TrainError::Checkpoint(message.to_owned()));
        }
        Ok(loss)
    }
}

/// Checks that other ranks do not wait for a rank whose rehearsal fails.
#[test]
fn a_rank_that_runs_out_of_memory_makes_all_micro_batches_smaller() {
    let case = case();
    let how = How { budget: 1000, batch: 9, ..How::default() };
    let losses = in_threads(2, |gang| {
        let path = case.dir.path();
        let model = LanguageModel::load_held(path, Device::Cpu, holding(gang, how)).unwrap();
        let capacity = [1000, 40][gang.rank()];
        let inner = Demonstrations::new(&model, &case.demonstrations, Precision::Fp32);
        let objective = LimitedMemory { inner, capacity };
        let steps = train_all(gang, how, &objective, model.trainable());
        steps.iter().map(|step| step.loss).collect::<Vec<f64>>()
    });
    let whole = run(&Gang::single(), &case, how).losses;
    for rank in losses {
        assert!(furthest(&rank, &whole) < 1e-4, "seed {}: {rank:?} {whole:?}", case.seed);
    }
}

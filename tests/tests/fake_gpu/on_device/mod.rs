//! Operations of a process on the stand-in device, each between two marks.

use std::io::Write;
use std::path::Path;

use foil_common::memory::{self, Batch, Compute, ModelShape, Training, training};
use foil_common::spec::{self, Normalization, Sampling};
use foil_torch::FileReader;
use foil_torch::autograd::backward;
use foil_worker::generate::{GenerateRequest, GenerationConfig, NoiseKey, generate};
use foil_worker::model::{DecoderConfig, Inference, LanguageModel, Precision, RewardModel, SaveDtype};
use foil_worker::objective::metrics::MetricSums;
use foil_worker::objective::policy::{GroupLoss, LossOutput};
use foil_worker::train::{
    Comparison, CompletionGroup, Demonstration, Demonstrations, MicroBatchLoss, Objective, PairRanking,
    PolicyGroups,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const GPU: Device = Device::Cuda(0);
/// Numbers of layers of the compared models. Their difference is the cost of the additional layers.
pub(super) const LAYERS: [usize; 2] = [2, 4];
/// Numbers of tokens of the compared generations.
pub(super) const DECODED: [usize; 2] = [4, 12];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    /// The loss of a micro-batch of demonstrations in bf16.
    Forward,
    /// Its gradients.
    Backward,
    /// A micro-batch of completions that share prompts.
    SharedForward,
    Fp32Forward,
    /// A micro-batch of preference pairs.
    Preferences,
    /// Generation of few tokens and of more.
    ShortDecode,
    Decode,
    /// Generation with completions that end at any step, and more of them than slots.
    MixedDecode,
    Fp32MixedDecode,
    /// Loss and gradients of a full micro-batch in bf16.
    Step,
    CheckpointedStep,
    Fp32Step,
}

impl Scenario {
    /// The marks around it: copies to the host whose sizes no other copy has.
    pub(super) fn marks(self, layers: usize) -> (usize, usize) {
        let first = 100_001 + 200 * self as usize + 20 * layers;
        (first, first + 1)
    }

    fn run<T>(self, layers: usize, work: impl FnOnce() -> T) -> T {
        let (before, after) = self.marks(layers);
        mark(before);
        let result = work();
        mark(after);
        result
    }
}

fn mark(bytes: usize) {
    drop(Tensor::zeros([bytes as i64], (Kind::Uint8, GPU)).to_device(Device::Cpu));
}

fn config(layers: usize, hidden: usize) -> DecoderConfig {
    DecoderConfig::from_hf(&json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "head_dim": 16, "num_attention_heads": hidden / 16, "num_key_value_heads": 2, "vocab_size": 101,
        "max_position_embeddings": 256, "tie_word_embeddings": false,
    }))
    .unwrap()
}

fn model(layers: usize) -> LanguageModel {
    LanguageModel::from_config(&config(layers, 64), 3, GPU)
}

/// Writes a model with several buckets of gradients.
pub(super) fn save_model(dir: &Path) {
    LanguageModel::from_config(&config(6, 256), 3, Device::Cpu).save(dir, SaveDtype::Fp32).unwrap();
}

fn sequence(number: u32, length: u32) -> Vec<u32> {
    (0..length).map(|token| (number * 31 + token * 7) % 101).collect()
}

/// The loss of all rows, computed after a first one that fills tables and caches.
fn second_loss(scenario: Scenario, layers: usize, objective: &dyn Objective) -> MicroBatchLoss {
    let rows: Vec<usize> = (0..objective.sets().iter().sum()).collect();
    drop(objective.loss(&rows).unwrap());
    scenario.run(layers, || objective.loss(&rows).unwrap())
}

fn demonstrations(layers: usize) {
    let model = model(layers);
    model.parameters().set_requires_grad(true);
    let rows: Vec<_> =
        (0..6).map(|id| Demonstration { id, ids: sequence(id as u32, 20), response_start: 8 }).collect();
    let objective = Demonstrations::new(&model, &rows, Precision::Fp32);
    drop(second_loss(Scenario::Fp32Forward, layers, &objective));
    let objective = Demonstrations::new(&model, &rows, Precision::Bf16);
    let loss = second_loss(Scenario::Forward, layers, &objective).loss;
    Scenario::Backward.run(layers, || backward(&loss).unwrap());
}

fn shared_prompts(layers: usize) {
    let model = model(layers);
    model.parameters().set_requires_grad(true);
    let group = |id: u32| CompletionGroup {
        id: id.into(),
        prompt: sequence(id, 12),
        completions: vec![sequence(id + 50, 5), sequence(id + 60, 9)],
    };
    let groups: Vec<_> = (0..3).map(group).collect();
    let loss = |_| {
        GroupLoss::new(1.0, |log_probs| LossOutput {
            loss: Tensor::cat(log_probs, 0).sum(Kind::Float),
            metrics: MetricSums::from_scalars([], GPU),
        })
    };
    let losses: Vec<_> = groups.iter().map(loss).collect();
    let objective = PolicyGroups {
        model: &model,
        groups: &groups,
        losses: &losses,
        metrics: &[],
        precision: Precision::Bf16,
    };
    drop(second_loss(Scenario::SharedForward, layers, &objective));
}

fn preferences(layers: usize) {
    let model = RewardModel::with_fresh_head(model(layers), 4);
    model.parameters().set_requires_grad(true);
    let pair = |id: u32| Comparison {
        id: id.into(),
        chosen: sequence(id, 15),
        rejected: vec![sequence(id + 30, 11)],
        weight: 1.0,
        margin: 0.0,
    };
    let pairs: Vec<_> = (0..4).map(pair).collect();
    let objective = PairRanking::new(&model, &pairs, &[], Precision::Bf16, Normalization::Global);
    drop(second_loss(Scenario::Preferences, layers, &objective));
}

/// Number of sequences of a full micro-batch, their length, and the length of their prompts.
const FULL: [u64; 3] = [24, 50, 15];

fn full_step(scenario: Scenario, layers: usize) {
    let model = model(layers).with_checkpointing(scenario == Scenario::CheckpointedStep);
    model.parameters().set_requires_grad(true);
    let [sequences, length, prompt] = FULL;
    let row = |id: u64| Demonstration {
        id,
        ids: sequence(id as u32, length as u32),
        response_start: prompt as usize,
    };
    let rows: Vec<_> = (0..sequences).map(row).collect();
    let precision = if scenario == Scenario::Fp32Step { Precision::Fp32 } else { Precision::Bf16 };
    let objective = Demonstrations::new(&model, &rows, precision);
    let rows: Vec<usize> = (0..rows.len()).collect();
    drop(objective.loss(&rows).unwrap());
    scenario.run(layers, || backward(&objective.loss(&rows).unwrap().loss).unwrap());
}

/// The plan's estimate for a step of [`full_step`], excluding weights, the optimizer's state, and memory
/// outside tensors.
pub(super) fn planned_memory(scenario: Scenario, layers: usize) -> u64 {
    let [sequences, length, prompt] = FULL;
    let shape = ModelShape::from(&config(layers, 64));
    let tokens = sequences * length;
    let batch = Batch { tokens, outputs: sequences * (length - prompt), keys: tokens, longest: length };
    let precision = match scenario {
        Scenario::Fp32Step => spec::Precision::Fp32,
        _ => spec::Precision::Bf16,
    };
    let compute = Compute { device: spec::DeviceKind::Cuda, precision, threads: 1, masters: true };
    let checkpointing = scenario == Scenario::CheckpointedStep;
    let settings =
        Training { ranks: 1, sharding: spec::Sharding::Ddp, checkpointing, adapters: None, snapshots: false };
    let model = memory::Model { shape: &shape, head: memory::Head::Language };
    let estimate = training(model, settings, batch, compute);
    estimate.total() - estimate.weights - estimate.optimizer - estimate.reserve
}

fn generate_on_gpu(
    inference: &Inference<'_>,
    requests: u32,
    max_num_seqs: usize,
    sampling: &Sampling,
    eos: &[u32],
) {
    let request = |id: u32| GenerateRequest { prompt_id: id.into(), prompt: sequence(id, 9), samples: 1 };
    let requests: Vec<_> = (0..requests).map(request).collect();
    let noise = NoiseKey { seed: 1, round: 1, purpose: "test".to_owned() };
    let detokenize = |_: &[u32]| String::new();
    let config = GenerationConfig {
        sampling,
        eos,
        vocab_size: 101,
        noise: &noise,
        max_num_seqs,
        detokenize: &detokenize,
    };
    generate(inference, &requests, &config, &mut |_, _| ()).unwrap();
}

fn generation(layers: usize) {
    let model = model(layers);
    let inference = model.inference(Precision::Bf16, 4).unwrap();
    let sample = |max_new_tokens| {
        let sampling = Sampling { max_new_tokens, ..Sampling::default() };
        // No completion ends early.
        generate_on_gpu(&inference, 4, 4, &sampling, &[]);
    };
    // Fills the table of angles for both.
    sample(DECODED[1]);
    Scenario::ShortDecode.run(layers, || sample(DECODED[0]));
    Scenario::Decode.run(layers, || sample(DECODED[1]));
}

/// Number of slots of a generation of mixed lengths.
pub(super) const SLOTS: usize = 11;

fn mixed_generation(layers: usize) {
    let model = model(layers);
    for (scenario, precision) in
        [(Scenario::MixedDecode, Precision::Bf16), (Scenario::Fp32MixedDecode, Precision::Fp32)]
    {
        let inference = model.inference(precision, SLOTS).unwrap();
        let sampling = Sampling {
            max_new_tokens: 14,
            min_new_tokens: 2,
            repetition_penalty: 1.1,
            ..Sampling::default()
        };
        let eos: Vec<u32> = (0..20).collect();
        scenario.run(layers, || generate_on_gpu(&inference, 40, SLOTS, &sampling, &eos));
    }
}

/// A tensor of several pieces of pinned memory, with an end that fills none, in another precision than the
/// file.
fn large_weights() {
    const ELEMENTS: i64 = (70 << 20) / 2 + 13;
    let numbers = Tensor::arange(ELEMENTS, (Kind::Float, Device::Cpu)).sin().to_kind(Kind::BFloat16);
    let bytes = Vec::<u8>::try_from(numbers.view_dtype(Kind::Uint8)).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let reader = FileReader::new(GPU).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let read = reader.read(&file, 0, ELEMENTS, Kind::BFloat16, kind).unwrap();
        assert!(read.to_device(Device::Cpu).equal(&numbers.to_kind(kind)), "{kind:?}");
    }
}

#[test]
#[ignore = "needs the stand-in, on which another test starts it"]
fn scenarios_on_the_stand_in() {
    assert!(std::env::var_os("FAKE_GPU_TRACE").is_some(), "started without the stand-in");
    tch::set_num_threads(1);
    foil_torch::runtime::disable_cudnn_attention();
    foil_torch::runtime::set_deterministic(true).unwrap();
    large_weights();
    for layers in LAYERS {
        demonstrations(layers);
        shared_prompts(layers);
        preferences(layers);
        generation(layers);
    }
    mixed_generation(LAYERS[0]);
    for step in [Scenario::Step, Scenario::CheckpointedStep, Scenario::Fp32Step] {
        full_step(step, LAYERS[1]);
    }
}

//! Estimates of the peak memory of each kind of phase.

use super::activations::{Batch, Compute, Pass};
use super::{Head, ModelShape};
use crate::spec::{DeviceKind, Precision, Sharding};

/// Bytes of an fp32 number.
const F32: u64 = 4;

/// Maximum number of prompt tokens in one prefill of several prompts.
const PREFILL_TOKENS: u64 = 8192;

/// Maximum number of logits from which the worker samples at once, if it samples by tensor operations.
pub const MAX_SAMPLED_LOGITS: u64 = 1 << 23;

/// Number of fp64 or int64 tensors of that size alive at the peak of such sampling.
const DRAW_TENSORS: u64 = 8;

/// GPU memory of a process other than tensors: CUDA's context and kernels, cuBLAS's workspace, NCCL's
/// channels, and the fragmentation of the allocator. A rule of thumb: 1.5 GiB.
const CUDA_RESERVE: u64 = 3 << 29;

/// A model with its head.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    pub shape: &'a ModelShape,
    pub head: Head,
}

/// The size of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Sequences decoded together.
    pub max_num_seqs: u64,
    /// Maximum prompt length in tokens.
    pub prompt: u64,
    /// Maximum completion length in tokens.
    pub completion: u64,
}

/// The training configuration of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    pub ranks: u64,
    pub sharding: Sharding,
    /// Whether backward recomputes layers.
    pub checkpointing: bool,
    /// `None` if all weights are trained.
    pub adapters: Option<Adapters>,
}

/// Low-rank adapters (LoRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapters {
    /// Parameters of all adapters.
    pub parameters: u64,
    pub rank: u64,
    /// Number of matrices per layer that have an adapter.
    pub targets: u64,
}

/// Peak device memory of one rank in a phase in bytes, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Fp32 master weights of every resident model.
    pub weights: u64,
    /// Copies of weights in the precision or layout of matrix products.
    pub copies: u64,
    /// Fp32 gradients. Without sharding they are views of the reducer's buckets, which take nothing more.
    pub gradients: u64,
    /// AdamW's two moments in fp32; with sharding, also this rank's shard of the parameters.
    pub optimizer: u64,
    /// Activations that the forward pass keeps for backward.
    pub activations: u64,
    /// The largest chunk of logits, and its gradients.
    pub logits: u64,
    /// Keys and values of the active sequences.
    pub kv_cache: u64,
    /// Working memory of a layer.
    pub working: u64,
    /// Memory that is not tensors.
    pub reserve: u64,
}

impl Estimate {
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// All parts with their names, in the order of the fields.
    pub fn parts(&self) -> [(&'static str, u64); 9] {
        [
            ("weights", self.weights),
            ("copies", self.copies),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("logits", self.logits),
            ("kv_cache", self.kv_cache),
            ("working", self.working),
            ("reserve", self.reserve),
        ]
    }

    fn of(weights: u64, compute: Compute) -> Self {
        let reserve = match compute.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => CUDA_RESERVE,
        };
        Self { weights, reserve, ..Self::default() }
    }
}

impl Model<'_> {
    fn weights(&self) -> u64 {
        F32 * self.shape.parameters(self.head)
    }
}

/// Bytes that sampling by tensor operations takes in addition to `logits`.
pub fn sampling_memory(logits: u64) -> u64 {
    DRAW_TENSORS * 8 * logits.min(MAX_SAMPLED_LOGITS)
}

/// Generation by `policy`.
pub fn generation(policy: &ModelShape, decoding: Decoding, compute: Compute) -> Estimate {
    let Decoding { max_num_seqs, prompt, completion } = decoding;
    let (size, vocabulary) = (compute.size(), policy.vocabulary);
    let capacity = prompt + completion;
    // One more slot holds the prefix of a prompt whose completions are queued.
    let kv_cache = (max_num_seqs + 1) * capacity * policy.layers * 2 * policy.kv_width() * size;
    let tokens = (max_num_seqs * prompt).min(PREFILL_TOKENS.max(prompt));
    let batch = Batch { tokens, outputs: (tokens / prompt.max(1)).max(1), keys: tokens, longest: prompt };
    let prefill = Pass { shape: policy, compute, batch }.forward_working();
    // Another sequence takes the slot of a finished one, one layer's keys or values at a time.
    let moving = kv_cache / (2 * policy.layers);
    // The result of one product, and its fp32 copy for the sampler.
    let logits =
        max_num_seqs * vocabulary * (size + if compute.precision == Precision::Bf16 { F32 } else { 0 });
    let cast = match compute.precision {
        Precision::Bf16 => size * (policy.matrices() + policy.vocabulary_matrix()),
        // CPUs lay matrices out again once; GPUs read the masters.
        Precision::Fp32 if compute.device == DeviceKind::Cpu => size * policy.matrices(),
        Precision::Fp32 => 0,
    };
    Estimate {
        copies: cast,
        logits,
        kv_cache,
        working: prefill.max(moving).max(match compute.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => sampling_memory(max_num_seqs * vocabulary),
        }),
        ..Estimate::of(Model { shape: policy, head: Head::Language }.weights(), compute)
    }
}

/// Inference without gradients: scores by a reward model, or log-probabilities by `resident` policies of one
/// shape.
pub fn inference(model: Model<'_>, resident: u64, batch: Batch, compute: Compute) -> Estimate {
    let pass = Pass { shape: model.shape, compute, batch };
    Estimate {
        copies: cast(model.shape, compute),
        working: pass.forward_working(),
        logits: match model.head {
            Head::Language => pass.log_probs_working(),
            Head::Reward => 0,
        },
        ..Estimate::of(resident * model.weights(), compute)
    }
}

/// Evaluation of a round: the policy generates, the reward model scores, and with `with_reference` the start
/// policy is compared with; all of them stay resident.
pub fn evaluation(
    policy: &ModelShape,
    reward: &ModelShape,
    with_reference: bool,
    decoding: Decoding,
    batch: Batch,
    compute: Compute,
) -> Estimate {
    let language = Model { shape: policy, head: Head::Language };
    let reward_model = Model { shape: reward, head: Head::Reward };
    let weights = language.weights() * if with_reference { 2 } else { 1 } + reward_model.weights();
    let pass = Pass { shape: policy, compute, batch };
    let compared = Estimate {
        // Both models' matrices are cast in turn, one after the other.
        copies: cast(policy, compute),
        working: pass.forward_working(),
        logits: pass.divergence_working(),
        ..Estimate::of(language.weights(), compute)
    };
    let parts = [
        generation(policy, decoding, compute),
        Estimate { weights: 0, ..inference(reward_model, 1, batch, compute) },
        if with_reference { compared } else { Estimate::default() },
    ];
    let worst = parts.into_iter().max_by_key(|part| part.total() - part.weights).unwrap_or_default();
    Estimate { weights, ..worst }
}

/// A training step: forward and backward of one micro-batch, gradients, and the optimizer's state.
pub fn training(model: Model<'_>, training: Training, batch: Batch, compute: Compute) -> Estimate {
    let pass = Pass { shape: model.shape, compute, batch };
    let all = model.shape.parameters(model.head);
    let (trained, extra) = match training.adapters {
        None => (all, 0),
        Some(adapters) => (adapters.parameters, adapters.parameters),
    };
    let optimizer = match training.sharding {
        Sharding::Ddp => 2 * F32 * trained,
        Sharding::Zero1 => 3 * F32 * trained.div_ceil(training.ranks.max(1)),
    };
    let kept = match training.checkpointing {
        true => pass.kept_by_checkpoints(),
        false => pass.kept(),
    };
    let adapters =
        training.adapters.map_or(0, |adapters| pass.kept_by_adapters(adapters.rank, adapters.targets));
    let activations = kept + adapters;
    let whole = training.adapters.is_none();
    let backward = pass.backward_working(match (whole, training.checkpointing) {
        (false, _) => 0,
        (true, false) => model.shape.largest_matrix(),
        // A recomputed layer yields the gradients of all its matrices at once.
        (true, true) => model.shape.matrices() / model.shape.layers,
    });
    let (logits, working) = match model.head {
        Head::Language => {
            let loss = pass.loss(whole);
            // Backward begins after the loss has freed its working memory.
            (loss.gradients + loss.scratch, backward.saturating_sub(loss.scratch))
        }
        Head::Reward if !whole => (0, backward),
        // At the end of backward, when activations are gone, the embeddings' gradient exists twice: before
        // and after it is accumulated.
        Head::Reward => {
            (0, backward.max((F32 * model.shape.vocabulary_matrix()).saturating_sub(activations)))
        }
    };
    Estimate {
        copies: cast(model.shape, compute),
        gradients: F32 * trained,
        optimizer,
        activations,
        logits,
        working,
        ..Estimate::of(F32 * (all + extra), compute)
    }
}

/// The layers' matrices, cast for one forward pass.
fn cast(shape: &ModelShape, compute: Compute) -> u64 {
    match compute.precision {
        Precision::Fp32 => 0,
        Precision::Bf16 => compute.size() * shape.matrices(),
    }
}

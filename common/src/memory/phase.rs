//! From shapes to the bytes of a phase.

use super::activations::{Batch, Compute, Pass};
use super::{Head, ModelShape};
use crate::spec::{DeviceKind, Precision, Sharding};

/// Bytes of an fp32 number.
const F32: u64 = 4;

/// Most tokens of the prompts that generation reads at a time, where more than one is read.
const PREFILL_TOKENS: u64 = 8192;

/// Most logits from which the worker draws tokens at once, where it draws by tensor operations.
pub const DRAWN_LOGITS: u64 = 1 << 23;

/// Tensors of so many fp64 or int64 numbers that such a draw holds at its worst moment.
const DRAW_TENSORS: u64 = 8;

/// What a process takes of a GPU beside tensors: CUDA's context and kernels, cuBLAS's workspace, NCCL's channels, and what the
/// allocator loses between blocks. A rule of thumb; 1.5 GiB.
const CUDA_RESERVE: u64 = 3 << 29;

/// A model with its head.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    pub shape: &'a ModelShape,
    pub head: Head,
}

/// How answers are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Sequences decoded together.
    pub max_num_seqs: u64,
    /// Tokens of the longest prompt.
    pub prompt: u64,
    /// Most tokens of an answer.
    pub answer: u64,
}

/// How a gang trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    pub ranks: u64,
    pub sharding: Sharding,
    /// Layers are computed again in backward.
    pub checkpointing: bool,
    /// `None` trains all weights.
    pub adapters: Option<Adapters>,
}

/// Low-rank adapters, which alone are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapters {
    /// Numbers of all of them.
    pub parameters: u64,
    pub rank: u64,
    /// Matrices of a layer that have one.
    pub targets: u64,
}

/// Bytes of one rank's device at the worst moment of a phase, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Fp32 masters of every model that is resident.
    pub weights: u64,
    /// Weights in the kind or layout that products read, beside the masters.
    pub copies: u64,
    /// Fp32, before they are summed. Where moments are not cut they lie in the reducer's buckets, which take nothing more.
    pub gradients: u64,
    /// AdamW's two moments, fp32; where they are cut over the ranks, also this rank's part of the parameters.
    pub optimizer: u64,
    /// What the forward pass keeps.
    pub activations: u64,
    /// The largest chunk of logits, and the gradients that are made along with it.
    pub logits: u64,
    /// Keys and values of the running sequences.
    pub kv_cache: u64,
    /// What a layer needs while it is computed.
    pub working: u64,
    /// What is not tensors.
    pub reserve: u64,
}

impl Estimate {
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Every part with its name, in the order of the fields.
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

/// Bytes that the draw of tokens by tensor operations takes beside so many logits.
pub fn drawing(logits: u64) -> u64 {
    DRAW_TENSORS * 8 * logits.min(DRAWN_LOGITS)
}

/// Generation by `policy`.
pub fn generating(policy: &ModelShape, decoding: Decoding, compute: Compute) -> Estimate {
    let Decoding { max_num_seqs, prompt, answer } = decoding;
    let (size, vocabulary) = (compute.size(), policy.vocabulary);
    let capacity = prompt + answer;
    // One slot more holds a prompt whose samples wait.
    let kv_cache = (max_num_seqs + 1) * capacity * policy.layers * 2 * policy.kv_width() * size;
    let tokens = (max_num_seqs * prompt).min(PREFILL_TOKENS.max(prompt));
    let batch = Batch { tokens, outputs: (tokens / prompt.max(1)).max(1), keys: tokens, longest: prompt };
    let prefill = Pass { shape: policy, compute, batch }.forward_working();
    // A finished sequence's place is taken by another: one layer's keys or values at a time.
    let moving = kv_cache / (2 * policy.layers);
    // One product's result, and its fp32 copy where a sampler reads it.
    let logits =
        max_num_seqs * vocabulary * (size + if compute.precision == Precision::Bf16 { F32 } else { 0 });
    let cast = match compute.precision {
        Precision::Bf16 => size * (policy.products() + policy.vocabulary_matrix()),
        // CPUs lay matrices out anew once; GPUs read the masters.
        Precision::Fp32 if compute.device == DeviceKind::Cpu => size * policy.products(),
        Precision::Fp32 => 0,
    };
    Estimate {
        copies: cast,
        logits,
        kv_cache,
        working: prefill.max(moving).max(match compute.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Cuda => drawing(max_num_seqs * vocabulary),
        }),
        ..Estimate::of(Model { shape: policy, head: Head::Language }.weights(), compute)
    }
}

/// Reading without gradients: scores by a reward model, or log-probabilities by policies of one shape, of which
/// `resident` stay on the device.
pub fn reading(model: Model<'_>, resident: u64, batch: Batch, compute: Compute) -> Estimate {
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

/// A round's evaluation: the policy answers, the reward model reads the answers, and the start policy (where `with_reference`)
/// is compared with; all stay resident.
pub fn evaluating(
    policy: &ModelShape,
    reward: &ModelShape,
    with_reference: bool,
    decoding: Decoding,
    batch: Batch,
    compute: Compute,
) -> Estimate {
    let language = Model { shape: policy, head: Head::Language };
    let judge = Model { shape: reward, head: Head::Reward };
    let weights = language.weights() * if with_reference { 2 } else { 1 } + judge.weights();
    let pass = Pass { shape: policy, compute, batch };
    let compared = Estimate {
        // Both models' matrices are cast in turn, one after the other.
        copies: cast(policy, compute),
        working: pass.forward_working(),
        logits: pass.divergence_working(),
        ..Estimate::of(language.weights(), compute)
    };
    let parts = [
        generating(policy, decoding, compute),
        Estimate { weights: 0, ..reading(judge, 1, batch, compute) },
        if with_reference { compared } else { Estimate::default() },
    ];
    let worst = parts.into_iter().max_by_key(|part| part.total() - part.weights).unwrap_or_default();
    Estimate { weights, ..worst }
}

/// A step of training: forward and backward of one micro-batch, gradients and the optimizer's state beside it.
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
        // A layer that is computed again hands over the gradients of all its matrices at once.
        (true, true) => model.shape.products() / model.shape.layers,
    });
    let (logits, working) = match model.head {
        Head::Language => {
            let loss = pass.loss(whole);
            // Backward begins when the loss has given its scratch back.
            (loss.gradients + loss.scratch, backward.saturating_sub(loss.scratch))
        }
        Head::Reward if !whole => (0, backward),
        // At the end of backward, when activations are gone, the embeddings' gradient stands beside the place that it is
        // added to.
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

/// The layers' matrices cast for one forward pass.
fn cast(shape: &ModelShape, compute: Compute) -> u64 {
    match compute.precision {
        Precision::Fp32 => 0,
        Precision::Bf16 => compute.size() * shape.products(),
    }
}

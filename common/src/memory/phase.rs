//! Estimates of the peak memory of each kind of phase.

use super::activations::{Batch, Compute, Pass};
use super::{Head, ModelShape};
use crate::spec::{DeviceKind, Precision, Sharding};

/// Bytes of an fp32 number.
const F32: u64 = 4;

/// Maximum number of prompt tokens in one prefill of several prompts.
const PREFILL_TOKENS: u64 = 8192;

/// Maximum number of logits from which the worker samples at a time, if it samples by tensor operations.
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
    /// Whether checkpoints are kept during the phase.
    pub snapshots: bool,
}

impl Training {
    /// This rank's part of a checkpoint, which is copied to the host before it is written: parameters and two
    /// moments in fp32. The next one takes the same memory.
    fn snapshot(&self, trained: u64) -> u64 {
        if self.snapshots { 3 * F32 * trained.div_ceil(self.ranks.max(1)) } else { 0 }
    }
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
    /// Weights of every resident model: fp32 masters, this rank's shard of them in training with FSDP, or
    /// weights in the compute precision in its other phases.
    pub weights: u64,
    /// Copies of weights in the precision or layout of matrix products, or those that FSDP gathers.
    pub copies: u64,
    /// Fp32 gradients; with FSDP, this rank's shard of them. Without FSDP they are views of what the ranks
    /// sum, which takes no additional memory.
    pub gradients: u64,
    /// AdamW's two moments in fp32, or this rank's shard of them.
    pub optimizer: u64,
    /// Activations that the forward pass keeps for backward.
    pub activations: u64,
    /// The largest chunk of logits, and its gradients.
    pub logits: u64,
    /// Keys and values of the active sequences.
    pub kv_cache: u64,
    /// Working memory of a layer.
    pub working: u64,
    /// The copy of a rank's state for a checkpoint, if it is in device memory.
    pub snapshot: u64,
    /// Memory that is not tensors.
    pub reserve: u64,
    /// Pinned host memory for the copy, not part of the total.
    pub pinned: u64,
}

impl Estimate {
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// All parts with their names, in the order of the fields.
    pub fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("weights", self.weights),
            ("copies", self.copies),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("logits", self.logits),
            ("kv_cache", self.kv_cache),
            ("working", self.working),
            ("snapshot", self.snapshot),
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

    fn with_snapshot(self, bytes: u64, device: DeviceKind) -> Self {
        match device {
            DeviceKind::Cpu => Self { snapshot: bytes, ..self },
            DeviceKind::Cuda => Self { pinned: bytes, ..self },
        }
    }
}

impl Model<'_> {
    /// Weights as a phase that does not train holds them.
    fn weights(&self, compute: Compute) -> u64 {
        let all = self.shape.parameters(self.head);
        if compute.masters {
            return F32 * all;
        }
        let head = match self.head {
            Head::Language => 0,
            Head::Reward => self.shape.hidden,
        };
        let fp32 = self.shape.norms() + head;
        F32 * fp32 + compute.size() * (all - fp32)
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
    // Keys of the noise of each token to come, and the tokens that a penalty applies to, as int64.
    let rows = max_num_seqs * (completion + capacity) * 8;
    // The result of one product, and its fp32 copy for the sampler.
    let logits =
        max_num_seqs * vocabulary * (size + if compute.precision == Precision::Bf16 { F32 } else { 0 });
    let cast = match compute.precision {
        Precision::Bf16 if compute.masters => size * (policy.matrices() + policy.vocabulary_matrix()),
        // CPUs lay matrices out again once; GPUs read the weights.
        _ if compute.device == DeviceKind::Cpu => size * policy.matrices(),
        _ => 0,
    };
    Estimate {
        copies: cast,
        logits,
        kv_cache,
        working: match compute.device {
            DeviceKind::Cpu => prefill.max(moving),
            DeviceKind::Cuda => rows + prefill.max(moving).max(sampling_memory(max_num_seqs * vocabulary)),
        },
        ..Estimate::of(Model { shape: policy, head: Head::Language }.weights(compute), compute)
    }
}

/// Inference without gradients: scores by a reward model, or log-probabilities by `resident` policies of one
/// shape.
pub fn inference(model: Model<'_>, resident: u64, batch: Batch, compute: Compute) -> Estimate {
    let pass = Pass { shape: model.shape, compute, batch };
    Estimate {
        copies: cast_to_read(model.shape, compute),
        working: pass.forward_working(),
        logits: match model.head {
            Head::Language => pass.log_probs_working(),
            Head::Reward => 0,
        },
        ..Estimate::of(resident * model.weights(compute), compute)
    }
}

/// The models of an evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated<'a> {
    pub policy: &'a ModelShape,
    pub reward: &'a ModelShape,
    /// Whether the policy is compared with the start policy.
    pub with_reference: bool,
    /// Whether all stay resident; otherwise the reward model takes the place of the policies.
    pub together: bool,
}

/// Evaluation of a round: the policy generates, the reward model scores, and the policy is compared with the
/// start policy.
pub fn evaluation(models: Evaluated<'_>, decoding: Decoding, batch: Batch, compute: Compute) -> Estimate {
    let Evaluated { policy, reward, with_reference, together } = models;
    let language = Model { shape: policy, head: Head::Language };
    let reward_model = Model { shape: reward, head: Head::Reward };
    let policies = language.weights(compute) * if with_reference { 2 } else { 1 };
    let pass = Pass { shape: policy, compute, batch };
    let compared = Estimate {
        copies: cast_to_read(policy, compute),
        working: pass.forward_working(),
        logits: pass.divergence_working(),
        ..Estimate::of(policies, compute)
    };
    let parts = [
        Estimate { weights: policies, ..generation(policy, decoding, compute) },
        inference(reward_model, 1, batch, compute),
        if with_reference { compared } else { Estimate::default() },
    ];
    if !together {
        return parts.into_iter().max_by_key(Estimate::total).unwrap_or_default();
    }
    let worst = parts.into_iter().max_by_key(|part| part.total() - part.weights).unwrap_or_default();
    Estimate { weights: policies + reward_model.weights(compute), ..worst }
}

/// A training step: forward and backward of one micro-batch, gradients, and the optimizer's state.
pub fn training(model: Model<'_>, training: Training, batch: Batch, compute: Compute) -> Estimate {
    let pass = Pass { shape: model.shape, compute, batch };
    let all = model.shape.parameters(model.head);
    let (trained, extra) = match training.adapters {
        None => (all, 0),
        Some(adapters) => (adapters.parameters, adapters.parameters),
    };
    if training.sharding == Sharding::Fsdp && training.ranks > 1 {
        return sharded_training(model, training, batch, compute);
    }
    let optimizer = match training.sharding {
        Sharding::Zero1 => 2 * F32 * trained.div_ceil(training.ranks.max(1)),
        // A gang of one has nothing to shard.
        Sharding::Ddp | Sharding::Fsdp => 2 * F32 * trained,
    };
    // Backward needs the copies of all layers, unless it casts again as it recomputes each layer.
    let (kept, copies) = match training.checkpointing {
        true => (pass.kept_by_checkpoints(), cast(model.shape, compute) / model.shape.layers),
        false => (pass.kept(), cast(model.shape, compute)),
    };
    let adapters =
        training.adapters.map_or(0, |adapters| pass.kept_by_adapters(adapters.rank, adapters.targets));
    let activations = kept + adapters;
    let whole = training.adapters.is_none();
    let backward = pass.backward_working(match (whole, training.checkpointing) {
        (false, _) => 0,
        (true, false) => model.shape.largest_matrix(),
        // A recomputed layer yields the gradients of all its matrices together.
        (true, true) => model.shape.matrices() / model.shape.layers,
    });
    let (logits, working) = match model.head {
        Head::Language => {
            let loss = pass.loss(whole);
            // Backward begins after the loss has freed its working memory.
            (loss.gradients + loss.scratch, backward.saturating_sub(loss.scratch))
        }
        Head::Reward if !whole => (0, backward),
        // At the end of backward, when activations have been freed, the embeddings' gradient exists twice:
        // before and after it is accumulated.
        Head::Reward => {
            (0, backward.max((F32 * model.shape.vocabulary_matrix()).saturating_sub(activations)))
        }
    };
    Estimate {
        copies,
        gradients: F32 * trained,
        optimizer,
        activations,
        logits,
        working,
        ..Estimate::of(F32 * (all + extra), compute)
    }
    .with_snapshot(training.snapshot(trained), compute.device)
}

/// A training step with FSDP on several ranks: shards of everything, and the units that are gathered and
/// whose gradients are reduced at one time.
fn sharded_training(model: Model<'_>, training: Training, batch: Batch, compute: Compute) -> Estimate {
    let (shape, size, ranks) = (model.shape, compute.size(), training.ranks);
    let pass = Pass { shape, compute, batch };
    let adapters = training.adapters;
    let extra = adapters.map_or(0, |adapters| adapters.parameters);
    let all = shape.parameters(model.head);
    let trained = if adapters.is_some() { extra } else { all };
    let (layer, vocabulary) = (shape.matrices() / shape.layers, shape.vocabulary_matrix());
    // The unit in use and the one gathered ahead of its use, with this rank's part of it; norms and adapters
    // stay.
    let copies =
        size * ((2 * layer).max(vocabulary + layer) + layer.div_ceil(ranks) + extra) + F32 * shape.norms();
    let activations = match training.checkpointing {
        true => pass.kept_by_checkpoints(),
        false => pass.kept(),
    } + adapters
        .map_or(0, |adapters| pass.kept_by_adapters(adapters.rank, adapters.targets));
    // Gradients of a unit in the compute precision, laid out in fp32 to be reduced, and this rank's sum.
    let reduced = |unit: u64| F32 * (unit + unit.div_ceil(ranks));
    let whole = adapters.is_none();
    let (own, in_flight, embeddings) = match (whole, model.head) {
        (false, _) => (0, 0, size * extra + reduced(extra)),
        // The head's sum is in flight while the last layer's gradients are computed.
        (true, Head::Language) => (size * layer, reduced(layer.max(vocabulary)), 0),
        (true, Head::Reward) => {
            (size * layer, reduced(layer), (F32 + size) * vocabulary + reduced(vocabulary))
        }
    };
    let backward = pass.activation_gradients() + own + in_flight;
    // The embeddings come last, when activations have been freed.
    let backward = backward.max(embeddings.saturating_sub(activations));
    let (logits, working) = match model.head {
        Head::Reward => (0, backward),
        Head::Language => {
            let loss = pass.loss(whole);
            let head = if whole { size * vocabulary + reduced(vocabulary) } else { 0 };
            let forward = loss.gradients + loss.scratch;
            (forward, backward.max(head).saturating_sub(forward))
        }
    };
    Estimate {
        copies,
        gradients: F32 * trained.div_ceil(ranks),
        optimizer: 2 * F32 * trained.div_ceil(ranks),
        activations,
        logits,
        working,
        ..Estimate::of(F32 * (all + extra).div_ceil(ranks), compute)
    }
    .with_snapshot(training.snapshot(trained), compute.device)
}

/// A layer's matrices, cast for its forward pass in a phase that does not train.
fn cast_to_read(shape: &ModelShape, compute: Compute) -> u64 {
    if compute.masters { cast(shape, compute) / shape.layers } else { 0 }
}

/// The matrices of all layers, cast.
fn cast(shape: &ModelShape, compute: Compute) -> u64 {
    match compute.precision {
        Precision::Fp32 => 0,
        Precision::Bf16 => compute.size() * shape.matrices(),
    }
}

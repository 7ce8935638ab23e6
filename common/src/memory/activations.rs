//! Bytes of activations: what a forward pass keeps for its backward, and what a layer needs while it is
//! computed.
//!
//! The formulas follow the worker's layers. On CPUs those are its own fused loops: a norm keeps its fp32
//! input and one number per row, attention its rotated queries, keys and values in fp32 (scores are
//! recomputed), SwiGLU its two inputs. On GPUs they are ATen's operations, and flash attention in bf16.

use super::ModelShape;
use crate::spec::{DeviceKind, Precision};

/// Bytes of an fp32 number.
const F32: u64 = 4;

/// Maximum number of logits at one time: the worker computes them in chunks of this size. For every chunk the
/// head is read three times and its gradient rewritten, which takes a GPU longer than the products of a small
/// chunk.
pub fn chunk_logits(device: DeviceKind) -> u64 {
    match device {
        DeviceKind::Cpu => 1 << 24,
        DeviceKind::Cuda => 1 << 27,
    }
}

/// The device and precision of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    pub device: DeviceKind,
    pub precision: Precision,
    /// CPU threads: each holds the attention scores of one sequence.
    pub threads: u64,
    /// Whether phases that do not train hold fp32 masters, rather than weights in the compute precision
    /// only.
    pub masters: bool,
}

/// The tokens of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Input tokens; a shared prefix of sequences counts once.
    pub tokens: u64,
    /// Tokens at which a loss or a score is read; only these leave the last layer.
    pub outputs: u64,
    /// Keys of attention; a shared prefix counts once per sequence. At least `tokens`.
    pub keys: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
}

impl Compute {
    /// Bytes of a number in matrix products.
    pub fn size(self) -> u64 {
        match self.precision {
            Precision::Fp32 => F32,
            Precision::Bf16 => 2,
        }
    }

    /// Bytes of a number's copy in a format other than fp32; 0 if none is made.
    fn copy(self) -> u64 {
        match self.precision {
            Precision::Fp32 => 0,
            Precision::Bf16 => 2,
        }
    }

    fn is_cpu(self) -> bool {
        self.device == DeviceKind::Cpu
    }
}

/// A forward pass of one model.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    pub shape: &'a ModelShape,
    pub compute: Compute,
    pub batch: Batch,
}

impl Pass<'_> {
    /// Activations of the whole decoder that backward needs, from the embeddings to the final norm.
    pub fn kept(&self) -> u64 {
        let Batch { tokens, outputs, .. } = self.batch;
        let layers = self.shape.layers;
        self.entry(tokens) * layers
            + self.exit(tokens) * (layers - 1)
            + self.exit(outputs)
            + self.shared()
            + self.end()
    }

    /// Activations with checkpointing, where backward recomputes every layer: each layer's inputs (the fp32
    /// residual stream, and what is added to it), and all of one layer.
    pub fn kept_by_checkpoints(&self) -> u64 {
        let Batch { tokens, .. } = self.batch;
        let inputs = tokens * self.shape.hidden * (F32 + self.compute.size());
        inputs * self.shape.layers + self.entry(tokens) + self.exit(tokens) + self.shared() + self.end()
    }

    /// Additional activations of adapters of `rank` at `targets` matrices per layer: the values between their
    /// two matrices.
    pub fn kept_by_adapters(&self, rank: u64, targets: u64) -> u64 {
        self.batch.tokens * self.shape.layers * rank * targets * self.compute.size()
    }

    /// A layer up to its attention's result.
    fn entry(&self, tokens: u64) -> u64 {
        let (shape, size) = (self.shape, self.compute.size());
        let norm = tokens * (F32 * shape.hidden + F32 + size * shape.hidden);
        let head_norms = match shape.qk_norm {
            // Fp32 inputs (a copy in bf16), and a number for each head.
            true => tokens * F32 * (shape.query_width() + shape.kv_width() + shape.heads + shape.kv_heads),
            false => 0,
        };
        norm + head_norms + self.attention(tokens)
    }

    fn attention(&self, tokens: u64) -> u64 {
        let (q, kv, size) = (self.shape.query_width(), self.shape.kv_width(), self.compute.size());
        match (self.compute.device, self.compute.precision) {
            // Rotated queries and keys, and values, in fp32.
            (DeviceKind::Cpu, _) => tokens * F32 * (q + 2 * kv),
            // Flash attention: its inputs, keys and values laid out for each sequence, and one number per
            // head.
            (DeviceKind::Cuda, Precision::Bf16) => {
                tokens * (size * q + F32 * self.shape.heads) + self.batch.keys * size * 2 * kv
            }
            // Memory-efficient attention: the same in fp32, with keys and values repeated for the heads that
            // share them.
            (DeviceKind::Cuda, Precision::Fp32) => {
                tokens * F32 * (q + self.shape.heads) + self.batch.keys * F32 * 2 * q
            }
        }
    }

    /// A layer from its attention's result on: the result, the second norm, and SwiGLU's inputs and result.
    fn exit(&self, tokens: u64) -> u64 {
        let (shape, size) = (self.shape, self.compute.size());
        // ATen's silu(gate) · up keeps silu(gate) as well.
        let gates = if self.compute.is_cpu() { 3 } else { 4 };
        let norm = F32 * shape.hidden + F32 + size * shape.hidden;
        tokens * (size * shape.query_width() + norm + gates * size * shape.intermediate)
    }

    /// The angles of all positions, which layers share, and the tokens' ids and positions.
    fn shared(&self) -> u64 {
        self.batch.tokens * (F32 * self.shape.head_dim + 2 * 8)
    }

    /// The final norm's input.
    fn end(&self) -> u64 {
        self.batch.outputs * (F32 * self.shape.hidden + F32)
    }

    /// Working memory of a layer's backward: gradients of activations, and of the `matrices` (in parameters)
    /// whose gradients are not accumulated yet.
    pub fn backward_working(&self, matrices: u64) -> u64 {
        let cast = self.shape.largest_matrix().min(matrices) * self.compute.size();
        self.activation_gradients() + matrices * F32 + cast
    }

    /// Gradients of a layer's activations in its backward.
    pub fn activation_gradients(&self) -> u64 {
        let (shape, size, tokens) = (self.shape, self.compute.size(), self.batch.tokens);
        let (q, kv) = (shape.query_width(), shape.kv_width());
        let stream = tokens * shape.hidden * (2 * F32 + 2 * size);
        let mlp = tokens * 3 * size * shape.intermediate;
        let attention = tokens * (2 * F32 * q + 2 * F32 * kv + size * (q + 2 * kv)) + 2 * self.scores();
        stream + mlp.max(attention)
    }

    /// Working memory of a layer's forward if nothing is kept for backward.
    pub fn forward_working(&self) -> u64 {
        let (shape, size, tokens) = (self.shape, self.compute.size(), self.batch.tokens);
        let (h, q, kv) = (shape.hidden, shape.query_width(), shape.kv_width());
        // The residual stream at the start, after the first addition and after the second; all live until the
        // layer ends.
        let mlp = 3 * F32 * h + size * (3 * h + q + 3 * shape.intermediate);
        let projected = 2 * F32 * h + size * (h + q + 2 * kv);
        let attention = match self.compute.device {
            DeviceKind::Cpu => projected + F32 * (2 * q + 2 * kv) + size * q,
            // Rotation by ATen's operations: the halves and their products in fp32.
            DeviceKind::Cuda => projected + 3 * F32 * q,
        };
        tokens * mlp.max(attention) + self.scores() + self.shared()
    }

    /// Attention scores of the sequences that are computed at the same time.
    fn scores(&self) -> u64 {
        let one = F32 * self.shape.heads * self.batch.longest * self.batch.longest;
        match (self.compute.device, self.compute.precision) {
            (DeviceKind::Cpu, _) => self.compute.threads * one,
            (DeviceKind::Cuda, _) => 0,
        }
    }

    /// The loss of a language-model head: the gradients that backward takes (of the hidden states, and of the
    /// head if it is `trained`), and the working memory that is freed once the loss is known (a copy of
    /// the head, a chunk of logits and what is computed from it).
    pub fn loss(&self, trained: bool) -> Loss {
        let matrix = self.shape.vocabulary_matrix();
        let states = self.batch.outputs * self.shape.hidden * self.compute.size();
        let (gradient, copies) = if trained { (F32 * matrix, 2) } else { (0, 1) };
        Loss {
            gradients: gradient + states,
            scratch: states + copies * self.compute.copy() * matrix + self.chunk(),
        }
    }

    /// Working memory of log-probabilities: a copy of the head and a chunk of logits.
    pub fn log_probs_working(&self) -> u64 {
        let states = self.batch.outputs * self.shape.hidden * self.compute.size();
        states + self.compute.copy() * self.shape.vocabulary_matrix() + self.chunk()
    }

    /// Working memory of comparing the logits of two models in fp64, a quarter of the rows at a time.
    pub fn divergence_working(&self) -> u64 {
        let rows =
            (chunk_logits(self.compute.device) / 4 / self.shape.vocabulary).max(1).min(self.batch.outputs);
        let each = 2 * self.compute.size() + 5 * 8;
        let states = 2 * self.batch.outputs * self.shape.hidden * self.compute.size();
        states + self.compute.copy() * self.shape.vocabulary_matrix() + rows * self.shape.vocabulary * each
    }

    fn chunk(&self) -> u64 {
        let rows = (chunk_logits(self.compute.device) / self.shape.vocabulary).max(1).min(self.batch.outputs);
        // ATen widens logits and allocates their exponentials as well; the CPU's loop needs neither.
        let each = if self.compute.is_cpu() { self.compute.size() } else { self.compute.size() + 2 * F32 };
        rows * self.shape.vocabulary * each
    }
}

/// Bytes around a loss over a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    pub gradients: u64,
    pub scratch: u64,
}

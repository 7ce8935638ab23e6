//! The shape of a decoder, as far as it determines memory.

use serde_json::Value;

use crate::model::{DecoderConfig, ModelFilesError};
use crate::spec::LoraTarget;

const MATRICES: [LoraTarget; 7] = [
    LoraTarget::QProj,
    LoraTarget::KProj,
    LoraTarget::VProj,
    LoraTarget::OProj,
    LoraTarget::GateProj,
    LoraTarget::UpProj,
    LoraTarget::DownProj,
];

/// The head on top of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A matrix to the vocabulary, its own or the embeddings.
    Language,
    /// One row of weights that yields a score.
    Reward,
}

/// The shape of a Llama, Mistral, Qwen2 or Qwen3 decoder. All counts are at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    pub vocabulary: u64,
    pub hidden: u64,
    pub intermediate: u64,
    pub layers: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    /// The language-model head is the embedding matrix.
    pub tied: bool,
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// A norm over each head's query and key.
    pub qk_norm: bool,
}

impl From<&DecoderConfig> for ModelShape {
    fn from(config: &DecoderConfig) -> Self {
        // Counts are positive.
        let count = |count: i64| count.unsigned_abs();
        Self {
            vocabulary: count(config.vocab_size),
            hidden: count(config.hidden_size),
            intermediate: count(config.intermediate_size),
            layers: count(config.layers),
            heads: count(config.heads),
            kv_heads: count(config.kv_heads),
            head_dim: count(config.head_dim),
            tied: config.tied_embeddings,
            qkv_bias: config.qkv_bias,
            output_bias: config.output_bias,
            mlp_bias: config.mlp_bias,
            qk_norm: config.qk_norm,
        }
    }
}

impl ModelShape {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// A field that a rank could not load.
    pub fn from_config(config: &Value) -> Result<Self, ModelFilesError> {
        Ok(Self::from(&DecoderConfig::from_hf(config)?))
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> u64 {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Parameters of the whole model.
    pub fn parameters(&self, head: Head) -> u64 {
        let head = match head {
            Head::Language if self.tied => 0,
            Head::Language => self.vocabulary_matrix(),
            Head::Reward => self.hidden,
        };
        self.vocabulary_matrix() + self.matrices() + self.norms() + head
    }

    /// Parameters of all norms.
    pub fn norms(&self) -> u64 {
        let head_norms = if self.qk_norm { 2 * self.head_dim } else { 0 };
        self.layers * (2 * self.hidden + head_norms) + self.hidden
    }

    /// Parameters of the layers' matrices and biases, without the head.
    pub fn matrices(&self) -> u64 {
        let biased = |on: bool, width: u64| if on { width } else { 0 };
        let biases = biased(self.qkv_bias, self.query_width() + 2 * self.kv_width())
            + biased(self.output_bias, self.hidden)
            + biased(self.mlp_bias, 2 * self.intermediate + self.hidden);
        let matrices: u64 = MATRICES.iter().map(|&target| self.rows(target) * self.columns(target)).sum();
        self.layers * (matrices + biases)
    }

    /// Parameters of the embeddings, and likewise of a language-model head.
    pub fn vocabulary_matrix(&self) -> u64 {
        self.vocabulary * self.hidden
    }

    /// Parameters of a layer's largest matrix.
    pub fn largest_matrix(&self) -> u64 {
        self.hidden * self.intermediate.max(self.query_width())
    }

    /// Parameters of low-rank adapters at `targets` in every layer: for each matrix `[out, in]`, `[rank, in]`
    /// and `[out, rank]`.
    pub fn adapters(&self, rank: u64, targets: &[LoraTarget]) -> u64 {
        let sides = |target: &LoraTarget| self.rows(*target) + self.columns(*target);
        self.layers * rank * targets.iter().map(sides).sum::<u64>()
    }

    /// Output width of a matrix.
    fn rows(&self, target: LoraTarget) -> u64 {
        match target {
            LoraTarget::QProj => self.query_width(),
            LoraTarget::KProj | LoraTarget::VProj => self.kv_width(),
            LoraTarget::OProj | LoraTarget::DownProj => self.hidden,
            LoraTarget::GateProj | LoraTarget::UpProj => self.intermediate,
        }
    }

    /// Input width of a matrix.
    fn columns(&self, target: LoraTarget) -> u64 {
        match target {
            LoraTarget::OProj => self.query_width(),
            LoraTarget::DownProj => self.intermediate,
            _ => self.hidden,
        }
    }
}

//! The shape of a decoder as far as it decides how much memory the model takes.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::spec::LoraTarget;

/// Widest tensor side, deepest stack and largest vocabulary that are taken for a model's: products of them stay far
/// within 64 bits.
const WIDEST: u64 = 1 << 18;
const DEEPEST: u64 = 1 << 10;
const LARGEST_VOCABULARY: u64 = 1 << 22;

const MATRICES: [LoraTarget; 7] = [
    LoraTarget::QProj,
    LoraTarget::KProj,
    LoraTarget::VProj,
    LoraTarget::OProj,
    LoraTarget::GateProj,
    LoraTarget::UpProj,
    LoraTarget::DownProj,
];

/// What stands on top of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A matrix to the vocabulary, its own or the embeddings.
    Language,
    /// One row of weights that makes a score.
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

/// Why a config.json gives no shape.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("config.json: {field}: found {found}, expected {expected}")]
pub struct ShapeError {
    field: &'static str,
    found: String,
    expected: String,
}

impl ModelShape {
    /// Reads a Hugging Face `config.json`. Only what decides memory is looked at: a rank that loads the model checks the
    /// rest.
    ///
    /// # Errors
    /// A field that is missing, or out of range; a model of another family.
    pub fn from_config(config: &Value) -> Result<Self, ShapeError> {
        let Some(object) = config.as_object() else {
            return Err(wrong("(the whole file)", Some(config), "a JSON object"));
        };
        let fields = Fields(object);
        let family = fields.family()?;
        let (hidden, heads) =
            (fields.count("hidden_size", WIDEST)?, fields.count("num_attention_heads", WIDEST)?);
        let kv_default = match family {
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        let head_dim = match (fields.has("head_dim"), family) {
            (false, Family::Qwen3) if !object.contains_key("head_dim") => 128,
            _ => fields.count_or("head_dim", WIDEST, hidden / heads)?,
        };
        let attention_bias = family != Family::Mistral && fields.flag("attention_bias")?;
        let shape = Self {
            vocabulary: fields.count("vocab_size", LARGEST_VOCABULARY)?,
            hidden,
            intermediate: fields.count("intermediate_size", WIDEST)?,
            layers: fields.count("num_hidden_layers", DEEPEST)?,
            heads,
            kv_heads: fields.count_or("num_key_value_heads", heads, kv_default)?,
            head_dim,
            tied: fields.flag("tie_word_embeddings")?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?,
            qk_norm: family == Family::Qwen3,
        };
        match shape.query_width() <= WIDEST {
            true => Ok(shape),
            false => {
                Err(wrong("head_dim", object.get("head_dim"), "heads of at most 262144 numbers together"))
            }
        }
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> u64 {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Numbers of the whole model.
    pub fn parameters(&self, head: Head) -> u64 {
        let head = match head {
            Head::Language if self.tied => 0,
            Head::Language => self.vocabulary_matrix(),
            Head::Reward => self.hidden,
        };
        let head_norms = if self.qk_norm { 2 * self.head_dim } else { 0 };
        let norms = self.layers * (2 * self.hidden + head_norms) + self.hidden;
        self.vocabulary_matrix() + self.products() + norms + head
    }

    /// Numbers of the layers' matrices and their biases: what takes part in matrix products, the head left out.
    pub fn products(&self) -> u64 {
        let biased = |on: bool, width: u64| if on { width } else { 0 };
        let biases = biased(self.qkv_bias, self.query_width() + 2 * self.kv_width())
            + biased(self.output_bias, self.hidden)
            + biased(self.mlp_bias, 2 * self.intermediate + self.hidden);
        let matrices: u64 = MATRICES.iter().map(|&target| self.rows(target) * self.columns(target)).sum();
        self.layers * (matrices + biases)
    }

    /// Numbers of the embeddings, and of the head that language models have.
    pub fn vocabulary_matrix(&self) -> u64 {
        self.vocabulary * self.hidden
    }

    /// Numbers of a layer's largest matrix.
    pub fn largest_matrix(&self) -> u64 {
        self.hidden * self.intermediate.max(self.query_width())
    }

    /// Numbers of low-rank adapters at `targets` in every layer: for each matrix `[out, in]`, `[rank, in]` and
    /// `[out, rank]`.
    pub fn adapters(&self, rank: u64, targets: &[LoraTarget]) -> u64 {
        let sides = |target: &LoraTarget| self.rows(*target) + self.columns(*target);
        self.layers * rank * targets.iter().map(sides).sum::<u64>()
    }

    /// Width of what a matrix gives.
    fn rows(&self, target: LoraTarget) -> u64 {
        match target {
            LoraTarget::QProj => self.query_width(),
            LoraTarget::KProj | LoraTarget::VProj => self.kv_width(),
            LoraTarget::OProj | LoraTarget::DownProj => self.hidden,
            LoraTarget::GateProj | LoraTarget::UpProj => self.intermediate,
        }
    }

    /// Width of what a matrix reads.
    fn columns(&self, target: LoraTarget) -> u64 {
        match target {
            LoraTarget::OProj => self.query_width(),
            LoraTarget::DownProj => self.intermediate,
            _ => self.hidden,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// A config.json's fields; JSON null counts as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    fn family(&self) -> Result<Family, ShapeError> {
        match self.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            _ => Err(wrong("model_type", self.0.get("model_type"), "one of llama, mistral, qwen2, qwen3")),
        }
    }

    fn count(&self, field: &'static str, most: u64) -> Result<u64, ShapeError> {
        let expected = || format!("an integer from 1 to {most}");
        let count = self.get(field).and_then(Value::as_u64).filter(|count| (1..=most).contains(count));
        count.ok_or_else(|| wrong(field, self.0.get(field), &expected()))
    }

    fn count_or(&self, field: &'static str, most: u64, default: u64) -> Result<u64, ShapeError> {
        if self.has(field) || default == 0 { self.count(field, most) } else { Ok(default) }
    }

    fn flag(&self, field: &'static str) -> Result<bool, ShapeError> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong(field, Some(value), "true or false")),
        }
    }
}

fn wrong(field: &'static str, found: Option<&Value>, expected: &str) -> ShapeError {
    let found =
        found.map_or_else(|| "nothing".to_owned(), |value| value.to_string().chars().take(80).collect());
    ShapeError { field, found, expected: expected.to_owned() }
}

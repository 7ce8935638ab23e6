//! The configuration of a decoder, read from and written to Hugging Face's `config.json`.

mod export;
mod hf;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::{HeadKind, ModelFilesError};
use crate::input_file;
use crate::spec::SaveDtype;

/// Families whose decoders differ from Llama's only in their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    pub const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The stem of the class names under `architectures`, e.g. `Llama` of `LlamaForCausalLM`.
    pub fn class_stem(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
        }
    }
}

/// Scaling of rotary frequencies beyond the context that a model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: i64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// The shape of a decoder. All counts are positive, and `heads` is a multiple of `kv_heads`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub family: Family,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub layers: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub head_dim: i64,
    pub rms_norm_eps: f64,
    /// Maximum sequence length the model was trained for; the rotary embedding itself has no limit.
    pub max_positions: i64,
    pub rope: RopeConfig,
    /// The language-model head is the embedding matrix.
    pub tied_embeddings: bool,
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm over each head's query and key before rotation (Qwen3).
    pub qk_norm: bool,
    /// Standard deviation of fresh weights, if the file states one.
    pub initializer_range: Option<f64>,
    pub bos_token_id: Option<u32>,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<u32>,
    pub pad_token_id: Option<u32>,
}

impl DecoderConfig {
    /// Maximum size of `config.json`, whose values take about fifty times as much memory. Files of known
    /// models have less than a tenth of this size.
    pub const SIZE_LIMIT: u64 = 1 << 20;

    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// The file is absent or not JSON; a field is missing, malformed or names something not implemented.
    pub fn load(dir: &Path) -> Result<Self, ModelFilesError> {
        let path = dir.join("config.json");
        let text = input_file::read(&path, Self::SIZE_LIMIT).map_err(ModelFilesError::read(&path))?;
        Self::from_hf(&ModelFilesError::parse(&path, &text)?)
    }

    /// Writes `config.json` into `dir`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path, head: HeadKind, dtype: SaveDtype) -> Result<(), ModelFilesError> {
        let path = dir.join("config.json");
        let text = format!("{:#}\n", self.to_hf(head, dtype));
        std::fs::write(&path, text).map_err(ModelFilesError::read(&path))
    }

    /// Checks that a tokenizer's ids, `0..count`, all have an embedding. Call it once for a model and its
    /// tokenizer: in a forward pass an id without an embedding causes a panic, and on a GPU it fails an
    /// assertion that ends the process.
    ///
    /// # Errors
    /// The tokenizer knows more ids than the model.
    pub fn check_token_ids(&self, count: usize) -> Result<(), ModelFilesError> {
        if count as i64 <= self.vocab_size {
            return Ok(());
        }
        Err(ModelFilesError::Config {
            field: "vocab_size".to_owned(),
            found: self.vocab_size.to_string(),
            expected: format!(
                "at least {count}, the number of the tokenizer's ids; the two belong to different models"
            ),
        })
    }

    /// Checks that `pad` can be the pad token of a reward model. transformers scores a row at its last token
    /// that is not `pad`, so it must be an id that never occurs in a text.
    ///
    /// # Errors
    /// `pad` is outside the vocabulary, or ends or begins texts.
    pub fn check_pad(&self, pad: u32) -> Result<(), ModelFilesError> {
        let wrong = |reason: &str| Err(ModelFilesError::Pad { pad, reason: reason.to_owned() });
        if i64::from(pad) >= self.vocab_size {
            return wrong("it is outside the vocabulary; choose an unused id inside it");
        }
        if self.eos_token_ids.contains(&pad) {
            return wrong(
                "it is also an end-of-text token, so transformers would score before it; choose an unused id",
            );
        }
        if self.bos_token_id == Some(pad) {
            return wrong("it is also the begin-of-text token; choose an unused id");
        }
        Ok(())
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> i64 {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> i64 {
        self.kv_heads * self.head_dim
    }

    /// Every tensor that a model of this shape with this head consists of: (HF name, shape), sorted by name.
    pub fn tensors(&self, head: HeadKind) -> Vec<(String, Vec<i64>)> {
        let (h, q, kv, ffn) = (self.hidden_size, self.query_width(), self.kv_width(), self.intermediate_size);
        let mut all = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h]),
            ("model.norm.weight".to_owned(), vec![h]),
        ];
        match head {
            HeadKind::LanguageModel if self.tied_embeddings => {}
            HeadKind::LanguageModel => all.push(("lm_head.weight".to_owned(), vec![self.vocab_size, h])),
            HeadKind::Reward => all.push(("score.weight".to_owned(), vec![1, h])),
        }
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[i64]| {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[h]);
            add("post_attention_layernorm.weight", &[h]);
            let attention = [("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)];
            for (part, out, input) in attention {
                add(&format!("self_attn.{part}_proj.weight"), &[out, input]);
                if if part == "o" { self.output_bias } else { self.qkv_bias } {
                    add(&format!("self_attn.{part}_proj.bias"), &[out]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            for (part, out, input) in [("gate", ffn, h), ("up", ffn, h), ("down", h, ffn)] {
                add(&format!("mlp.{part}_proj.weight"), &[out, input]);
                if self.mlp_bias {
                    add(&format!("mlp.{part}_proj.bias"), &[out]);
                }
            }
        }
        all.sort();
        all
    }
}

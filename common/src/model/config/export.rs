//! [`DecoderConfig`] → `config.json` that transformers loads.

use serde_json::{Value, json};

use super::{DecoderConfig, Family};
use crate::model::HeadKind;
use crate::spec::SaveDtype;

impl DecoderConfig {
    /// The whole `config.json` for this decoder with `head`, its weights stored in `dtype`.
    pub fn to_hf(&self, head: HeadKind, dtype: SaveDtype) -> Value {
        let (rope_theta, rope_scaling) = self.rope.to_hf();
        let mut config = json!({
            "architectures": [format!("{}{}", self.family.class_stem(), head.class_suffix())],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_positions,
            "rope_theta": rope_theta,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self.tied_embeddings,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_to_hf(),
            "pad_token_id": self.pad_token_id,
            "torch_dtype": hf_name(dtype),
        });
        match self.family {
            Family::Llama => {
                config["attention_bias"] = json!(self.qkv_bias);
                config["mlp_bias"] = json!(self.mlp_bias);
            }
            Family::Mistral => config["sliding_window"] = Value::Null,
            Family::Qwen2 => config["use_sliding_window"] = json!(false),
            Family::Qwen3 => {
                config["attention_bias"] = json!(self.qkv_bias);
                config["use_sliding_window"] = json!(false);
            }
        }
        if let Some(range) = self.initializer_range {
            config["initializer_range"] = json!(range);
        }
        if head == HeadKind::Reward {
            config["num_labels"] = json!(1);
            config["id2label"] = json!({ "0": "reward" });
            config["label2id"] = json!({ "reward": 0 });
        }
        config
    }

    fn eos_to_hf(&self) -> Value {
        match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        }
    }
}

fn hf_name(dtype: SaveDtype) -> &'static str {
    match dtype {
        SaveDtype::Fp32 => "float32",
        SaveDtype::Bf16 => "bfloat16",
    }
}

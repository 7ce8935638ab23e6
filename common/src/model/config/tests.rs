#![allow(clippy::needless_pass_by_value)] // so that `json!` can stand in the call

use serde_json::{Value, json};

use super::*;
use crate::model::{HeadKind, ModelFilesError};

fn base() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 17, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    })
}

fn with(changes: Value) -> Result<DecoderConfig, ModelFilesError> {
    let mut config = base();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    DecoderConfig::from_hf(&config)
}

/// The message for a changed config, which must be refused.
fn refusal(changes: Value) -> String {
    with(changes.clone()).expect_err(&changes.to_string()).to_string()
}

#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    let config = with(json!({})).unwrap();
    assert_eq!((config.kv_heads, config.head_dim), (4, 16));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
    assert_eq!(config.rope, RopeConfig { theta: 10_000.0, scaling: RopeScaling::None });
    assert!(!config.tied_embeddings && !config.qkv_bias);

    let qwen3 = with(json!({ "model_type": "qwen3", "num_key_value_heads": 2 })).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.qk_norm, qwen3.eos_token_ids.len()), (128, true, 0));
    let qwen2 = with(json!({ "model_type": "qwen2", "num_key_value_heads": 2 })).unwrap();
    assert_eq!((qwen2.head_dim, qwen2.qkv_bias, qwen2.output_bias), (16, true, false));
}

#[test]
fn token_ids_may_be_null_one_or_many() {
    let config = with(json!({ "eos_token_id": [2, 7], "bos_token_id": null, "pad_token_id": 0 })).unwrap();
    assert_eq!((config.bos_token_id, config.pad_token_id), (None, Some(0)));
    assert_eq!(config.eos_token_ids, [2, 7]);
    assert!(with(json!({ "eos_token_id": null })).unwrap().eos_token_ids.is_empty());
    assert!(refusal(json!({ "eos_token_id": -1 })).contains("eos_token_id: found -1"));
    assert!(refusal(json!({ "pad_token_id": 1.5 })).contains("pad_token_id"));
}

#[test]
fn both_notations_of_rotary_settings_are_read() {
    let linear = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 });
    let new = with(json!({ "rope_parameters": linear })).unwrap();
    let old = with(json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2 } })).unwrap();
    assert_eq!(new.rope, old.rope);
    assert_eq!(new.rope, RopeConfig { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } });
    let plain = with(json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 7.0 } })).unwrap();
    assert_eq!(plain.rope, RopeConfig { theta: 7.0, scaling: RopeScaling::None });
    assert!(
        refusal(json!({ "rope_scaling": { "rope_type": "linear" } }))
            .contains("rope_scaling.factor: found nothing")
    );
}

#[test]
fn unsupported_features_are_refused_by_name() {
    let cases = [
        (json!({ "model_type": "gpt2" }), "model_type \"gpt2\""),
        (json!({ "hidden_act": "gelu" }), "hidden_act \"gelu\""),
        (json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2.0 } }), "rope scaling \"yarn\""),
        (json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }), "rope scaling \"dynamic\""),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        (json!({ "rope_parameters": { "full_attention": { "rope_theta": 1.0 } } }), "per kind of layer"),
        (json!({ "quantization_config": {} }), "quantization_config"),
        (json!({ "quantization_config": { "quant_method": "awq" } }), "quantization_config (awq)"),
        (json!({ "compression_config": {} }), "compression_config"),
        (json!({ "rope_scaling": { "type": "longrope" } }), "rope scaling \"longrope\""),
        (json!({ "model_type": "mixtral" }), "model_type \"mixtral\""),
        (json!({ "attention_dropout": 0.1 }), "attention_dropout"),
        (json!({ "layer_types": ["full_attention", "sliding_attention"] }), "layer_types"),
    ];
    for (changes, name) in cases {
        let message = refusal(changes);
        assert!(message.contains(name) && message.contains("is not implemented"), "{message}");
    }
}

#[test]
fn a_sliding_window_is_refused_only_if_it_is_active() {
    let mistral = |window: Value, longest: i64| json!({ "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": window, "max_position_embeddings": longest });
    assert!(with(mistral(Value::Null, 32768)).is_ok());
    assert!(with(mistral(json!(4096), 4096)).is_ok());
    assert!(refusal(mistral(json!(4096), 32768)).contains("sliding_window 4096"));
    // transformers takes 4096 where the field is absent.
    let absent =
        json!({ "model_type": "mistral", "num_key_value_heads": 2, "max_position_embeddings": 8192 });
    assert!(refusal(absent).contains("sliding_window 4096"));

    let qwen = |using: bool, full_layers: i64| {
        json!({
            "model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": using, "sliding_window": 32,
            "max_window_layers": full_layers,
        })
    };
    assert!(with(qwen(false, 0)).is_ok());
    assert!(with(qwen(true, 2)).is_ok(), "every layer has full attention");
    assert!(refusal(qwen(true, 1)).contains("sliding_window 32"));
    let of = |window: Option<Value>| {
        let mut config = qwen(true, 1);
        let fields = config.as_object_mut().unwrap();
        fields.remove("sliding_window");
        fields.extend(window.map(|window| ("sliding_window".to_owned(), window)));
        fields.insert("max_position_embeddings".to_owned(), json!(8192));
        config
    };
    assert!(with(of(Some(Value::Null))).is_ok(), "null means no window");
    assert!(refusal(of(None)).contains("sliding_window 4096"), "transformers' default");
}

#[test]
fn malformed_shapes_are_errors_that_name_the_field() {
    let cases = [
        (json!({ "hidden_size": 0 }), "hidden_size: found 0"),
        (json!({ "hidden_size": 66 }), "hidden_size: found 66"),
        (json!({ "vocab_size": "17" }), "vocab_size: found \"17\""),
        (json!({ "vocab_size": 1_i64 << 40 }), "vocab_size"),
        (json!({ "num_hidden_layers": 100_000 }), "num_hidden_layers"),
        (json!({ "num_key_value_heads": 3 }), "a divisor of the 4 attention heads"),
        (json!({ "hidden_size": i64::MAX, "head_dim": 16 }), "an integer from 1 to 262144"),
        (json!({ "head_dim": 1_i64 << 40 }), "head_dim: found 1099511627776"),
        (json!({ "max_position_embeddings": 0 }), "max_position_embeddings"),
        (json!({ "head_dim": 15 }), "head_dim: found 15"),
        (json!({ "rms_norm_eps": -1.0 }), "rms_norm_eps"),
        (json!({ "tie_word_embeddings": 1 }), "tie_word_embeddings"),
        (json!({ "model_type": null }), "model_type: found null"),
    ];
    for (changes, expected) in cases {
        let message = refusal(changes);
        assert!(message.contains(expected), "{message}");
    }
    assert!(DecoderConfig::from_hf(&json!([1])).is_err());
}

#[test]
fn a_written_config_reads_back_the_same() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let cases = [
        json!({ "attention_bias": true, "mlp_bias": true, "rope_scaling": llama3, "eos_token_id": [2, 3] }),
        json!({ "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": null, "initializer_range": 0.1 }),
        json!({ "model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": true }),
        json!({ "model_type": "qwen3", "num_key_value_heads": 4, "attention_bias": true, "bos_token_id": null }),
    ];
    for changes in cases {
        let config = with(changes).unwrap();
        for head in [HeadKind::LanguageModel, HeadKind::Reward] {
            let written = config.to_hf(head, SaveDtype::Bf16);
            assert_eq!(DecoderConfig::from_hf(&written).unwrap(), config);
            let class = format!("{}{}", config.family.class_stem(), head.class_suffix());
            assert_eq!(written["architectures"], json!([class]));
            assert!(written.get("rope_parameters").is_none(), "older transformers know only rope_theta");
        }
    }
}

#[test]
fn a_tokenizer_with_more_ids_than_embeddings_is_refused() {
    let config = with(json!({})).unwrap();
    assert!(config.check_token_ids(17).is_ok());
    let message = config.check_token_ids(18).unwrap_err().to_string();
    assert!(message.contains("vocab_size: found 17, expected at least 18"), "{message}");
}

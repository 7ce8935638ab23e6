//! `config.json` → [`DecoderConfig`]. Defaults are those of the transformers classes.

use serde_json::Value;

use super::{DecoderConfig, Family, RopeConfig};
use crate::model::ModelFilesError;

/// Maximum width, depth and vocabulary of a model: their products are far below 64 bits.
const WIDEST: i64 = 1 << 18;
const DEEPEST: i64 = 1 << 10;
const LARGEST_VOCABULARY: i64 = 1 << 22;
pub(super) const LONGEST: i64 = 1 << 30;

/// One JSON object of the file, with its path.
pub(super) struct Fields<'a> {
    pub(super) object: &'a serde_json::Map<String, Value>,
    pub(super) prefix: &'static str,
}

impl<'a> Fields<'a> {
    /// The field's value; JSON null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, field: &str, expected: &str) -> ModelFilesError {
        let found = match self.object.get(field) {
            None => "nothing".to_owned(),
            Some(value) => value.to_string().chars().take(80).collect(),
        };
        ModelFilesError::Config {
            field: format!("{}{field}", self.prefix),
            found,
            expected: expected.to_owned(),
        }
    }

    fn count_or(&self, field: &str, most: i64, default: Option<i64>) -> Result<i64, ModelFilesError> {
        let value = match self.get(field) {
            Some(value) => value.as_i64(),
            None => default,
        };
        value
            .filter(|count| (1..=most).contains(count))
            .ok_or_else(|| self.wrong(field, &format!("an integer from 1 to {most}")))
    }

    pub(super) fn count(&self, field: &str, most: i64) -> Result<i64, ModelFilesError> {
        self.count_or(field, most, None)
    }

    pub(super) fn positive(&self, field: &str, default: Option<f64>) -> Result<f64, ModelFilesError> {
        let value = self.get(field).map_or(default, Value::as_f64);
        value.filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.wrong(field, "a number above 0"))
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, ModelFilesError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, ModelFilesError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(field, "a string")),
        }
    }

    fn token_id(&self, field: &str, value: &Value) -> Result<u32, ModelFilesError> {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| self.wrong(field, "a token id, 0 or more"))
    }

    /// A token id; `default` if the field is absent. An explicit null means none.
    fn token(&self, field: &str, default: Option<u32>) -> Result<Option<u32>, ModelFilesError> {
        match self.object.get(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.token_id(field, value).map(Some),
        }
    }

    fn tokens(&self, field: &str, default: Option<u32>) -> Result<Vec<u32>, ModelFilesError> {
        match self.object.get(field) {
            Some(Value::Array(all)) => all.iter().map(|value| self.token_id(field, value)).collect(),
            _ => Ok(self.token(field, default)?.into_iter().collect()),
        }
    }
}

fn unsupported(feature: impl Into<String>, advice: impl Into<String>) -> ModelFilesError {
    ModelFilesError::Unsupported { feature: feature.into(), advice: advice.into() }
}

impl DecoderConfig {
    /// Parses the `config.json` of a Llama, Mistral, Qwen2 or Qwen3 model.
    ///
    /// # Errors
    /// A missing or malformed field, or a feature that would silently change the model's results if it were
    /// ignored.
    pub fn from_hf(config: &Value) -> Result<Self, ModelFilesError> {
        let Some(object) = config.as_object() else {
            return Err(ModelFilesError::Config {
                field: "(the whole file)".to_owned(),
                found: config.to_string().chars().take(80).collect(),
                expected: "a JSON object".to_owned(),
            });
        };
        let fields = Fields { object, prefix: "" };
        let family = family(&fields)?;
        refuse_unknown(&fields, family)?;

        let heads = fields.count("num_attention_heads", WIDEST)?;
        let hidden_size = fields.count("hidden_size", WIDEST)?;
        let (bos, eos) = match family {
            Family::Llama | Family::Mistral => (Some(1), Some(2)),
            Family::Qwen2 | Family::Qwen3 => (None, None),
        };
        let attention_bias = family != Family::Mistral && fields.flag("attention_bias", false)?;
        let config = Self {
            family,
            vocab_size: fields.count("vocab_size", LARGEST_VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", WIDEST)?,
            layers: fields.count("num_hidden_layers", DEEPEST)?,
            heads,
            kv_heads: kv_heads(&fields, family, heads)?,
            head_dim: head_dim(&fields, family, hidden_size, heads)?,
            rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-6))?,
            max_positions: max_positions(&fields, family)?,
            rope: RopeConfig::from_hf(&fields)?,
            tied_embeddings: fields.flag("tie_word_embeddings", false)?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && fields.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            initializer_range: match fields.get("initializer_range") {
                Some(_) => Some(fields.positive("initializer_range", None)?),
                None => None,
            },
            bos_token_id: fields.token("bos_token_id", bos)?,
            eos_token_ids: fields.tokens("eos_token_id", eos)?,
            pad_token_id: fields.token("pad_token_id", None)?,
        };
        Ok(config)
    }
}

fn family(fields: &Fields<'_>) -> Result<Family, ModelFilesError> {
    let known = || Family::ALL.map(Family::model_type).join(", ");
    let Some(name) = fields.text("model_type")? else {
        return Err(fields.wrong("model_type", &format!("one of {}", known())));
    };
    Family::ALL.into_iter().find(|family| family.model_type() == name).ok_or_else(|| {
        unsupported(format!("model_type {name:?}"), format!("use a model of one of these: {}", known()))
    })
}

fn kv_heads(fields: &Fields<'_>, family: Family, heads: i64) -> Result<i64, ModelFilesError> {
    let default = match family {
        Family::Llama => heads,
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
    };
    let kv_heads = fields.count_or("num_key_value_heads", heads, Some(default))?;
    if heads % kv_heads != 0 {
        return Err(fields.wrong("num_key_value_heads", &format!("a divisor of the {heads} attention heads")));
    }
    Ok(kv_heads)
}

fn head_dim(fields: &Fields<'_>, family: Family, hidden: i64, heads: i64) -> Result<i64, ModelFilesError> {
    let explicit = fields.get("head_dim").is_some()
        || (family == Family::Qwen3 && !fields.object.contains_key("head_dim"));
    if !explicit && hidden % heads != 0 {
        return Err(
            fields.wrong("hidden_size", &format!("a multiple of the {heads} attention heads, or a head_dim"))
        );
    }
    let default = if family == Family::Qwen3 && explicit { 128 } else { hidden / heads };
    let head_dim = fields.count_or("head_dim", WIDEST / heads, Some(default))?;
    if head_dim % 2 != 0 {
        return Err(fields.wrong("head_dim", "an even number: rotary embeddings turn pairs"));
    }
    Ok(head_dim)
}

fn max_positions(fields: &Fields<'_>, family: Family) -> Result<i64, ModelFilesError> {
    let default = match family {
        Family::Llama => 2048,
        Family::Mistral => 4096 * 32,
        Family::Qwen2 | Family::Qwen3 => 32768,
    };
    fields.count_or("max_position_embeddings", LONGEST, Some(default))
}

fn refuse_unknown(fields: &Fields<'_>, family: Family) -> Result<(), ModelFilesError> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(unsupported(format!("hidden_act {other:?}"), "only silu is")),
    }
    for field in ["quantization_config", "compression_config"] {
        if let Some(how) = fields.get(field) {
            let method = how.get("quant_method").and_then(Value::as_str);
            let method = method
                .map_or(String::new(), |name| format!(" ({})", name.chars().take(40).collect::<String>()));
            let advice = "give the checkpoint in float32, bfloat16 or float16";
            return Err(unsupported(format!("{field}{method}"), advice));
        }
    }
    if let Some(rate) = fields.get("attention_dropout")
        && rate.as_f64() != Some(0.0)
    {
        return Err(unsupported("attention_dropout other than 0", "set it to 0 in config.json"));
    }
    refuse_sliding_window(fields, family)
}

/// Refuses an active sliding window, that is, one that a sequence can exceed.
fn refuse_sliding_window(fields: &Fields<'_>, family: Family) -> Result<(), ModelFilesError> {
    if let Some(layers) = fields.get("layer_types") {
        let full = |kind: &Value| kind.as_str() == Some("full_attention");
        if !layers.as_array().is_some_and(|all| all.iter().all(full)) {
            return Err(unsupported(
                "layer_types other than full_attention",
                "use a model with full attention",
            ));
        }
    }
    let window = match family {
        Family::Llama => None,
        Family::Mistral if fields.object.contains_key("sliding_window") => {
            fields.get("sliding_window").cloned()
        }
        Family::Mistral => Some(Value::from(4096)),
        Family::Qwen2 | Family::Qwen3 if fields.flag("use_sliding_window", false)? => {
            let full_layers = fields.count_or("max_window_layers", DEEPEST, Some(28)).unwrap_or(0);
            let sliding = fields.get("layer_types").is_none()
                && full_layers < fields.count("num_hidden_layers", DEEPEST)?;
            match fields.object.get("sliding_window") {
                _ if !sliding => None,
                None => Some(Value::from(4096)),
                Some(window) => Some(window.clone()).filter(|window| !window.is_null()),
            }
        }
        Family::Qwen2 | Family::Qwen3 => None,
    };
    let Some(window) = window else { return Ok(()) };
    let Some(width) = window.as_i64() else {
        return Err(fields.wrong("sliding_window", "an integer or null"));
    };
    let longest = max_positions(fields, family)?;
    if width < longest {
        return Err(unsupported(
            format!("sliding_window {width}, which is active below max_position_embeddings {longest}"),
            format!(
                "for sequences of at most {width} tokens set sliding_window to null and max_position_embeddings to {width}; the results are the same"
            ),
        ));
    }
    Ok(())
}

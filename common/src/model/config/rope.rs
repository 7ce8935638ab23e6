//! Rotary settings in both notations: `rope_parameters`, and `rope_theta` with `rope_scaling`.

use serde_json::{Map, Value, json};

use super::hf::{Fields, LONGEST};
use super::{RopeConfig, RopeScaling};
use crate::model::ModelFilesError;

const DEFAULT_THETA: f64 = 10_000.0;

impl RopeConfig {
    pub(super) fn from_hf(config: &Fields<'_>) -> Result<Self, ModelFilesError> {
        refuse_partial(config)?;
        for (name, prefix) in [("rope_parameters", "rope_parameters."), ("rope_scaling", "rope_scaling.")] {
            let Some(value) = config.get(name) else { continue };
            let object = value.as_object().ok_or_else(|| config.wrong(name, "an object or null"))?;
            let fields = Fields { object, prefix };
            refuse_partial(&fields)?;
            let outer = config.positive("rope_theta", Some(DEFAULT_THETA))?;
            let theta = fields.positive("rope_theta", Some(outer))?;
            return Ok(Self { theta, scaling: scaling(&fields)? });
        }
        Ok(Self { theta: config.positive("rope_theta", Some(DEFAULT_THETA))?, scaling: RopeScaling::None })
    }

    /// The values of `rope_theta` and `rope_scaling`.
    pub(super) fn to_hf(self) -> (Value, Value) {
        let scaling = match self.scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_positions,
                })
            }
        };
        (json!(self.theta), scaling)
    }
}

fn refuse_partial(fields: &Fields<'_>) -> Result<(), ModelFilesError> {
    if fields.positive("partial_rotary_factor", Some(1.0))? == 1.0 {
        return Ok(());
    }
    Err(ModelFilesError::Unsupported {
        feature: format!("{}partial_rotary_factor other than 1", fields.prefix),
        advice: "use a model that rotates whole heads".to_owned(),
    })
}

fn scaling(fields: &Fields<'_>) -> Result<RopeScaling, ModelFilesError> {
    // Before 4.43, transformers called `rope_type` `type`.
    let name = match fields.text("rope_type")? {
        Some(name) => name,
        None => fields.text("type")?.unwrap_or("default"),
    };
    match name {
        "default" => {
            refuse_nested(fields.object)?;
            Ok(RopeScaling::None)
        }
        "linear" => Ok(RopeScaling::Linear { factor: fields.positive("factor", None)? }),
        "llama3" => llama3(fields),
        other => Err(ModelFilesError::Unsupported {
            feature: format!("rope scaling {other:?}"),
            advice: "only default, linear and llama3 are".to_owned(),
        }),
    }
}

fn llama3(fields: &Fields<'_>) -> Result<RopeScaling, ModelFilesError> {
    let low_freq_factor = fields.positive("low_freq_factor", None)?;
    let high_freq_factor = fields.positive("high_freq_factor", None)?;
    if high_freq_factor <= low_freq_factor {
        return Err(fields.wrong("high_freq_factor", &format!("above low_freq_factor {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: fields.positive("factor", None)?,
        low_freq_factor,
        high_freq_factor,
        original_max_positions: fields.count("original_max_position_embeddings", LONGEST)?,
    })
}

/// Refuses settings per kind of layer, which are nested one object deeper.
fn refuse_nested(object: &Map<String, Value>) -> Result<(), ModelFilesError> {
    match object.iter().find(|(_, value)| value.is_object()) {
        None => Ok(()),
        Some((name, _)) => Err(ModelFilesError::Unsupported {
            feature: format!("rope_parameters.{name}: rotary settings per kind of layer"),
            advice: "use a model with one rotary setting".to_owned(),
        }),
    }
}

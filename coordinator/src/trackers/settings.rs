//! A job's specification as the flat table of settings that trackers show.

use std::collections::BTreeMap;

use serde_json::Value;

/// Settings by their dotted paths in the job file, except empty ones and the trackers themselves.
pub(super) fn flat(spec: &Value) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    add("", spec, &mut settings);
    settings.retain(|name, _| !name.starts_with("trackers."));
    settings
}

fn add(at: &str, value: &Value, settings: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                add(&at, value, settings);
            }
            // The name of a method is informative even without settings.
            let is_method = at.starts_with("policy_step.") || at.starts_with("reward_step.");
            if fields.is_empty() && is_method {
                settings.insert(at.to_owned(), Value::Bool(true));
            }
        }
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        // A list is one setting.
        Value::Array(_) => {
            settings.insert(at.to_owned(), Value::String(value.to_string()));
        }
        other => {
            settings.insert(at.to_owned(), other.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_have_their_paths_in_the_file() {
        let spec = json!({
            "name": "x", "seed": 0, "preset": "",
            "policy_step": { "rejection": {}, "learning_rate": [0.1, 0.2], "grpo": null },
            "resources": { "deterministic": true }, "reward": {},
            "trackers": { "report_to": ["mlflow"] },
        });
        let settings = flat(&spec);
        let found: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        assert_eq!(
            found,
            [
                ("name", json!("x")),
                ("policy_step.learning_rate", json!("[0.1,0.2]")),
                ("policy_step.rejection", json!(true)),
                ("resources.deterministic", json!(true)),
                ("seed", json!(0)),
            ]
        );
    }
}

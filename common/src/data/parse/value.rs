//! JSON values of records: tests for emptiness, and descriptions for messages.

use serde_json::Value;

/// Whether a value is blank, or the JSON text of a blank value, as `tools` often is.
pub(super) fn is_empty(value: &Value) -> bool {
    is_blank(value) || value.as_str().is_some_and(|text| matches!(text.trim(), "[]" | "{}" | "null"))
}

/// Whether a value is null, white space, or an empty list or object.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.iter().all(Value::is_null),
        Value::Object(fields) => fields.values().all(Value::is_null),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A short description of a value, for messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => format!("the number {value}"),
        Value::String(text) if text.trim().is_empty() => "an empty string".to_owned(),
        Value::String(text) => format!("the string {:?}", excerpt(text, 40)),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(fields) if fields.is_empty() => "an object without fields".to_owned(),
        Value::Object(fields) => {
            let name = |(key, value): (&String, &Value)| match value {
                Value::Null => format!("{} (null)", excerpt(key, 24)),
                Value::Array(list) if list.is_empty() => format!("{} (an empty list)", excerpt(key, 24)),
                _ => excerpt(key, 24),
            };
            let names: Vec<_> = fields.iter().take(8).map(name).collect();
            format!("an object with {}", names.join(", "))
        }
    }
}

/// At most `limit` characters, with … if the text is longer.
pub(super) fn excerpt(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

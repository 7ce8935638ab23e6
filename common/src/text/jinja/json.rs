//! `tojson` as in transformers: Python's `json.dumps`.

use super::Error;
use super::budget::Budget;
use super::repr;
use super::value::{Dict, Value};
use std::fmt::Write;

pub(super) struct Options {
    pub(super) ensure_ascii: bool,
    /// Indentation of one level.
    pub(super) indent: Option<String>,
    /// Separators of items, and of a key and its value.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
}

/// Charges each piece as it is written, so that no indentation can exhaust memory.
pub(super) fn dumps(value: &Value, options: &Options, budget: &Budget) -> Result<String, Error> {
    let mut writer = Writer { options, budget, out: String::new(), asked: 0 };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    options: &'a Options,
    budget: &'a Budget,
    out: String,
    asked: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, level: usize) -> Result<(), Error> {
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => self.out.push_str(&value.to_string()),
            Value::Float(value) => self.out.push_str(&float(*value)),
            Value::Str(text) | Value::Safe(text) => self.string(text),
            Value::List(items) | Value::Tuple(items) => {
                let write = |writer: &mut Self, item: &Value| writer.value(item, level + 1);
                self.items(&items.values, ["[", "]"], level, write)?;
            }
            Value::Dict(dict) => {
                let entries = self.entries(dict)?;
                self.items(&entries, ["{", "}"], level, |writer, (key, value)| {
                    writer.string(key);
                    let separator = writer.options.separators.1.clone();
                    writer.out.push_str(&separator);
                    writer.value(value, level + 1)
                })?;
            }
            _ => {
                return Err(Error::new(format!(
                    "Object of type {} is not JSON serializable",
                    value.type_name()
                )));
            }
        }
        let written = self.out.len() - self.asked;
        self.asked = self.out.len();
        self.budget.bytes(written)
    }

    fn entries(&self, dict: &Dict) -> Result<Vec<(String, Value)>, Error> {
        let mut entries: Vec<(Value, Value)> = dict.entries().to_vec();
        if self.options.sort_keys {
            super::sort::merge_sort(&mut entries, |(a, _), (b, _)| a.order(b, "<"))?;
        }
        entries.into_iter().map(|(key, value)| Ok((name(&key)?, value))).collect()
    }

    fn items<T>(
        &mut self,
        items: &[T],
        [open, close]: [&str; 2],
        level: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                let separator = self.options.separators.0.clone();
                self.out.push_str(&separator);
            }
            self.indent(level + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.indent(level)?;
        }
        self.out.push_str(close);
        Ok(())
    }

    fn indent(&mut self, level: usize) -> Result<(), Error> {
        let Some(indent) = &self.options.indent else { return Ok(()) };
        self.budget.bytes(indent.len().saturating_mul(level))?;
        self.out.push('\n');
        self.out.push_str(&indent.repeat(level));
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                ' '..='~' => self.out.push(character),
                _ if character >= ' ' && !self.options.ensure_ascii => self.out.push(character),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
            }
        }
        self.out.push('"');
    }
}

fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        repr::float(value)
    }
}

/// The text of a key in a JSON object.
fn name(key: &Value) -> Result<String, Error> {
    match key {
        Value::Str(text) | Value::Safe(text) => Ok(text.to_string()),
        Value::None => Ok("null".to_owned()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Int(value) => Ok(value.to_string()),
        Value::Float(value) => Ok(float(*value)),
        _ => Err(Error::new(format!("keys must be str, int, float, bool or None, not {}", key.type_name()))),
    }
}

//! Parses one JSON text. Stricter than serde_json's own `Value`: duplicate keys are a fault, and the number
//! of values is bounded.

use super::super::value::{describe, excerpt};
use super::{VALUE_LIMIT, many_values};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};
use std::fmt;

/// The value at the start of a text.
pub(super) struct Parsed<'a> {
    pub(super) value: Result<Value, String>,
    /// The text after the value; empty if the value is broken.
    pub(super) rest: &'a [u8],
    /// Whether the text ends before the value does.
    pub(super) unfinished: bool,
}

/// Reads the record at the start of `text`.
pub(super) fn read(text: &[u8]) -> Parsed<'_> {
    let broken = |what, unfinished| Parsed { value: Err(what), rest: &[], unfinished };
    if let Err(error) = std::str::from_utf8(text) {
        let what =
            format!("not UTF-8: byte {} of the row is not part of a character", error.valid_up_to() + 1);
        return broken(what, false);
    }
    if has_many_values(text) {
        return broken(many_values(), false);
    }
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Unique>();
    match values.next() {
        Some(Ok(Unique(value))) => {
            let value = match value {
                Value::Object(_) | Value::String(_) => Ok(value),
                other => Err(format!("found {}; a row is a JSON object", describe(&other))),
            };
            Parsed { value, rest: &text[values.byte_offset()..], unfinished: false }
        }
        Some(Err(error)) => broken(explain(text, &error), error.is_eof()),
        None => {
            broken("not JSON: a value is missing between two commas, or after the last".to_owned(), false)
        }
    }
}

/// Whether a JSON text may hold more values than a row may. A value takes much more memory than its text.
pub(in super::super) fn has_many_values(text: &[u8]) -> bool {
    text.len() > VALUE_LIMIT && marks(text) > VALUE_LIMIT
}

/// Number of commas, colons and opening brackets outside of strings: at most one less than the number of
/// values. Every list or object has one, however deeply it is nested.
fn marks(text: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b':' | b'[' | b'{' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

fn explain(text: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let place = match error.line() {
        0 | 1 => format!("column {}", error.column()),
        line => format!("line {line} of the row, column {}", error.column()),
    };
    if error.classify() == Category::Data {
        return format!("{message} (at {place})");
    }
    let line = text.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let around = error.column().saturating_sub(10)..(error.column() + 8).min(line.len());
    let around = line.get(around).unwrap_or_default();
    let is_number_of_python =
        [&b"NaN"[..], b"Infinity"].iter().any(|name| around.windows(name.len()).any(|part| part == *name));
    let advice = if is_number_of_python {
        "; JSON has no NaN and no Infinity: write null or leave the field out"
    } else {
        ""
    };
    let rest =
        line.get(error.column().saturating_sub(1)..).filter(|rest| !rest.is_empty() && !error.is_eof());
    let found = rest.map(|rest| format!(", {:?}", excerpt(&String::from_utf8_lossy(rest), 24)));
    format!("not JSON: {message} at {place}{}{advice}", found.unwrap_or_default())
}

/// A value whose objects have no duplicate keys.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        // A growing vector would begin with room for four, in each of many lists that are nested.
        let mut values = Vec::with_capacity(1);
        while let Some(Unique(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let Unique(value) = object.next_value()?;
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!(
                    "the key {:?} occurs twice in one object",
                    excerpt(&key, 40)
                )));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

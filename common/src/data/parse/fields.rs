//! A record's fields, with a note of which have been read: a known column that nobody read is never dropped in silence.

use super::columns::{self, Purpose, Unread};
use super::describe;
use super::turns::ignored_keys;
use serde_json::{Map, Value};
use std::cell::RefCell;

pub(super) struct Fields<'a> {
    all: &'a Map<String, Value>,
    read: RefCell<Vec<&'a str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(all: &'a Map<String, Value>) -> Self {
        Fields { all, read: RefCell::default() }
    }

    /// The field, noted as read.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let (name, value) = self.all.get_key_value(name)?;
        self.read.borrow_mut().push(name);
        Some(value)
    }

    /// The field where it holds anything, noted as read.
    pub(super) fn given(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !is_blank(value))
    }

    /// The first of `names` that the record has.
    pub(super) fn first<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<(&'n str, &'a Value)> {
        names.into_iter().find_map(|name| self.get(name).map(|value| (name, value)))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    /// A text; absent where the field is, or blank.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{name}: found {}; a string is expected", describe(other))),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, String> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{name}: found {}; a number is expected", describe(value))),
            },
        }
    }

    /// The fields that have not been read and hold something.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let read = self.read.borrow().clone();
        self.all
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .filter(move |(name, value)| !read.contains(name) && !is_blank(value))
    }

    /// What remains is listed as ignored.
    ///
    /// # Errors
    /// A known column that would change what the row means.
    pub(super) fn finish(&self, purpose: Purpose, ignored: &mut Vec<String>) -> Result<(), String> {
        for (name, value) in self.all.iter().filter(|(name, _)| self.read.borrow().contains(&name.as_str())) {
            let keys = value.as_array().into_iter().flat_map(|list| ignored_keys(list));
            ignored.extend(keys.map(|key| format!("{name}[].{key}")));
        }
        for (name, value) in self.unread() {
            match columns::find(name).map(|column| column.unread(purpose)) {
                Some(Unread::Refused(advice)) => {
                    return Err(format!("{name}: found {}; {advice}", describe(value)));
                }
                Some(Unread::Ignored) | None => ignored.push(name.to_owned()),
            }
        }
        Ok(())
    }
}

/// Nothing is in it: null, white space, an empty list or object, or the JSON text of one.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => matches!(text.trim(), "" | "[]" | "{}" | "null"),
        Value::Array(list) => list.iter().all(Value::is_null),
        Value::Object(fields) => fields.values().all(Value::is_null),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

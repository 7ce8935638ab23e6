//! The fields of a record. They track what has been read, so that a known column is never dropped silently.

use super::columns::{self, Purpose, Unread};
use super::turns::ignored_keys;
use super::value::{describe, is_blank, is_empty};
use serde_json::{Map, Value};
use std::cell::RefCell;

/// The fields of a record. Null counts as absent: tables that mix several formats have null in every column
/// that a row does not use.
pub(super) struct Fields<'a> {
    all: &'a Map<String, Value>,
    read: RefCell<Vec<&'a str>>,
    /// Ignored names within values, such as `completions[].model`.
    nested: RefCell<Vec<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(all: &'a Map<String, Value>) -> Self {
        Fields { all, read: RefCell::default(), nested: RefCell::default() }
    }

    /// The field, marked as read.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let (name, value) = self.all.get_key_value(name).filter(|(_, value)| !value.is_null())?;
        self.read.borrow_mut().push(name);
        Some(value)
    }

    /// The field if it is not blank, marked as read.
    pub(super) fn given(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !is_blank(value))
    }

    /// The first of `names` that the record has.
    pub(super) fn first<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<(&'n str, &'a Value)> {
        names.into_iter().find_map(|name| self.get(name).map(|value| (name, value)))
    }

    /// The field, not marked as read.
    pub(super) fn peek(&self, name: &str) -> Option<&'a Value> {
        self.all.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|value| !value.is_null())
    }

    /// Whether the field exists and is not blank.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|value| !is_blank(value))
    }

    /// Whether the field exists and is null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(Value::is_null)
    }

    /// Records names within a value as ignored.
    pub(super) fn ignore(&self, names: impl IntoIterator<Item = String>) {
        self.nested.borrow_mut().extend(names);
    }

    /// The field as text; `None` if it is absent or blank.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{name}: found {}; a string is expected", describe(other))),
        }
    }

    /// The field as a finite number.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{name}: found {}; a number is expected", describe(value))),
            },
        }
    }

    /// The fields that have not been read and are not empty.
    pub(super) fn unread(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let read = self.read.borrow().clone();
        self.all
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .filter(move |(name, value)| !read.contains(name) && !is_empty(value))
    }

    /// Lists the fields that were not read as ignored.
    ///
    /// # Errors
    /// A known column that would change the row's meaning.
    pub(super) fn finish(&self, purpose: Purpose, ignored: &mut Vec<String>) -> Result<(), String> {
        for (name, value) in self.all.iter().filter(|(name, _)| self.read.borrow().contains(&name.as_str())) {
            let keys = value.as_array().into_iter().flat_map(|list| ignored_keys(list));
            ignored.extend(keys.map(|key| format!("{name}[].{key}")));
        }
        ignored.append(&mut self.nested.borrow_mut());
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

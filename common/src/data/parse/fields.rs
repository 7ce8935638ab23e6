//! A record's fields, with a note of which have been read: a known column that nobody read is never dropped in silence.

use super::columns::{self, Purpose, Unread};
use super::turns::ignored_keys;
use super::value::{describe, is_blank, is_empty};
use serde_json::{Map, Value};
use std::cell::RefCell;

/// A null counts as absent: tables of several formats have one in every column that a row does not use.
pub(super) struct Fields<'a> {
    all: &'a Map<String, Value>,
    read: RefCell<Vec<&'a str>>,
    /// Names within the record's values that were left out, such as `completions[].model`.
    nested: RefCell<Vec<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(all: &'a Map<String, Value>) -> Self {
        Fields { all, read: RefCell::default(), nested: RefCell::default() }
    }

    /// The field, noted as read.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        let (name, value) = self.all.get_key_value(name).filter(|(_, value)| !value.is_null())?;
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
        self.all.get(name).is_some_and(|value| !value.is_null())
    }

    /// The field is there and holds something.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|value| !is_blank(value))
    }

    /// The field is there, and null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(Value::is_null)
    }

    /// Notes names within a value as left out.
    pub(super) fn leave_out(&self, names: impl IntoIterator<Item = String>) {
        self.nested.borrow_mut().extend(names);
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
            None => Ok(None),
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
            .filter(move |(name, value)| !read.contains(name) && !is_empty(value))
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

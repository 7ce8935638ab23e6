//! Checks of a job file's shape: they name unknown fields and wrong types by their path before protobuf's
//! JSON mapping sees them.

use serde_json::{Map, Number, Value};

use super::SpecError;
use super::check::{path, unknown_choice};
use super::contract::{self, Field, JOB_SPEC, Kind, fields, members, siblings};
use super::scheduling::Priority;
use super::source_lists;
use super::synonyms;

/// Checks `value` against `message` and returns it in the form that protobuf's JSON mapping reads: a single
/// value of a list field becomes a list of one, and a `oneof` given by the name of a member (`method: dpo`)
/// becomes that member without settings (`dpo: {}`). `null` stays, meaning the default.
pub(crate) fn normalize(at: &str, message: &str, value: Value) -> Result<Value, SpecError> {
    let object = match value {
        Value::Object(object) => object,
        Value::Null => return Ok(Value::Null),
        other => {
            let field = if at.is_empty() { "the job file" } else { at };
            return Err(SpecError::field(field, show(&other), "a block of fields (name: value)"));
        }
    };
    let mut checked = Map::new();
    for (name, value) in object {
        let members = members(message, &name);
        if !members.is_empty() {
            choose(at, &name, &members, &value, &mut checked)?;
            continue;
        }
        let at = path(at, &name);
        let Some(field) = fields(message).iter().find(|field| field.name == name) else {
            return Err(SpecError::Unknown { field: at, hint: synonyms::hint(message, &name) });
        };
        let value = match source_lists::is_list(message, &name) {
            true => field.normalize_sources(&at, value)?,
            false => field.normalize(&at, value)?,
        };
        // A member with settings may be given along with its own name.
        if !value.is_null() || !checked.contains_key(&name) {
            checked.insert(name, value);
        }
    }
    refuse_two_members(at, message, &checked)?;
    Ok(Value::Object(checked))
}

/// Puts the member that `value` names into `checked`; all members as null if it asks for the default.
fn choose(
    at: &str,
    oneof: &str,
    members: &[&str],
    value: &Value,
    checked: &mut Map<String, Value>,
) -> Result<(), SpecError> {
    match value {
        Value::Null => members.iter().for_each(|member| {
            checked.entry(*member).or_insert(Value::Null);
        }),
        Value::String(name) if members.contains(&name.as_str()) => {
            let member = checked.entry(name.as_str()).or_insert(Value::Null);
            if member.is_null() {
                *member = Value::Object(Map::new());
            }
        }
        Value::String(name) => return Err(unknown_choice(at, oneof, name, members)),
        other => {
            let expected = super::check::one_of(members);
            return Err(SpecError::field(&path(at, oneof), show(other), &expected));
        }
    }
    Ok(())
}

/// Refuses two members of one `oneof`.
fn refuse_two_members(at: &str, message: &str, checked: &Map<String, Value>) -> Result<(), SpecError> {
    let given = |name: &str| checked.get(name).is_some_and(|value| !value.is_null());
    for field in fields(message).iter().filter(|field| given(&field.name)) {
        let Some((oneof, others)) = siblings(message, &field.name) else { continue };
        if let Some(other) = others.into_iter().find(|other| given(other)) {
            let found = format!("{} and {other}", field.name);
            return Err(SpecError::field(&path(at, other), found, &format!("one {oneof}"))
                .advice("leave out the other"));
        }
    }
    Ok(())
}

/// Whether the dotted path names a field that holds text, so that `--set name=17` need not be quoted.
pub(crate) fn is_text(field: &str) -> bool {
    let mut message = JOB_SPEC;
    let mut names = field.split('.').peekable();
    while let Some(name) = names.next() {
        let found = contract::field(message, name);
        match found.map(|field| &field.kind) {
            Some(Kind::Message(next)) => message = next,
            Some(Kind::Text) => return names.peek().is_none() && found.is_some_and(|field| !field.repeated),
            Some(Kind::Map) => return names.peek().is_some(),
            None => return names.peek().is_none() && !members(message, name).is_empty(),
            _ => return false,
        }
    }
    false
}

/// Splits a dotted path into the names that lead to a value. A map's key is one name, even if it contains
/// dots.
pub(crate) fn names(field: &str) -> Vec<&str> {
    let (mut message, mut rest, mut names) = (JOB_SPEC, field, Vec::new());
    while let Some((name, below)) = rest.split_once('.') {
        names.push(name);
        rest = below;
        match contract::kind(message, name) {
            Some(Kind::Message(inner)) => message = inner,
            Some(Kind::Map) => break,
            _ => message = "",
        }
    }
    names.push(rest);
    names
}

impl Field {
    /// Like [`Self::normalize`], of a list whose entries may be data sources.
    fn normalize_sources(&self, at: &str, value: Value) -> Result<Value, SpecError> {
        let one = |at: &str, value: Value| match value {
            Value::Object(_) => source_lists::normalize(at, value),
            text => self.normalize_one(at, text),
        };
        match value {
            Value::Null => Ok(Value::Null),
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                items.map(|(index, item)| one(&format!("{at}[{index}]"), item)).collect()
            }
            single => Ok(Value::Array(vec![one(at, single)?])),
        }
    }

    fn normalize(&self, at: &str, value: Value) -> Result<Value, SpecError> {
        match (self.repeated, value) {
            (_, Value::Null) => Ok(Value::Null),
            (true, Value::Array(items)) => {
                let items = items.into_iter().enumerate();
                items.map(|(index, item)| self.normalize_one(&format!("{at}[{index}]"), item)).collect()
            }
            (true, single) => Ok(Value::Array(vec![self.normalize_one(at, single)?])),
            (false, single) => self.normalize_one(at, single),
        }
    }

    fn normalize_one(&self, at: &str, value: Value) -> Result<Value, SpecError> {
        match (&self.kind, value) {
            (Kind::Message(message), value) => normalize(at, message, value),
            (Kind::Text, value @ Value::String(_)) | (Kind::Flag, value @ Value::Bool(_)) => Ok(value),
            (Kind::Text, other) => {
                Err(SpecError::field(at, show(&other), "a text").advice("put it in quotes if it is one"))
            }
            (Kind::Flag, other) => Err(SpecError::field(at, show(&other), "true or false")),
            (Kind::Count, value) => count(at, &value),
            (Kind::Integer, value) => integer(at, &value),
            (Kind::Map, value) => map(at, value),
            (Kind::Real, value) => real(at, &value),
        }
    }
}

fn count(at: &str, value: &Value) -> Result<Value, SpecError> {
    let whole = match value {
        Value::Number(number) => number.as_u64().or_else(|| {
            // 1e3 is read as a float.
            number
                .as_f64()
                .filter(|real| real.fract() == 0.0 && (0.0..4e9).contains(real))
                .map(|real| real as u64)
        }),
        _ => None,
    };
    whole
        .filter(|count| u32::try_from(*count).is_ok())
        .map(Value::from)
        .ok_or_else(|| SpecError::field(at, show(value), "a whole number of at least 0"))
}

/// A whole number, or one of the names that a priority has.
fn integer(at: &str, value: &Value) -> Result<Value, SpecError> {
    let named = value.as_str().and_then(|name| Priority::named(name.trim()));
    let whole = named.map(|priority| i64::from(priority.value())).or_else(|| value.as_i64());
    whole
        .filter(|whole| i32::try_from(*whole).is_ok())
        .map(Value::from)
        .ok_or_else(|| SpecError::field(at, show(value), &Priority::expected()))
}

fn map(at: &str, value: Value) -> Result<Value, SpecError> {
    let Value::Object(entries) = value else {
        return Err(SpecError::field(at, show(&value), "a block of keys and texts (key: text)"));
    };
    // Null removes a key of the file.
    let is_text = |value: &Value| value.is_string() || value.is_null();
    match entries.iter().find(|(_, value)| !is_text(value)) {
        Some((key, other)) => {
            Err(SpecError::field(&path(at, key), show(other), "a text")
                .advice("put it in quotes if it is one"))
        }
        None => Ok(Value::Object(entries)),
    }
}

fn real(at: &str, value: &Value) -> Result<Value, SpecError> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        // YAML readers disagree on whether 1e-6 is a number; a user who types it means one.
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .and_then(Number::from_f64)
        .map(Value::Number)
        .ok_or_else(|| SpecError::field(at, show(value), "a number"))
}

fn show(value: &Value) -> String {
    match value {
        Value::Object(_) => "a block of fields".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        other => other.to_string(),
    }
}

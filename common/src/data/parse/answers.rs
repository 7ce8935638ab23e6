//! Golden answers and demonstrations.

use super::columns::Purpose;
use super::fields::Fields;
use super::turns::answer;
use super::value::describe;
use super::{Found, Wanted, prompt_columns};
use crate::data::rows::{DemonstrationRow, GoldenRow, Prompt};
use serde_json::{Map, Value};

impl Wanted for GoldenRow {
    const NAME: &'static str = "golden answers";
    const PURPOSE: Purpose = Purpose::Golden;

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        if let Some((prompt, golden)) = read(record, "golden", found)? {
            found.rows.push(GoldenRow { id: 0, prompt, golden });
        }
        Ok(())
    }
}

impl Wanted for DemonstrationRow {
    const NAME: &'static str = "demonstrations";
    const PURPOSE: Purpose = Purpose::Demonstrations;

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        if let Some((prompt, answer)) = read(record, "answer", found)? {
            found.rows.push(DemonstrationRow { id: 0, prompt, answer });
        }
        Ok(())
    }
}

/// Column names of a response; all are accepted for every data set of responses.
const NAMES: [&str; 5] = ["golden", "answer", "completion", "response", "output"];

/// The prompt and its response; `None` if the response is labeled undesirable.
fn read<T: Wanted>(
    record: &Value,
    wanted: &'static str,
    found: &mut Found<T>,
) -> Result<Option<(Prompt, String)>, String> {
    let Value::Object(all) = record else {
        return Err(format!("found {}; a prompt and its {wanted} are expected", describe(record)));
    };
    let fields = Fields::new(all);
    let is_good = label(&fields)?;
    let row = match candidate(&fields, wanted)? {
        None => dialogue(record, &fields, wanted)?,
        Some((name, value)) => {
            let Some(prompt) = prompt_columns::prompt(&fields, None)? else {
                return Err(format!("found {}; there is {name} but no prompt", describe(record)));
            };
            let value = first(name, value, found)?;
            let text = answer(name, value, &prompt)?;
            (prompt.prompt, text)
        }
    };
    fields.finish(T::PURPOSE, &mut found.ignored)?;
    if !is_good {
        found.undesirable += 1;
        return Ok(None);
    }
    Ok(Some(row))
}

/// KTO's label: whether the response is desirable.
fn label(fields: &Fields<'_>) -> Result<bool, String> {
    const NAMES: [&str; 2] = ["label", "kto_tag"];
    // A missing label in a labeled table: the response is not known to be desirable.
    if let Some(name) = NAMES.into_iter().find(|name| fields.is_null(name)) {
        return Err(format!(
            "{name}: found null; true or false is expected: leave the row out, or the column if responses have no label"
        ));
    }
    let Some((name, value)) = fields.first(NAMES) else { return Ok(true) };
    match (value, value.as_f64()) {
        (Value::Bool(good), _) => Ok(*good),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => Err(format!(
            "{name}: found {}; true or false is expected: rename the column if it is not a label of the response",
            describe(value)
        )),
    }
}

/// The column that holds the response: the one named `wanted`, or else the only one of the others.
fn candidate<'a>(
    fields: &Fields<'a>,
    wanted: &'static str,
) -> Result<Option<(&'static str, &'a Value)>, String> {
    if let Some(value) = fields.get(wanted) {
        return Ok(Some((wanted, value)));
    }
    let is_empty =
        |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
    let all = NAMES.into_iter().filter_map(|name| fields.get(name).map(|value| (name, value)));
    let (empty, given): (Vec<_>, Vec<_>) = all.partition(|(_, value)| is_empty(value));
    if let Some((one, first)) = given.first()
        && let Some((other, _)) = given.iter().find(|(_, value)| value != first)
    {
        return Err(format!("{one} and {other} both hold a response; keep one of them"));
    }
    Ok(given.into_iter().chain(empty).next())
}

/// The response itself, or the first of several (a list of strings, or an object keyed by their authors).
fn first<'a, T>(name: &str, value: &'a Value, found: &mut Found<T>) -> Result<&'a Value, String> {
    let (answers, count) = match value {
        Value::Object(fields) if !is_message(fields) => (fields.values().next(), fields.len()),
        Value::Array(list) if list.is_empty() || list[0].is_string() => (list.first(), list.len()),
        _ => return Ok(value),
    };
    let Some(answer) = answers else {
        return Err(format!("{name}: found {}; a response is expected", describe(value)));
    };
    found.spare_answers += count as u64 - 1;
    Ok(answer)
}

fn is_message(fields: &Map<String, Value>) -> bool {
    fields.contains_key("role") || fields.contains_key("from")
}

/// A conversation as a list of messages whose last one is the response.
fn dialogue(record: &Value, fields: &Fields<'_>, wanted: &str) -> Result<(Prompt, String), String> {
    match prompt_columns::conversation(fields)? {
        None => Err(format!("found {}; a prompt and its {wanted} are expected", describe(record))),
        Some((_, None)) => Err(format!("messages: the last message must be the assistant's, the {wanted}")),
        Some((_, Some(last))) if last.content.is_empty() => Err("messages: the response is empty".to_owned()),
        Some((prompt, Some(last))) => Ok((prompt.prompt, last.content)),
    }
}

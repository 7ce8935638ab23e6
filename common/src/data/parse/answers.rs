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

/// The names an answer goes by; all are accepted wherever an answer is wanted.
const NAMES: [&str; 5] = ["golden", "answer", "completion", "response", "output"];

/// The prompt and its answer; nothing where the answer is labelled as a bad one.
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

/// Whether the answer is a good one: KTO's label.
fn label(fields: &Fields<'_>) -> Result<bool, String> {
    const NAMES: [&str; 2] = ["label", "kto_tag"];
    // A table of labelled answers with one that has none: it is not known to be good.
    if let Some(name) = NAMES.into_iter().find(|name| fields.is_null(name)) {
        return Err(format!(
            "{name}: found null; true or false is expected: leave the row out, or the column where answers have no label"
        ));
    }
    let Some((name, value)) = fields.first(NAMES) else { return Ok(true) };
    match (value, value.as_f64()) {
        (Value::Bool(good), _) => Ok(*good),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => Err(format!(
            "{name}: found {}; true or false is expected: rename the column if it is no label of the answer",
            describe(value)
        )),
    }
}

/// The column that holds the answer: the one named as wanted, else the only one of the others.
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
        return Err(format!("{one} and {other} both hold an answer; keep one of them"));
    }
    Ok(given.into_iter().chain(empty).next())
}

/// The answer itself, or the first of several (in a list of strings, or named by who gave them).
fn first<'a, T>(name: &str, value: &'a Value, found: &mut Found<T>) -> Result<&'a Value, String> {
    let (answers, count) = match value {
        Value::Object(fields) if !is_message(fields) => (fields.values().next(), fields.len()),
        Value::Array(list) if list.is_empty() || list[0].is_string() => (list.first(), list.len()),
        _ => return Ok(value),
    };
    let Some(answer) = answers else {
        return Err(format!("{name}: found {}; an answer is expected", describe(value)));
    };
    found.spare_answers += count as u64 - 1;
    Ok(answer)
}

fn is_message(fields: &Map<String, Value>) -> bool {
    fields.contains_key("role") || fields.contains_key("from")
}

/// A dialogue in a list of messages, whose last turn is the answer.
fn dialogue(record: &Value, fields: &Fields<'_>, wanted: &str) -> Result<(Prompt, String), String> {
    match prompt_columns::conversation(fields)? {
        None => Err(format!("found {}; a prompt and its {wanted} are expected", describe(record))),
        Some((_, None)) => Err(format!("messages: the last message must be the assistant's, the {wanted}")),
        Some((_, Some(last))) if last.content.is_empty() => Err("messages: the answer is empty".to_owned()),
        Some((prompt, Some(last))) => Ok((prompt.prompt, last.content)),
    }
}

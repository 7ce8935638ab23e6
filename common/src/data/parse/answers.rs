//! Golden answers and demonstrations.

use super::turns::{ReadPrompt, answer, messages, prompt_field};
use super::{Found, Wanted, describe};
use crate::data::rows::{DemonstrationRow, GoldenRow, Prompt, Role};
use serde_json::{Map, Value};

impl Wanted for GoldenRow {
    const NAME: &'static str = "golden answers";

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let (prompt, golden) = read(record, "golden", found)?;
        found.rows.push(GoldenRow { id: 0, prompt, golden });
        Ok(())
    }
}

impl Wanted for DemonstrationRow {
    const NAME: &'static str = "demonstrations";

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let (prompt, answer) = read(record, "answer", found)?;
        found.rows.push(DemonstrationRow { id: 0, prompt, answer });
        Ok(())
    }
}

/// The names an answer goes by; all are accepted wherever an answer is wanted.
const NAMES: [&str; 5] = ["golden", "answer", "completion", "response", "output"];

fn read<T>(record: &Value, wanted: &str, found: &mut Found<T>) -> Result<(Prompt, String), String> {
    let Value::Object(fields) = record else {
        return Err(format!("found {}; a prompt and its {wanted} are expected", describe(record)));
    };
    let names = std::iter::once(wanted).chain(NAMES);
    let Some((name, value)) = names.into_iter().find_map(|name| fields.get(name).map(|value| (name, value)))
    else {
        return dialogue(record, fields, wanted);
    };
    let Some(prompt) = prompt_field(fields)? else {
        return Err(format!("found {}; there is {name} but no prompt", describe(record)));
    };
    let value = first(name, value, found)?;
    let text = answer(name, value, &prompt)?;
    Ok((prompt.prompt, text))
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
fn dialogue(record: &Value, fields: &Map<String, Value>, wanted: &str) -> Result<(Prompt, String), String> {
    let named = ["messages", "conversations"].into_iter().find(|name| fields.contains_key(*name));
    let Some((name, Value::Array(list))) = named.map(|name| (name, &fields[name])) else {
        return Err(format!("found {}; a prompt and its {wanted} are expected", describe(record)));
    };
    let mut turns = messages(list).map_err(|what| format!("{name}: {what}"))?;
    match turns.pop() {
        Some(last) if last.role == Role::Assistant && !last.content.is_empty() => {
            let prompt = ReadPrompt::of_messages(turns).map_err(|what| format!("{name}: {what}"))?;
            Ok((prompt.prompt, last.content))
        }
        Some(last) if last.role == Role::Assistant => Err(format!("{name}: the answer is empty")),
        Some(_) | None => Err(format!("{name}: the last message must be the assistant's, the {wanted}")),
    }
}

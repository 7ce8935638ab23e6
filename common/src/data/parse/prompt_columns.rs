//! The prompt of a record, from any of the columns that may hold it.

use super::columns::{self, Kind, Purpose};
use super::fields::Fields;
use super::turns::{ReadPrompt, messages};
use super::value::describe;
use crate::data::rows::{Message, Prompt, Role};
use serde_json::Value;

/// The prompt in the columns of a record: the `turns` that compared responses share, a list of messages, or a
/// dedicated column. `None` if the record has none.
pub(super) fn prompt(fields: &Fields<'_>, turns: Option<Vec<Message>>) -> Result<Option<ReadPrompt>, String> {
    let found = match turns {
        Some(turns) => Some(ReadPrompt::of_messages(turns)?),
        None => match listed(fields)? {
            Some((name, turns)) => {
                Some(ReadPrompt::of_messages(turns).map_err(|what| format!("{name}: {what}"))?)
            }
            None => named(fields)?,
        },
    };
    found.map(|found| found.try_map(|prompt| in_context(prompt, fields))).transpose()
}

/// A list of messages: the prompt, and the response if the list ends with one.
pub(super) fn conversation(fields: &Fields<'_>) -> Result<Option<(ReadPrompt, Option<Message>)>, String> {
    let Some((name, mut turns)) = listed(fields)? else { return Ok(None) };
    let answer = turns.pop_if(|last| last.role == Role::Assistant);
    let prompt = ReadPrompt::of_messages(turns).map_err(|what| format!("{name}: {what}"))?;
    Ok(Some((prompt.try_map(|prompt| in_context(prompt, fields))?, answer)))
}

/// The column of messages, if there is one.
fn listed(fields: &Fields<'_>) -> Result<Option<(&'static str, Vec<Message>)>, String> {
    let Some(name) = ["conversations", "messages"].into_iter().find(|name| fields.holds(name)) else {
        return Ok(None);
    };
    let value = fields.get(name).unwrap_or(&Value::Null);
    let Value::Array(list) = value else {
        return Err(format!("{name}: found {}; a list of messages is expected", describe(value)));
    };
    messages(list).map(|turns| Some((name, turns))).map_err(|what| format!("{name}: {what}"))
}

/// A column that holds a prompt.
fn named(fields: &Fields<'_>) -> Result<Option<ReadPrompt>, String> {
    if let Some((name, value)) = fields.first(["prompt", "query", "question"]) {
        return ReadPrompt::of_value(value).map(Some).map_err(|what| format!("{name}: {what}"));
    }
    if let Some(instruction) = fields.get("instruction") {
        let Some(text) = instruction.as_str() else {
            return Err(format!("instruction: found {}; a string is expected", describe(instruction)));
        };
        let mut text = text.to_owned();
        for name in ["input", "context"] {
            if let Some(more) = fields.text(name)? {
                text = format!("{text}\n\n{more}");
            }
        }
        return ReadPrompt::of_text(&text).map(Some).map_err(|what| format!("instruction: {what}"));
    }
    match fields.get("input") {
        None => Ok(None),
        Some(Value::Object(input)) => {
            let input = Fields::new(input);
            let Some((name, turns)) = listed(&input).map_err(|what| format!("input.{what}"))? else {
                return Err("input: no messages; an object with messages is expected".to_owned());
            };
            let mut ignored = Vec::new();
            input.finish(Purpose::Prompts, &mut ignored).map_err(|what| format!("input.{what}"))?;
            fields.ignore(ignored.into_iter().map(|name| format!("input.{name}")));
            ReadPrompt::of_messages(turns).map(Some).map_err(|what| format!("input.{name}: {what}"))
        }
        Some(value) => ReadPrompt::of_value(value).map(Some).map_err(|what| format!("input: {what}")),
    }
}

/// The prompt preceded by the record's system turn and history.
pub(super) fn in_context(mut prompt: Prompt, fields: &Fields<'_>) -> Result<Prompt, String> {
    let messages = &mut prompt.messages;
    let system_turns = usize::from(messages.first().is_some_and(|first| first.role == Role::System));
    if let Some(history) = fields.given("history") {
        let turns = history_turns(history).map_err(|what| format!("history: {what}"))?;
        messages.splice(system_turns..system_turns, turns);
    }
    for name in ["system", "system_prompt"] {
        let Some(system) = fields.text(name)? else { continue };
        match messages.first() {
            Some(first) if first.role == Role::System && first.content.trim() == system.trim() => {}
            Some(first) if first.role == Role::System => {
                return Err(format!("{name}: the prompt has another system turn already; keep one of them"));
            }
            _ => messages.insert(0, Message::new(Role::System, system)),
        }
    }
    mark_agreeing(fields, &prompt);
    Ok(prompt)
}

/// `[user, assistant]` pairs, or messages.
fn history_turns(history: &Value) -> Result<Vec<Message>, String> {
    let unexpected = |found: &Value| {
        format!("found {}; a list of [user, assistant] pairs or of messages is expected", describe(found))
    };
    let Value::Array(list) = history else { return Err(unexpected(history)) };
    if list.iter().all(Value::is_object) {
        return messages(list);
    }
    let mut turns = Vec::with_capacity(2 * list.len());
    for exchange in list {
        let Some([Value::String(user), Value::String(assistant)]) = exchange.as_array().map(Vec::as_slice)
        else {
            return Err(unexpected(exchange));
        };
        turns.push(Message::new(Role::User, user.as_str()));
        turns.push(Message::new(Role::Assistant, assistant.as_str()));
    }
    Ok(turns)
}

/// Marks the other prompt columns that agree with `prompt` as read; those that disagree will be refused.
fn mark_agreeing(fields: &Fields<'_>, prompt: &Prompt) {
    let same: Vec<&str> = fields
        .unread()
        .filter(|(name, _)| columns::find(name).is_some_and(|column| column.kind == Kind::Prompt))
        .filter(|(_, value)| agrees(value, prompt))
        .map(|(name, _)| name)
        .collect();
    for name in same {
        fields.get(name);
    }
}

/// Whether the value is one of the prompt's user turns, all of its turns, or those and a response.
fn agrees(value: &Value, prompt: &Prompt) -> bool {
    match value {
        Value::String(text) => {
            let users = prompt.messages.iter().filter(|turn| turn.role == Role::User);
            users.map(|turn| turn.content.trim()).any(|turn| turn == text.trim())
                || ReadPrompt::of_text(text).is_ok_and(|other| other.prompt == *prompt)
        }
        Value::Array(list) => messages(list).is_ok_and(|turns| {
            let length = prompt.messages.len();
            turns.starts_with(&prompt.messages)
                && turns.len() <= length + 1
                && turns.get(length).is_none_or(|last| last.role == Role::Assistant)
        }),
        _ => false,
    }
}

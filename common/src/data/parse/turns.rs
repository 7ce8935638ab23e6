//! Lists of messages, and the fields that hold a prompt or an answer.

use super::{describe, dialogue};
use crate::data::rows::{Message, Prompt, Role};
use serde_json::{Map, Value};

/// A prompt, and whether answers to it lose the white space around them.
pub(super) struct ReadPrompt {
    pub(super) prompt: Prompt,
    pub(super) trim: bool,
    /// The string it was read from, where answers may repeat it.
    text: Option<String>,
}

impl ReadPrompt {
    pub(super) fn of_messages(messages: Vec<Message>) -> Result<Self, String> {
        Ok(ReadPrompt { prompt: check_prompt(messages)?, trim: true, text: None })
    }
}

/// The turns as a prompt, where they can be one.
pub(super) fn check_prompt(messages: Vec<Message>) -> Result<Prompt, String> {
    match messages.last() {
        None => Err("the prompt has no turns; at least one user turn is expected".to_owned()),
        Some(last) if last.role != Role::User => Err(format!(
            "the prompt ends with the {}'s turn; it must end with the user's",
            last.role.as_str()
        )),
        Some(last) if last.content.trim().is_empty() => {
            Err("the prompt's last turn is empty; a text to answer is expected".to_owned())
        }
        Some(_) => Ok(Prompt { messages }),
    }
}

/// The record's prompt field, under any of its names; `None` where it has none.
pub(super) fn prompt_field(record: &Map<String, Value>) -> Result<Option<ReadPrompt>, String> {
    let named = ["prompt", "query"].into_iter().find_map(|name| record.get(name).map(|value| (name, value)));
    if let Some((name, value)) = named {
        return prompt(value).map(Some).map_err(|what| format!("{name}: {what}"));
    }
    let Some(instruction) = record.get("instruction") else {
        return Ok(None);
    };
    let text = instruction
        .as_str()
        .ok_or_else(|| format!("instruction: found {}; a string is expected", describe(instruction)))?;
    let text = match record.get("input").and_then(Value::as_str) {
        Some(input) if !input.trim().is_empty() => format!("{text}\n\n{input}"),
        _ => text.to_owned(),
    };
    text_prompt(&text).map(Some).map_err(|what| format!("instruction: {what}"))
}

/// A prompt given as a string or as a list of messages.
pub(super) fn prompt(value: &Value) -> Result<ReadPrompt, String> {
    match value {
        Value::String(text) => text_prompt(text),
        Value::Array(list) => ReadPrompt::of_messages(messages(list)?),
        other => Err(format!("found {}; a string or a list of messages is expected", describe(other))),
    }
}

fn text_prompt(text: &str) -> Result<ReadPrompt, String> {
    match dialogue::prompt(text) {
        Some(prompt) => Ok(ReadPrompt { prompt: prompt?, trim: true, text: Some(text.to_owned()) }),
        None => {
            let prompt = check_prompt(vec![Message::new(Role::User, text)])?;
            Ok(ReadPrompt { prompt, trim: false, text: None })
        }
    }
}

/// The answer that `value` gives to the prompt: a string, a message, or a list of messages that may repeat the prompt.
pub(super) fn answer(name: &str, value: &Value, to: &ReadPrompt) -> Result<String, String> {
    let text = match value {
        Value::String(text) => match &to.text {
            Some(prompt) => text.strip_prefix(prompt.as_str()).unwrap_or(text).to_owned(),
            None => text.clone(),
        },
        Value::Object(_) => assistant(name, message(value).map_err(|what| format!("{name}: {what}"))?)?,
        Value::Array(list) => {
            let mut turns = messages(list).map_err(|what| format!("{name}: {what}"))?;
            if turns.starts_with(&to.prompt.messages) {
                turns.drain(..to.prompt.messages.len());
            }
            let count = turns.len();
            match (turns.pop(), count) {
                (Some(last), 1) => assistant(name, last)?,
                _ => {
                    return Err(format!(
                        "{name}: found {count} messages after the prompt; one assistant message is expected"
                    ));
                }
            }
        }
        other => {
            return Err(format!(
                "{name}: found {}; a string or a list of messages is expected",
                describe(other)
            ));
        }
    };
    let text = if to.trim { text.trim().to_owned() } else { text };
    if text.trim().is_empty() {
        return Err(format!("{name}: the answer is empty"));
    }
    Ok(text)
}

fn assistant(name: &str, message: Message) -> Result<String, String> {
    match message.role {
        Role::Assistant => Ok(message.content),
        other => {
            Err(format!("{name}: the answer is the {}'s turn; the assistant's is expected", other.as_str()))
        }
    }
}

/// A list of `{role, content}` or `{from, value}` turns.
pub(super) fn messages(list: &[Value]) -> Result<Vec<Message>, String> {
    list.iter()
        .enumerate()
        .map(|(index, value)| message(value).map_err(|what| format!("message {index}: {what}")))
        .collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(fields) = value else {
        return Err(format!("found {}; an object with role and content is expected", describe(value)));
    };
    let role = fields.get("role").or_else(|| fields.get("from"));
    let content = fields.get("content").or_else(|| fields.get("value"));
    let (Some(role), Some(content)) = (role, content) else {
        return Err(format!("found {}; role and content (or from and value) are expected", describe(value)));
    };
    let role = match role.as_str() {
        Some("system") => Role::System,
        Some("user" | "human") => Role::User,
        Some("assistant" | "gpt" | "model") => Role::Assistant,
        _ => return Err(format!("role: found {}; system, user or assistant is expected", describe(role))),
    };
    match content {
        Value::String(text) => Ok(Message::new(role, text.trim())),
        other => Err(format!("content: found {}; a string is expected", describe(other))),
    }
}

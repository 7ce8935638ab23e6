//! Lists of messages, and prompts with the responses to them.

use super::dialogue::{self, Form, check_prompt};
use super::records::json::has_many_values;
use super::value::{describe, excerpt, is_empty};
use crate::data::rows::{Message, Prompt, Role};
use serde_json::{Map, Value};

/// A prompt, and how the responses to it are read.
#[derive(Debug)]
pub(super) struct ReadPrompt {
    pub(super) prompt: Prompt,
    responses: ResponseForm,
}

#[derive(Debug)]
enum ResponseForm {
    /// Verbatim.
    Exact,
    /// Turns of a dialogue in one text; an answer may repeat the prompt.
    Turns { text: String, form: Form },
}

impl ReadPrompt {
    pub(super) fn of_messages(messages: Vec<Message>) -> Result<Self, String> {
        Ok(ReadPrompt { prompt: check_prompt(messages)?, responses: ResponseForm::Exact })
    }

    pub(super) fn of_text(text: &str) -> Result<Self, String> {
        refuse_written_messages(text)?;
        match dialogue::prompt(text) {
            Some(read) => {
                let (prompt, form) = read?;
                Ok(ReadPrompt { prompt, responses: ResponseForm::Turns { text: text.to_owned(), form } })
            }
            None => {
                let prompt = check_prompt(vec![Message::new(Role::User, text)])?;
                Ok(ReadPrompt { prompt, responses: ResponseForm::Exact })
            }
        }
    }

    /// A string or a list of messages.
    pub(super) fn of_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::of_text(text),
            Value::Array(list) => Self::of_messages(messages(list)?),
            other => Err(format!("found {}; a string or a list of messages is expected", describe(other))),
        }
    }

    pub(super) fn try_map(
        self,
        change: impl FnOnce(Prompt) -> Result<Prompt, String>,
    ) -> Result<Self, String> {
        Ok(ReadPrompt { prompt: change(self.prompt)?, responses: self.responses })
    }

    /// The text of a response to this prompt.
    pub(super) fn answer(&self, name: &str, text: &str) -> Result<String, String> {
        let text = match &self.responses {
            ResponseForm::Exact => text.to_owned(),
            ResponseForm::Turns { text: prompt, form } => {
                form.answer(name, text.strip_prefix(prompt.as_str()).unwrap_or(text))?
            }
        };
        if text.trim().is_empty() {
            return Err(format!("{name}: the response is empty"));
        }
        refuse_written_messages(&text).map_err(|what| format!("{name}: {what}"))?;
        Ok(text)
    }
}

/// Refuses messages that a table stores as text, in JSON or Python notation: the model would read their
/// brackets.
fn refuse_written_messages(text: &str) -> Result<(), String> {
    let text = text.trim();
    let is_python =
        ["[{'role'", "[{'content'", "[{'from'", "[{'value'"].iter().any(|start| text.starts_with(start))
            && text.ends_with("}]");
    let is_json = (text.starts_with('[') || text.starts_with('{'))
        && !has_many_values(text.as_bytes())
        && serde_json::from_str::<Value>(text).is_ok_and(|value| match &value {
            Value::Array(list) => !list.is_empty() && list.iter().all(is_message),
            other => is_message(other),
        });
    if is_python || is_json {
        return Err(format!(
            "found messages written as a text, {:?}; a list of messages is expected: write it as JSON, without quotes around it",
            excerpt(text, 40)
        ));
    }
    Ok(())
}

fn is_message(value: &Value) -> bool {
    let has = |one, other| value.get(one).is_some_and(Value::is_string) && value.get(other).is_some();
    has("role", "content") || has("from", "value")
}

/// The response in `value`: a string, a message, or a list of messages that may repeat the prompt.
pub(super) fn answer(name: &str, value: &Value, to: &ReadPrompt) -> Result<String, String> {
    let in_field = |what| format!("{name}: {what}");
    match value {
        Value::String(text) => to.answer(name, text),
        Value::Object(_) => {
            let message = messages(std::slice::from_ref(value)).map_err(in_field)?.pop();
            to.answer(name, &assistant(name, message)?)
        }
        Value::Array(list) => {
            let mut turns = messages(list).map_err(in_field)?;
            let prompt = &to.prompt.messages;
            // The system turn may be in a separate column.
            let said = prompt.strip_prefix(system_turns(prompt)).unwrap_or(prompt);
            let repeated = [prompt.as_slice(), said].into_iter().find(|turns_of| turns.starts_with(turns_of));
            turns.drain(..repeated.map_or(0, <[Message]>::len));
            if turns.len() != 1 {
                return Err(format!(
                    "{name}: found {} messages after the prompt; one assistant message is expected",
                    turns.len()
                ));
            }
            to.answer(name, &assistant(name, turns.pop())?)
        }
        other => {
            Err(format!("{name}: found {}; a string or a list of messages is expected", describe(other)))
        }
    }
}

/// The system turn at the start, if there is one.
fn system_turns(messages: &[Message]) -> &[Message] {
    let has_system = messages.first().is_some_and(|first| first.role == Role::System);
    &messages[..usize::from(has_system)]
}

fn assistant(name: &str, message: Option<Message>) -> Result<String, String> {
    match message {
        Some(Message { role: Role::Assistant, content }) => Ok(content),
        Some(Message { role, .. }) => {
            Err(format!("{name}: the response is the {}'s turn; the assistant's is expected", role.as_str()))
        }
        None => Err(format!("{name}: the response is empty")),
    }
}

/// A list of `{role, content}` or `{from, value}` turns.
pub(super) fn messages(list: &[Value]) -> Result<Vec<Message>, String> {
    let turns: Vec<Message> = list
        .iter()
        .enumerate()
        .map(|(index, value)| message(value).map_err(|what| format!("message {index}: {what}")))
        .collect::<Result<_, _>>()?;
    // Only the last turn is trained on, so weights of other turns have no effect.
    if let (Some(Value::Object(fields)), Some(turn)) = (list.last(), turns.last())
        && turn.role == Role::Assistant
        && let Some(name) = ["weight", "train"].into_iter().find(|name| {
            let weight = fields.get(*name);
            weight.is_some_and(|weight| weight.as_f64() == Some(0.0) || weight.as_bool() == Some(false))
        })
    {
        let index = list.len() - 1;
        return Err(format!(
            "message {index}: {name}: the response must not be trained on; leave the row out"
        ));
    }
    Ok(turns)
}

/// Unsupported parts of a message, which would change what the model reads.
const UNSUPPORTED: [&str; 10] = [
    "tool_calls",
    "function_call",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "audio",
    "images",
    "tools",
];

fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(fields) = value else {
        return Err(format!("found {}; an object with role and content is expected", describe(value)));
    };
    let named = |names: [&str; 2]| names.into_iter().find_map(|name| fields.get(name));
    let Some(speaker) = named(["role", "from"]) else {
        return Err(format!("found {}; role and content (or from and value) are expected", describe(value)));
    };
    let role = role(speaker)?;
    if let Some(name) =
        UNSUPPORTED.into_iter().find(|name| fields.get(*name).is_some_and(|part| !is_empty(part)))
    {
        return Err(format!("{name}: only the text of messages is supported; leave the row out"));
    }
    match named(["content", "value"]) {
        Some(content) => Ok(Message::new(role, text_of(content)?)),
        None => Err(format!("found {}; role and content (or from and value) are expected", describe(value))),
    }
}

fn role(value: &Value) -> Result<Role, String> {
    let expected = |advice: &str| Err(format!("role: found {}; {advice}", describe(value)));
    let Some(name) = value.as_str() else {
        return expected("system, user or assistant is expected");
    };
    match name.to_ascii_lowercase().as_str() {
        "system" | "developer" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" | "model" | "chatgpt" | "bing" | "bard" => Ok(Role::Assistant),
        "tool" | "function" | "observation" | "function_call" | "tool_call" | "function_response"
        | "tool_response" | "ipython" => {
            expected("tools are not supported; system, user or assistant is expected, or leave the row out")
        }
        _ => expected("system, user or assistant is expected"),
    }
}

/// A message's text: a string, or a list of parts that are all text.
fn text_of(content: &Value) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(index, part)| {
                part_text(part)
                    .map_err(|what| format!("content: part {index}: {what}; only text is supported"))
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
        }
        other => Err(format!("content: found {}; a string is expected", describe(other))),
    }
}

fn part_text(part: &Value) -> Result<&str, String> {
    let typed = |fields: &Map<String, Value>| fields.get("type").and_then(Value::as_str).map(str::to_owned);
    match part {
        Value::String(text) => Ok(text),
        Value::Object(fields) => match (typed(fields).as_deref(), fields.get("text")) {
            (None | Some("text" | "input_text" | "output_text"), Some(Value::String(text))) => Ok(text),
            (Some(kind), _) => Err(format!("found type {:?}", excerpt(kind, 40))),
            (None, _) => Err(format!("found {}", describe(part))),
        },
        other => Err(format!("found {}", describe(other))),
    }
}

/// Keys of messages that are read or have no effect.
const READ: [&str; 6] = ["role", "from", "content", "value", "weight", "train"];

/// Ignored keys of messages, such as the author's name.
pub(super) fn ignored_keys(list: &[Value]) -> impl Iterator<Item = &str> {
    let messages = list.iter().filter_map(Value::as_object);
    let messages = messages.filter(|fields| fields.contains_key("role") || fields.contains_key("from"));
    messages
        .flat_map(Map::iter)
        .filter(|(key, value)| !READ.contains(&key.as_str()) && !is_empty(value))
        .map(|(key, _)| key.as_str())
}

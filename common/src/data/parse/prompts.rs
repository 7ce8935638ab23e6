//! The prompts of any accepted record.

use super::preference::{compared, texts};
use super::turns::{ReadPrompt, messages, prompt, prompt_field};
use super::{Found, Wanted, describe, dialogue};
use crate::data::rows::{Message, Prompt, PromptRow, Role};
use serde_json::{Map, Value};

impl Wanted for PromptRow {
    const NAME: &'static str = "prompts";

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let prompt = match record {
            Value::String(_) => prompt(record)?.prompt,
            Value::Object(fields) => of_fields(record, fields)?,
            other => return Err(format!("found {}; a prompt is expected", describe(other))),
        };
        found.rows.push(PromptRow { id: 0, prompt });
        Ok(())
    }
}

fn of_fields(record: &Value, fields: &Map<String, Value>) -> Result<Prompt, String> {
    if let Some(prompt) = prompt_field(fields)? {
        return Ok(prompt.prompt);
    }
    if let (Some(chosen), Some(rejected)) = (fields.get("chosen"), fields.get("rejected")) {
        return texts(fields, chosen, rejected).map(|(prompt, ..)| prompt);
    }
    if let Some(Value::Array(list)) = fields.get("messages").or_else(|| fields.get("conversations")) {
        let turns = before_answer(messages(list)?);
        return ReadPrompt::of_messages(turns).map(|prompt| prompt.prompt);
    }
    if let Some(Value::Array(list)) = fields.get("text") {
        return match list.as_slice() {
            [Value::String(first), Value::String(second), ..] => {
                compared(first, second).map(|(prompt, ..)| prompt)
            }
            [Value::String(only)] => dialogue::whole(only)
                .unwrap_or_else(|| Err("text: \"\\n\\nHuman:\" is expected at the start".to_owned()))
                .map(|(prompt, _)| prompt),
            _ => Err("text: a list of strings is expected".to_owned()),
        };
    }
    Err(format!("found {}; a prompt is expected", describe(record)))
}

fn before_answer(mut turns: Vec<Message>) -> Vec<Message> {
    if turns.last().is_some_and(|last| last.role == Role::Assistant) {
        turns.pop();
    }
    turns
}

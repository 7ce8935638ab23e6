//! Sets of prompts only, from any record that has a prompt.

use super::columns::Purpose;
use super::comparison::{self, Comparison};
use super::fields::Fields;
use super::turns::ReadPrompt;
use super::value::describe;
use super::{Found, Wanted, benchmarks, dialogue, prompt_columns, scored};
use crate::data::rows::{Prompt, PromptRow};
use serde_json::Value;

impl Wanted for PromptRow {
    const NAME: &'static str = "prompts";
    const PURPOSE: Purpose = Purpose::Prompts;

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let prompt = match record {
            Value::String(_) => ReadPrompt::of_value(record)?.prompt,
            Value::Object(fields) => {
                let fields = Fields::new(fields);
                let prompt = of_any(record, &fields)?;
                fields.finish(Self::PURPOSE, &mut found.ignored)?;
                prompt
            }
            other => return Err(format!("found {}; a prompt is expected", describe(other))),
        };
        found.rows.push(PromptRow { id: 0, prompt });
        Ok(())
    }
}

/// The prompt of any accepted record.
fn of_any(record: &Value, fields: &Fields<'_>) -> Result<Prompt, String> {
    if let Some(prompt) = benchmarks::prompt(fields)? {
        return Ok(prompt);
    }
    if let Some(comparison) = Comparison::of(fields) {
        return comparison::read(fields, comparison).map(|pair| pair.prompt);
    }
    if let Some(prompt) = scored::prompt(fields)? {
        return Ok(prompt);
    }
    if let Some((prompt, _)) = prompt_columns::conversation(fields)? {
        return Ok(prompt.prompt);
    }
    if let Some(prompt) = prompt_columns::prompt(fields, None)? {
        return Ok(prompt.prompt);
    }
    match fields.get("text").and_then(Value::as_array).map(Vec::as_slice) {
        Some([Value::String(only)]) => dialogue::whole(only)
            .unwrap_or_else(|| Err("text: \"\\n\\nHuman:\" is expected at the start".to_owned()))
            .map(|(prompt, _)| prompt),
        _ => Err(format!("found {}; a prompt is expected", describe(record))),
    }
}

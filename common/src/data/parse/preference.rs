//! Preference pairs in their various forms.

use super::turns::{ReadPrompt, answer, messages, prompt_field};
use super::{Found, Wanted, describe, dialogue};
use crate::data::rows::{Message, PairRow, Prompt, Role};
use serde_json::{Map, Value};

impl Wanted for PairRow {
    const NAME: &'static str = "preference pairs";

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let Value::Object(fields) = record else {
            return Err(format!("found {}; {EXPECTED}", describe(record)));
        };
        if let (Some(Value::Array(texts)), Some(scores)) = (fields.get("text"), scores(fields)) {
            return compare(texts, scores, found);
        }
        let (Some(chosen), Some(rejected)) = (fields.get("chosen"), fields.get("rejected")) else {
            return Err(format!("found {}; {EXPECTED}", describe(record)));
        };
        let (prompt, chosen, rejected) = texts(fields, chosen, rejected)?;
        found.rows.push(row(prompt, chosen, rejected, margin(fields)?)?);
        Ok(())
    }
}

const EXPECTED: &str = "a pair has chosen and rejected, and a prompt unless they are whole dialogues";

/// The prompt and the two answers of a record with `chosen` and `rejected`.
pub(super) fn texts(
    fields: &Map<String, Value>,
    chosen: &Value,
    rejected: &Value,
) -> Result<(Prompt, String, String), String> {
    let prompt = match conversation(fields)? {
        Some(prompt) => Some(prompt),
        None => match shared_turns(chosen, rejected)? {
            Some(turns) => Some(ReadPrompt::of_messages(turns)?),
            None => prompt_field(fields)?,
        },
    };
    let Some(prompt) = prompt else {
        return implicit(chosen, rejected);
    };
    let chosen = answer("chosen", chosen, &prompt)?;
    let rejected = answer("rejected", rejected, &prompt)?;
    Ok((prompt.prompt, chosen, rejected))
}

/// The prompt in a ShareGPT record's `conversations` (and `system`).
fn conversation(fields: &Map<String, Value>) -> Result<Option<ReadPrompt>, String> {
    let Some(value) = fields.get("conversations") else {
        return Ok(None);
    };
    let Value::Array(list) = value else {
        return Err(format!("conversations: found {}; a list of messages is expected", describe(value)));
    };
    let mut turns = messages(list).map_err(|what| format!("conversations: {what}"))?;
    if let Some(system) = fields.get("system").and_then(Value::as_str).map(str::trim)
        && !system.is_empty()
        && turns.first().is_none_or(|first| first.role != Role::System)
    {
        turns.insert(0, Message::new(Role::System, system));
    }
    ReadPrompt::of_messages(turns).map(Some).map_err(|what| format!("conversations: {what}"))
}

/// The turns before the answers, where both are lists that hold them.
fn shared_turns(chosen: &Value, rejected: &Value) -> Result<Option<Vec<Message>>, String> {
    let (Value::Array(chosen), Value::Array(rejected)) = (chosen, rejected) else {
        return Ok(None);
    };
    if chosen.len() < 2 || rejected.len() < 2 {
        return Ok(None);
    }
    let mut turns = messages(chosen).map_err(|what| format!("chosen: {what}"))?;
    let mut others = messages(rejected).map_err(|what| format!("rejected: {what}"))?;
    turns.pop();
    others.pop();
    if turns != others {
        return Err(
            "chosen and rejected part before their last message; they must share their prompt".to_owned()
        );
    }
    Ok(Some(turns))
}

/// The prompt that two whole dialogues share.
fn implicit(chosen: &Value, rejected: &Value) -> Result<(Prompt, String, String), String> {
    for (name, value) in [("chosen", chosen), ("rejected", rejected)] {
        match value {
            Value::String(text) if text.trim().is_empty() => {
                return Err(format!("{name}: the answer is empty"));
            }
            Value::String(_) => {}
            other => {
                return Err(format!(
                    "{name}: found {}; a string is expected, or a list of messages with its prompt",
                    describe(other)
                ));
            }
        }
    }
    let (chosen, rejected) = (chosen.as_str().unwrap_or_default(), rejected.as_str().unwrap_or_default());
    dialogue::pair(chosen, rejected).unwrap_or_else(|| {
        Err("there is no prompt, and chosen and rejected do not start with \"\\n\\nHuman:\"; \
             give a prompt or whole dialogues"
            .to_owned())
    })
}

fn margin(fields: &Map<String, Value>) -> Result<Option<f64>, String> {
    match fields.get("margin") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(margin) if margin.is_finite() && margin >= 0.0 => Ok(Some(margin)),
            _ => Err(format!("margin: found {}; a number from 0 on is expected", describe(value))),
        },
    }
}

fn scores(fields: &Map<String, Value>) -> Option<&Value> {
    fields.get("score").or_else(|| fields.get("scores"))
}

/// A pair for every two texts whose scores differ; the margin is their difference.
fn compare(texts: &[Value], scores: &Value, found: &mut Found<PairRow>) -> Result<(), String> {
    let texts: Vec<&str> = texts
        .iter()
        .map(|text| {
            text.as_str().ok_or_else(|| format!("text: found {}; strings are expected", describe(text)))
        })
        .collect::<Result<_, _>>()?;
    let Value::Array(scores) = scores else {
        return Err(format!("score: found {}; a list of numbers is expected", describe(scores)));
    };
    let scores: Vec<f64> = scores
        .iter()
        .map(|score| {
            let number = score.as_f64().filter(|number| number.is_finite());
            number.ok_or_else(|| format!("score: found {}; finite numbers are expected", describe(score)))
        })
        .collect::<Result<_, _>>()?;
    if texts.len() != scores.len() || texts.len() < 2 {
        return Err(format!(
            "found {} texts and {} scores; two or more texts with a score each are expected",
            texts.len(),
            scores.len()
        ));
    }
    for second in 1..texts.len() {
        for first in 0..second {
            let margin = scores[first] - scores[second];
            if margin == 0.0 {
                found.ties += 1;
                continue;
            }
            let (better, worse) = if margin > 0.0 { (first, second) } else { (second, first) };
            let (prompt, chosen, rejected) = compared(texts[better], texts[worse])?;
            found.rows.push(row(prompt, chosen, rejected, Some(margin.abs()))?);
        }
    }
    Ok(())
}

/// The separator of query and answer in comparison files.
const SEPARATOR: &str = "<sep>";

pub(super) fn compared(better: &str, worse: &str) -> Result<(Prompt, String, String), String> {
    if let (Some((query, chosen)), Some((other, rejected))) =
        (better.split_once(SEPARATOR), worse.split_once(SEPARATOR))
    {
        if query != other {
            return Err("the texts before <sep> differ; compared texts must share their query".to_owned());
        }
        let prompt = super::turns::prompt(&Value::String(query.to_owned()))?;
        let trim = |text: &str| if prompt.trim { text.trim().to_owned() } else { text.to_owned() };
        return Ok((prompt.prompt, trim(chosen), trim(rejected)));
    }
    dialogue::pair(better, worse).unwrap_or_else(|| {
        Err("the texts are neither dialogues (\"\\n\\nHuman:\", \"## Human:\") nor query<sep>answer"
            .to_owned())
    })
}

fn row(prompt: Prompt, chosen: String, rejected: String, margin: Option<f64>) -> Result<PairRow, String> {
    for (name, text) in [("chosen", &chosen), ("rejected", &rejected)] {
        if text.trim().is_empty() {
            return Err(format!("{name}: the answer is empty"));
        }
    }
    if chosen.trim() == rejected.trim() {
        return Err("chosen and rejected are the same text; they must differ".to_owned());
    }
    Ok(PairRow { id: 0, prompt, chosen, rejected, margin })
}

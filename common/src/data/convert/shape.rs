//! The shapes of rows that other programs read.

use super::super::rows::{Message, Prompt, Role};
use serde_json::{Map, Value, json};

/// A row of any set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AnyRow {
    pub(super) prompt: Prompt,
    pub(super) answers: Answers,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answers {
    Pair { chosen: String, rejected: String, margin: Option<f64> },
    Golden(String),
    Demonstration(String),
    None,
}

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// TRL's standard shape: prompt and answers are texts. A dialogue is written as in HH.
    Trl,
    /// TRL's conversational shape: prompt and answers are lists of messages.
    Conversational,
    /// OpenAI's fine-tuning files, which contain messages.
    OpenAi,
    /// ShareGPT's `conversations`, with `chosen` and `rejected` as in LLaMA-Factory.
    ShareGpt,
    /// Alpaca's `instruction` and `input`, with `system` and `history` as in LLaMA-Factory.
    Alpaca,
    /// HH's whole dialogues `chosen` and `rejected`.
    Hh,
    /// KTO's answers with a label, two for each pair.
    Kto,
    /// The comparisons of the paper's code: `text`, a list of `query<sep>answer`, and `scores`.
    Apo,
    /// DSP's comparisons: `text`, a list of whole dialogues, and `score`.
    Dsp,
    /// Foil's own names: `prompt`, and `golden`, `answer`, or `chosen` and `rejected`.
    Foil,
}

impl Shape {
    pub const ALL: [(&str, Self); 10] = [
        ("trl", Self::Trl),
        ("conversational", Self::Conversational),
        ("openai", Self::OpenAi),
        ("sharegpt", Self::ShareGpt),
        ("alpaca", Self::Alpaca),
        ("hh", Self::Hh),
        ("kto", Self::Kto),
        ("apo", Self::Apo),
        ("dsp", Self::Dsp),
        ("foil", Self::Foil),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, shape)| *shape == self).map_or("", |(name, _)| name)
    }

    /// The records that a row is written as. `number` is the row's number, for shapes with an id.
    ///
    /// # Errors
    /// The part of the row that the shape cannot hold.
    pub(super) fn write(self, row: &AnyRow, number: u64) -> Result<Vec<Value>, String> {
        let AnyRow { prompt, answers } = row;
        let one = |value: Value| Ok(vec![value]);
        let answer_field = match (self, answers) {
            (Self::Foil, Answers::Golden(_)) => "golden",
            (Self::Foil, _) => "answer",
            (Self::Alpaca, _) => "output",
            _ => "completion",
        };
        match (self, answers) {
            (Self::Trl, Answers::Pair { chosen, rejected, margin }) => one(with_margin(
                json!({ "prompt": text(prompt), "chosen": chosen, "rejected": rejected }),
                *margin,
            )),
            (Self::Trl, Answers::None) => one(json!({ "prompt": text(prompt) })),
            (Self::Trl, Answers::Golden(answer) | Answers::Demonstration(answer)) => {
                one(json!({ "prompt": text(prompt), "completion": answer }))
            }
            (Self::Kto, Answers::Pair { chosen, rejected, .. }) => {
                let prompt = text(prompt);
                let labeled = |answer: &str, label: bool| json!({ "prompt": prompt, "completion": answer, "label": label });
                Ok(vec![labeled(chosen, true), labeled(rejected, false)])
            }
            (Self::Kto, Answers::Golden(answer) | Answers::Demonstration(answer)) => {
                one(json!({ "prompt": text(prompt), "completion": answer, "label": true }))
            }
            (Self::Conversational | Self::Foil, Answers::Pair { chosen, rejected, margin }) => {
                let pair = json!({
                    "prompt": messages(prompt), "chosen": [assistant(chosen)], "rejected": [assistant(rejected)],
                });
                one(with_margin(pair, *margin))
            }
            (Self::Conversational, Answers::Golden(answer) | Answers::Demonstration(answer)) => {
                one(json!({ "prompt": messages(prompt), answer_field: [assistant(answer)] }))
            }
            (Self::Foil, Answers::Golden(answer) | Answers::Demonstration(answer)) => {
                one(json!({ "prompt": messages(prompt), answer_field: answer }))
            }
            (Self::Conversational | Self::Foil, Answers::None) => one(json!({ "prompt": messages(prompt) })),
            (Self::OpenAi, Answers::Pair { chosen, rejected, margin }) => {
                let pair = json!({
                    "input": { "messages": messages(prompt) },
                    "preferred_output": [assistant(chosen)], "non_preferred_output": [assistant(rejected)],
                });
                one(with_margin(pair, *margin))
            }
            (Self::OpenAi, Answers::Golden(answer) | Answers::Demonstration(answer)) => {
                let mut all = messages(prompt);
                all.push(assistant(answer));
                one(json!({ "messages": all }))
            }
            (Self::OpenAi, Answers::None) => one(json!({ "messages": messages(prompt) })),
            (Self::ShareGpt, _) => one(sharegpt(prompt, answers)),
            (Self::Alpaca, _) => alpaca(prompt, answers, answer_field).map(|value| vec![value]),
            (Self::Hh, Answers::Pair { chosen, rejected, margin }) => {
                let (chosen, rejected) = (whole(prompt, chosen), whole(prompt, rejected));
                one(with_margin(json!({ "chosen": chosen, "rejected": rejected }), *margin))
            }
            (Self::Dsp, Answers::Pair { chosen, rejected, margin }) => {
                let text = [whole(prompt, chosen), whole(prompt, rejected)];
                one(json!({ "text": text, "score": [margin.unwrap_or(1.0), 0.0] }))
            }
            (Self::Apo, Answers::Pair { chosen, rejected, margin }) => {
                let query = text(prompt);
                let text = [chosen, rejected].map(|answer| format!("{query}<sep>{answer}"));
                one(json!({
                    "text": text, "scores": [margin.unwrap_or(1.0), 0.0], "query_id": number.to_string(),
                }))
            }
            (Self::Hh | Self::Dsp | Self::Apo | Self::Kto, _) => Err(format!(
                "the shape {} holds {}",
                self.name(),
                if self == Self::Kto {
                    "answers: give a set that has some"
                } else {
                    "pairs alone: give a set of pairs"
                }
            )),
        }
    }
}

fn with_margin(mut pair: Value, margin: Option<f64>) -> Value {
    if let (Some(margin), Some(fields)) = (margin, pair.as_object_mut()) {
        fields.insert("margin".to_owned(), json!(margin));
    }
    pair
}

fn messages(prompt: &Prompt) -> Vec<Value> {
    prompt
        .messages
        .iter()
        .map(|message| json!({ "role": message.role.as_str(), "content": message.content }))
        .collect()
}

fn assistant(answer: &str) -> Value {
    json!({ "role": "assistant", "content": answer })
}

/// The text of a prompt: a single user turn as it is, anything else as a dialogue that ends with the
/// assistant's heading.
fn text(prompt: &Prompt) -> String {
    match prompt.messages.as_slice() {
        [Message { role: Role::User, content }] => content.clone(),
        _ => dialogue(prompt),
    }
}

fn dialogue(prompt: &Prompt) -> String {
    let turn = |message: &Message| match message.role {
        Role::System => message.content.clone(),
        Role::User => format!("\n\nHuman: {}", message.content),
        Role::Assistant => format!("\n\nAssistant: {}", message.content),
    };
    let turns: String = prompt.messages.iter().map(turn).collect();
    format!("{turns}\n\nAssistant:")
}

fn whole(prompt: &Prompt, answer: &str) -> String {
    format!("{} {answer}", dialogue(prompt))
}

fn sharegpt(prompt: &Prompt, answers: &Answers) -> Value {
    let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
    let from = |role: Role| match role {
        Role::System => "system",
        Role::User => "human",
        Role::Assistant => "gpt",
    };
    let mut turns: Vec<Value> =
        prompt.messages.iter().map(|message| turn(from(message.role), &message.content)).collect();
    match answers {
        Answers::Pair { chosen, rejected, margin } => {
            let pair = json!({
                "conversations": turns, "chosen": turn("gpt", chosen), "rejected": turn("gpt", rejected),
            });
            with_margin(pair, *margin)
        }
        Answers::Golden(answer) | Answers::Demonstration(answer) => {
            turns.push(turn("gpt", answer));
            json!({ "conversations": turns })
        }
        Answers::None => json!({ "conversations": turns }),
    }
}

fn alpaca(prompt: &Prompt, answers: &Answers, answer_field: &str) -> Result<Value, String> {
    let system = prompt.messages.first().filter(|first| first.role == Role::System);
    let said = &prompt.messages[usize::from(system.is_some())..];
    let (Some(last), before) = (said.last(), &said[..said.len().saturating_sub(1)]) else {
        return Err("the prompt has no user turn".to_owned());
    };
    let exchange = |turns: &[Message]| match turns {
        [
            Message { role: Role::User, content: user },
            Message { role: Role::Assistant, content: assistant },
        ] => Ok(json!([user, assistant])),
        _ => {
            Err("the shape alpaca holds turns of user and assistant by turns: take another shape".to_owned())
        }
    };
    let history: Vec<Value> = before.chunks(2).map(exchange).collect::<Result<_, _>>()?;
    let mut fields = Map::new();
    fields.insert("instruction".to_owned(), json!(last.content));
    fields.insert("input".to_owned(), json!(""));
    let mut margin = None;
    match answers {
        Answers::Pair { chosen, rejected, margin: own } => {
            fields.insert("chosen".to_owned(), json!(chosen));
            fields.insert("rejected".to_owned(), json!(rejected));
            margin = *own;
        }
        Answers::Golden(answer) | Answers::Demonstration(answer) => {
            fields.insert(answer_field.to_owned(), json!(answer));
        }
        Answers::None => {}
    }
    if let Some(system) = system {
        fields.insert("system".to_owned(), json!(system.content));
    }
    if !history.is_empty() {
        fields.insert("history".to_owned(), Value::Array(history));
    }
    Ok(with_margin(Value::Object(fields), margin))
}

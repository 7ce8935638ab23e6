//! Two responses to one prompt in separate columns, chosen and rejected.

use super::fields::Fields;
use super::turns::{answer, messages};
use super::value::describe;
use super::{dialogue, prompt_columns};
use crate::data::rows::{Message, PairRow, Prompt};
use serde_json::Value;

/// The two columns of a compared pair.
#[derive(Clone, Copy)]
pub(super) struct Comparison<'a> {
    chosen: (&'static str, &'a Value),
    rejected: (&'static str, &'a Value),
}

/// A prompt and two responses to it.
pub(super) struct Pair {
    pub(super) prompt: Prompt,
    pub(super) chosen: String,
    pub(super) rejected: String,
}

impl<'a> Comparison<'a> {
    pub(super) fn of(fields: &Fields<'a>) -> Option<Self> {
        const NAMES: [(&str, &str); 2] =
            [("chosen", "rejected"), ("preferred_output", "non_preferred_output")];
        NAMES.into_iter().find(|(chosen, rejected)| fields.has(chosen) && fields.has(rejected)).and_then(
            |(chosen, rejected)| {
                Some(Comparison {
                    chosen: (chosen, fields.get(chosen)?),
                    rejected: (rejected, fields.get(rejected)?),
                })
            },
        )
    }

    fn sides(self) -> [(&'static str, &'a Value); 2] {
        [self.chosen, self.rejected]
    }

    /// The turns before the responses, if both are lists that include them.
    fn shared_turns(self) -> Result<Option<Vec<Message>>, String> {
        let [(_, Value::Array(chosen)), (_, Value::Array(rejected))] = self.sides() else { return Ok(None) };
        if chosen.len() < 2 || rejected.len() < 2 {
            return Ok(None);
        }
        let before_last = |(name, list): (&str, &[Value])| {
            let mut turns = messages(list).map_err(|what| format!("{name}: {what}"))?;
            turns.pop();
            Ok::<_, String>(turns)
        };
        let turns = before_last((self.chosen.0, chosen))?;
        if turns != before_last((self.rejected.0, rejected))? {
            return Err(format!(
                "{} and {} differ before their last message; they must share their prompt",
                self.chosen.0, self.rejected.0
            ));
        }
        Ok(Some(turns))
    }

    /// The pair of two whole dialogues, which share their prompt.
    fn whole_dialogues(self) -> Result<Pair, String> {
        let mut texts = Vec::with_capacity(2);
        for (name, value) in self.sides() {
            match value {
                Value::String(text) if text.trim().is_empty() => {
                    return Err(format!("{name}: the response is empty"));
                }
                Value::String(text) => texts.push(text.as_str()),
                other => {
                    return Err(format!(
                        "{name}: found {}; a string is expected, or a list of messages with its prompt",
                        describe(other)
                    ));
                }
            }
        }
        let read = dialogue::pair(texts[0], texts[1]).unwrap_or_else(|| {
            Err(format!(
                "there is no prompt, and {} and {} are not dialogues with \"\\n\\nHuman:\" and \"\\n\\nAssistant:\"; \
                 give a prompt or whole dialogues",
                self.chosen.0, self.rejected.0
            ))
        });
        let (prompt, chosen, rejected) = read?;
        Ok(Pair { prompt, chosen, rejected })
    }
}

/// Reads the prompt and the two responses.
pub(super) fn read(fields: &Fields<'_>, comparison: Comparison<'_>) -> Result<Pair, String> {
    let Some(prompt) = prompt_columns::prompt(fields, comparison.shared_turns()?)? else {
        let mut pair = comparison.whole_dialogues()?;
        pair.prompt = prompt_columns::in_context(pair.prompt, fields)?;
        return Ok(pair);
    };
    let [chosen, rejected] = comparison.sides().map(|(name, value)| answer(name, value, &prompt));
    Ok(Pair { prompt: prompt.prompt, chosen: chosen?, rejected: rejected? })
}

impl Pair {
    /// The row of this pair.
    ///
    /// # Errors
    /// Responses that are empty or equal.
    pub(super) fn into_row(self, margin: Option<f64>) -> Result<PairRow, String> {
        let Self { prompt, chosen, rejected } = self;
        for (name, text) in [("chosen", &chosen), ("rejected", &rejected)] {
            if text.trim().is_empty() {
                return Err(format!("{name}: the response is empty"));
            }
        }
        if chosen.trim() == rejected.trim() {
            return Err("chosen and rejected are the same text; they must differ".to_owned());
        }
        Ok(PairRow { id: 0, prompt, chosen, rejected, margin, groups: Vec::new() })
    }
}

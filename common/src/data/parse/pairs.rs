//! Preference pairs given as the better and the worse answer.

use super::columns::Purpose;
use super::fields::Fields;
use super::turns::{answer, messages};
use super::{Found, Wanted, describe, dialogue, prompts, scored};
use crate::data::rows::{Message, PairRow, Prompt};
use serde_json::Value;

const EXPECTED: &str = "a pair has chosen and rejected, and a prompt unless they are whole dialogues";

impl Wanted for PairRow {
    const NAME: &'static str = "preference pairs";
    const PURPOSE: Purpose = Purpose::Pairs;

    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String> {
        let Value::Object(all) = record else {
            return Err(format!("found {}; {EXPECTED}", describe(record)));
        };
        let fields = Fields::new(all);
        if scored::pairs(&fields, found)? {
            return fields.finish(Self::PURPOSE, &mut found.ignored);
        }
        let Some(comparison) = Comparison::of(&fields) else {
            if fields.has("label") && fields.has("completion") {
                return Err("label: labelled answers give no pairs; use the rows in data.golden or data.sft, which read \
                            those labelled true, or pair them up"
                    .to_owned());
            }
            return Err(format!("found {}; {EXPECTED}", describe(record)));
        };
        let row = row(read(&fields, comparison)?, margin(&fields)?)?;
        found.rows.push(row);
        fields.finish(Self::PURPOSE, &mut found.ignored)
    }
}

/// The two columns of a compared pair.
#[derive(Clone, Copy)]
pub(super) struct Comparison<'a> {
    chosen: (&'static str, &'a Value),
    rejected: (&'static str, &'a Value),
}

/// A prompt and two answers to it.
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

    /// The turns before the answers, where both are lists that hold them.
    pub(super) fn shared_turns(self) -> Result<Option<Vec<Message>>, String> {
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
                "{} and {} part before their last message; they must share their prompt",
                self.chosen.0, self.rejected.0
            ));
        }
        Ok(Some(turns))
    }

    /// The prompt that two whole dialogues share.
    fn whole_dialogues(self) -> Result<Pair, String> {
        let mut texts = Vec::with_capacity(2);
        for (name, value) in self.sides() {
            match value {
                Value::String(text) if text.trim().is_empty() => {
                    return Err(format!("{name}: the answer is empty"));
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
                "there is no prompt, and {} and {} are no dialogues with \"\\n\\nHuman:\" and \"\\n\\nAssistant:\"; \
                 give a prompt or whole dialogues",
                self.chosen.0, self.rejected.0
            ))
        });
        let (prompt, chosen, rejected) = read?;
        Ok(Pair { prompt, chosen, rejected })
    }
}

/// The prompt and the two answers.
pub(super) fn read(fields: &Fields<'_>, comparison: Comparison<'_>) -> Result<Pair, String> {
    let Some(prompt) = prompts::of_fields(fields, Some(comparison))? else {
        let mut pair = comparison.whole_dialogues()?;
        pair.prompt = prompts::in_context(pair.prompt, fields)?;
        return Ok(pair);
    };
    let [chosen, rejected] = comparison.sides().map(|(name, value)| answer(name, value, &prompt));
    Ok(Pair { prompt: prompt.prompt, chosen: chosen?, rejected: rejected? })
}

/// The margin, or the difference of the two answers' scores.
fn margin(fields: &Fields<'_>) -> Result<Option<f64>, String> {
    const SCORES: [(&str, &str); 4] = [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen_rating", "rejected_rating"),
        ("chosen-rating", "rejected-rating"),
    ];
    let mut margin = fields.number("margin")?;
    if margin.is_some_and(|margin| margin < 0.0) {
        let found = fields.get("margin").map(describe).unwrap_or_default();
        return Err(format!("margin: found {found}; a number from 0 on is expected"));
    }
    for (chosen, rejected) in SCORES {
        let (Some(better), Some(worse)) = (fields.number(chosen)?, fields.number(rejected)?) else {
            continue;
        };
        if better < worse {
            return Err(format!(
                "{chosen}: {better} is below {rejected}, {worse}; chosen must be the better answer"
            ));
        }
        margin = margin.or(Some(better - worse));
    }
    Ok(margin)
}

pub(super) fn row(pair: Pair, margin: Option<f64>) -> Result<PairRow, String> {
    let Pair { prompt, chosen, rejected } = pair;
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

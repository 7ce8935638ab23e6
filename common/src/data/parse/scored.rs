//! Several responses to one prompt, scored or ranked: a pair for every two that differ.

use super::comparison::Pair;
use super::fields::Fields;
use super::turns::ReadPrompt;
use super::value::{describe, is_empty};
use super::{Found, dialogue, prompt_columns};
use crate::data::rows::{PairRow, Prompt};
use serde_json::Value;

/// Separator of query and response in comparison files.
const SEPARATOR: &str = "<sep>";

/// A response and its score; higher is better.
struct Scored {
    answer: String,
    score: f64,
}

/// Adds the pairs of a record that compares several responses; false if it does not.
pub(super) fn pairs(fields: &Fields<'_>, found: &mut Found<PairRow>) -> Result<bool, String> {
    if fields.holds("text") && (fields.holds("score") || fields.holds("scores")) {
        return texts(fields, found).map(|()| true);
    }
    let Some((prompt, answers, scores_are_margins)) = answers(fields)? else { return Ok(false) };
    for second in 1..answers.len() {
        for first in 0..second {
            let margin = answers[first].score - answers[second].score;
            if margin == 0.0 {
                found.ties += 1;
                continue;
            }
            let (better, worse) = if margin > 0.0 { (first, second) } else { (second, first) };
            if answers[better].answer.trim() == answers[worse].answer.trim() {
                found.ties += 1;
                continue;
            }
            let pair = Pair {
                prompt: prompt.clone(),
                chosen: answers[better].answer.clone(),
                rejected: answers[worse].answer.clone(),
            };
            found.rows.push(pair.into_row(scores_are_margins.then_some(margin.abs()))?);
        }
    }
    Ok(true)
}

/// The prompt of a record that compares several responses.
pub(super) fn prompt(fields: &Fields<'_>) -> Result<Option<Prompt>, String> {
    if let Some([Value::String(first), Value::String(second), ..]) =
        fields.get("text").and_then(Value::as_array).map(Vec::as_slice)
    {
        return compared(first, second).map(|pair| Some(pair.prompt));
    }
    match fields.get("history") {
        Some(Value::String(post)) if fields.has("human_ref_A") => {
            ReadPrompt::of_text(post).map(|read| Some(read.prompt)).map_err(|what| format!("history: {what}"))
        }
        _ => Ok(None),
    }
}

/// The responses under `completions` (UltraFeedback), `answers` (Nectar) or `human_ref_A` and `human_ref_B`
/// (SHP), and whether differences of their scores are margins.
fn answers(fields: &Fields<'_>) -> Result<Option<(Prompt, Vec<Scored>, bool)>, String> {
    if fields.has("human_ref_A") && fields.has("human_ref_B") {
        return reddit(fields).map(Some);
    }
    let (name, text, score_name, sign) = if fields.holds("completions") {
        ("completions", "response", "overall_score", 1.0)
    } else if fields.given("answers").is_some_and(Value::is_array) {
        ("answers", "answer", "rank", -1.0)
    } else {
        return Ok(None);
    };
    let value = fields.get(name).unwrap_or(&Value::Null);
    let Some(list) = value.as_array().filter(|list| list.len() > 1) else {
        return Err(format!("{name}: found {}; a list of two or more is expected", describe(value)));
    };
    let Some(prompt) = prompt_columns::prompt(fields, None)? else {
        return Err(format!("there is {name} but no prompt"));
    };
    let mut answers = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let fault = |what: String| format!("{name}: [{index}]: {what}");
        let (Some(answer), Some(score)) = (
            entry.get(text).and_then(Value::as_str),
            entry.get(score_name).and_then(Value::as_f64).filter(|score| score.is_finite()),
        ) else {
            return Err(fault(format!(
                "found {}; {text}, a string, and {score_name}, a number, are expected",
                describe(entry)
            )));
        };
        answers.push(Scored { answer: prompt.answer(text, answer).map_err(fault)?, score: sign * score });
        let others = entry.as_object().into_iter().flatten();
        let others =
            others.filter(|(key, value)| ![text, score_name].contains(&key.as_str()) && !is_empty(value));
        fields.ignore(others.map(|(key, _)| format!("{name}[].{key}")));
    }
    Ok(Some((prompt.prompt, answers, sign > 0.0)))
}

/// Two comments on a post, the better of which `labels` names.
fn reddit(fields: &Fields<'_>) -> Result<(Prompt, Vec<Scored>, bool), String> {
    let prompt = match fields.get("history") {
        Some(Value::String(post)) => ReadPrompt::of_text(post).map_err(|what| format!("history: {what}"))?,
        Some(other) => return Err(format!("history: found {}; a string is expected", describe(other))),
        None => prompt_columns::prompt(fields, None)?
            .ok_or("there are human_ref_A and human_ref_B but no history")?,
    };
    let first_is_better = match fields.get("labels") {
        Some(label) if label.as_f64() == Some(1.0) => true,
        Some(label) if label.as_f64() == Some(0.0) => false,
        other => {
            let found = other.map_or("nothing".to_owned(), describe);
            return Err(format!("labels: found {found}; 1 (human_ref_A is better) or 0 is expected"));
        }
    };
    let mut answers = Vec::with_capacity(2);
    for (name, is_better) in [("human_ref_A", first_is_better), ("human_ref_B", !first_is_better)] {
        let Some(text) = fields.text(name)? else { return Err(format!("{name}: the response is empty")) };
        let answer = prompt.answer(name, text)?;
        answers.push(Scored { answer, score: f64::from(u8::from(is_better)) });
    }
    Ok((prompt.prompt, answers, false))
}

/// `text`, a list of dialogues or of `query<sep>answer`, each with its number in `score`; the margin is the
/// difference.
fn texts(fields: &Fields<'_>, found: &mut Found<PairRow>) -> Result<(), String> {
    let value = fields.get("text").unwrap_or(&Value::Null);
    let Some(list) = value.as_array() else {
        return Err(format!(
            "text: found {}; a list of texts, one for each score, is expected",
            describe(value)
        ));
    };
    let texts: Vec<&str> = list
        .iter()
        .map(|text| {
            text.as_str().ok_or_else(|| format!("text: found {}; strings are expected", describe(text)))
        })
        .collect::<Result<_, _>>()?;
    let (name, scores) = fields.first(["score", "scores"]).unwrap_or(("score", &Value::Null));
    let Value::Array(scores) = scores else {
        return Err(format!("{name}: found {}; a list of numbers is expected", describe(scores)));
    };
    let scores: Vec<f64> = scores
        .iter()
        .map(|score| {
            let number = score.as_f64().filter(|number| number.is_finite());
            number.ok_or_else(|| format!("{name}: found {}; finite numbers are expected", describe(score)))
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
            let mut pair = compared(texts[better], texts[worse])?;
            pair.prompt = prompt_columns::in_context(pair.prompt, fields)?;
            found.rows.push(pair.into_row(Some(margin.abs()))?);
        }
    }
    Ok(())
}

fn compared(better: &str, worse: &str) -> Result<Pair, String> {
    if let (Some((query, chosen)), Some((other, rejected))) =
        (better.split_once(SEPARATOR), worse.split_once(SEPARATOR))
    {
        if query != other {
            return Err("the texts before <sep> differ; compared texts must share their query".to_owned());
        }
        let prompt = ReadPrompt::of_text(query)?;
        let (chosen, rejected) = (prompt.answer("text", chosen)?, prompt.answer("text", rejected)?);
        return Ok(Pair { prompt: prompt.prompt, chosen, rejected });
    }
    let read = dialogue::pair(better, worse).unwrap_or_else(|| {
        Err("the texts are neither dialogues (\"\\n\\nHuman:\", \"## Human:\") nor query<sep>answer"
            .to_owned())
    });
    let (prompt, chosen, rejected) = read?;
    Ok(Pair { prompt, chosen, rejected })
}

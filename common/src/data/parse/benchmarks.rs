//! Files of reward-model benchmarks: lists of answers, each of one list preferred to each of the other, and
//! the parts of a benchmark on which accuracy is reported.
//!
//! RewardBench (arXiv 2403.13787) has a pair for each row, of a `subset`, and reports sections of several
//! subsets. RM-Bench (arXiv 2410.16184) has three answers of ascending style in each list: a pair is hard if
//! the rejected answer has more style than the chosen one, easy if it has less, and normal on the diagonal.

use super::comparison::Pair;
use super::fields::Fields;
use super::{Found, prompt_columns};
use crate::data::rows::{PairRow, Prompt};
use serde_json::Value;

/// Maximum number of answers of one list.
const ANSWERS: usize = 64;
/// Maximum length of a group's name.
const NAME_LIMIT: usize = 48;
/// Answers of a list in RM-Bench: concise, detailed, and detailed with Markdown.
const STYLES: usize = 3;

/// RewardBench's sections, by their subsets. Its section Reasoning is the mean of the subset `math-prm` and
/// of `reasoning_code`.
const SECTIONS: [(&str, &[&str]); 4] = [
    ("chat", &["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"]),
    (
        "chat_hard",
        &[
            "mt-bench-hard",
            "llmbar-natural",
            "llmbar-adver-neighbor",
            "llmbar-adver-GPTInst",
            "llmbar-adver-GPTOut",
            "llmbar-adver-manual",
        ],
    ),
    (
        "safety",
        &[
            "refusals-dangerous",
            "refusals-offensive",
            "xstest-should-refuse",
            "xstest-should-respond",
            "donotanswer",
        ],
    ),
    ("reasoning_code", &["hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"]),
];

/// The groups of all pairs of a record; the last one is the `domain` by which levels are counted.
pub(super) fn groups(fields: &Fields<'_>) -> Vec<String> {
    let text = |name| fields.peek(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let mut groups = Vec::new();
    if let Some(subset) = text("subset") {
        fields.get("subset");
        let section = SECTIONS.iter().find(|(_, subsets)| subsets.contains(&subset));
        groups.push(group_name(subset));
        groups.extend(section.map(|(section, _)| (*section).to_owned()));
    }
    if let Some(domain) = text("domain") {
        fields.get("domain");
        groups.push(group_name(domain));
        // RM-Bench's safety-refuse and safety-response are one domain.
        groups.extend(domain.starts_with("safety-").then(|| "safety".to_owned()));
    }
    groups.dedup();
    groups
}

/// A name of lower-case letters, digits and `_`, as those of metrics are.
fn group_name(text: &str) -> String {
    let letter = |letter: char| match letter.is_ascii_alphanumeric() {
        true => letter.to_ascii_lowercase(),
        false => '_',
    };
    text.trim().chars().take(NAME_LIMIT).map(letter).collect()
}

/// Adds a pair for each chosen and each rejected answer of a record whose `chosen` and `rejected` are lists
/// of texts; false if they are not.
pub(super) fn pairs(
    fields: &Fields<'_>,
    groups: &[String],
    found: &mut Found<PairRow>,
) -> Result<bool, String> {
    let Some((chosen, rejected)) = texts(fields, "chosen").zip(texts(fields, "rejected")) else {
        return Ok(false);
    };
    for (name, list) in [("chosen", &chosen), ("rejected", &rejected)] {
        fields.get(name);
        if list.len() > ANSWERS {
            return Err(format!(
                "{name}: found a list of {}; at most {ANSWERS} answers are expected",
                list.len()
            ));
        }
    }
    let Some(prompt) = prompt_columns::prompt(fields, None)? else {
        return Err("there are lists of chosen and rejected answers but no prompt".to_owned());
    };
    let domain = groups.last().filter(|_| fields.holds("domain"));
    let domain = domain.filter(|_| chosen.len() == STYLES && rejected.len() == STYLES);
    for (better, chosen) in chosen.iter().enumerate() {
        for (worse, rejected) in rejected.iter().enumerate() {
            let pair = Pair {
                prompt: prompt.prompt.clone(),
                chosen: prompt.answer("chosen", chosen)?,
                rejected: prompt.answer("rejected", rejected)?,
            };
            let mut row = pair.into_row(None)?;
            row.groups = groups.to_vec();
            if let Some(domain) = domain {
                let level = match better.cmp(&worse) {
                    std::cmp::Ordering::Less => "hard",
                    std::cmp::Ordering::Equal => "normal",
                    std::cmp::Ordering::Greater => "easy",
                };
                row.groups.extend([level.to_owned(), format!("{domain}_{level}")]);
            }
            found.rows.push(row);
        }
    }
    Ok(true)
}

/// The prompt of a record whose `chosen` and `rejected` are lists of texts.
pub(super) fn prompt(fields: &Fields<'_>) -> Result<Option<Prompt>, String> {
    if texts(fields, "chosen").is_none() || texts(fields, "rejected").is_none() {
        return Ok(None);
    }
    Ok(prompt_columns::prompt(fields, None)?.map(|read| read.prompt))
}

/// The texts of a field that is a list of nothing else.
fn texts<'a>(fields: &Fields<'a>, name: &str) -> Option<Vec<&'a str>> {
    let list = fields.peek(name).and_then(Value::as_array).filter(|list| !list.is_empty())?;
    list.iter().map(Value::as_str).collect()
}

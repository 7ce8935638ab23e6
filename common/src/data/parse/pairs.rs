//! Preference pairs.

use super::columns::Purpose;
use super::comparison::{self, Comparison};
use super::fields::Fields;
use super::value::describe;
use super::{Found, Wanted, benchmarks, scored};
use crate::data::rows::PairRow;
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
        let groups = benchmarks::groups(&fields);
        let first = found.rows.len();
        if benchmarks::pairs(&fields, &groups, found)? {
            return fields.finish(Self::PURPOSE, &mut found.ignored);
        }
        if scored::pairs(&fields, found)? {
            found.rows[first..].iter_mut().for_each(|row| row.groups.clone_from(&groups));
            return fields.finish(Self::PURPOSE, &mut found.ignored);
        }
        let Some(comparison) = Comparison::of(&fields) else {
            if fields.has("label") && fields.has("completion") {
                return Err("label: labeled responses give no pairs; use the rows in data.golden or data.sft, which read \
                            those labeled true, or pair them up"
                    .to_owned());
            }
            return Err(format!("found {}; {EXPECTED}", describe(record)));
        };
        let pair = comparison::read(&fields, comparison)?;
        found.rows.push(PairRow { groups, ..pair.into_row(margin(&fields)?)? });
        fields.finish(Self::PURPOSE, &mut found.ignored)
    }
}

/// The margin, or the difference of the two responses' scores.
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
        return Err(format!("margin: found {found}; a number that is not negative is expected"));
    }
    for (chosen, rejected) in SCORES {
        let (Some(better), Some(worse)) = (fields.number(chosen)?, fields.number(rejected)?) else {
            continue;
        };
        if better < worse {
            return Err(format!(
                "{chosen}: {better} is below {rejected}, {worse}; chosen must be the better response"
            ));
        }
        margin = margin.or(Some(better - worse));
    }
    Ok(margin)
}

//! Rows that do not belong to the set they are given for, with advice.

use super::columns::{self, Kind, Purpose};
use super::value::is_empty;
use super::{Found, Wanted};
use crate::data::rows::{DemonstrationRow, PairRow, PromptRow};
use serde_json::Value;

/// Why a file's records are not rows of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// No column has a name that the set is read by.
    Columns(Purpose),
    /// The records are rows of another kind.
    Other { kind: &'static str, sets: &'static str },
}

/// Why a record is not a row, if it belongs to another set or its file has only unknown columns. `ignored`
/// are columns of the file that records do not have.
pub(super) fn of(purpose: Purpose, record: &Value, ignored: &[String]) -> Option<Misfit> {
    let fields = record.as_object();
    let given = || fields.into_iter().flatten().filter(|(_, value)| !is_empty(value));
    let known = || given().filter_map(|(name, _)| columns::find(name));
    let has = |kind: Kind| known().any(|column| column.kind == kind);
    let is_conversation = known().any(|column| ["messages", "conversations"].contains(&column.name));
    let lacks = match purpose {
        Purpose::Pairs => !has(Kind::Comparison),
        Purpose::Golden | Purpose::Demonstrations => {
            !(is_conversation || has(Kind::Answer) && has(Kind::Prompt))
        }
        Purpose::Prompts => !has(Kind::Prompt) && !has(Kind::Comparison),
    };
    if !lacks {
        return None;
    }
    let other = |kind, sets| Some(Misfit::Other { kind, sets });
    if purpose == Purpose::Pairs && reads::<DemonstrationRow>(record) {
        return other("prompts with an answer each", "data.sft or data.golden");
    }
    if matches!(purpose, Purpose::Golden | Purpose::Demonstrations) && reads::<PairRow>(record) {
        return other("pairs of answers", "data.preferences");
    }
    let has_unknown = !ignored.is_empty() || given().any(|(name, _)| columns::find(name).is_none());
    match has_unknown {
        true => Some(Misfit::Columns(purpose)),
        false if reads::<PromptRow>(record) => other("prompts without answers", "data.prompts"),
        false => None,
    }
}

fn reads<T: Wanted>(record: &Value) -> bool {
    T::read(record, &mut Found::default()).is_ok()
}

impl Misfit {
    /// Advice for a source, which is named by its place in the job file.
    pub(super) fn advice(self, source: &str) -> String {
        let columns = match self {
            Self::Other { kind, sets } => return format!("such rows are {kind}, which belong in {sets}"),
            Self::Columns(Purpose::Pairs) => "prompt: question, chosen: good, rejected: bad",
            Self::Columns(Purpose::Golden) => "prompt: question, golden: best",
            Self::Columns(Purpose::Demonstrations) => "prompt: question, answer: reply",
            Self::Columns(Purpose::Prompts) => "prompt: task",
        };
        format!("give the file's names for them by {source}.columns, such as columns: {{ {columns} }}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ParseError, Wanted, parse};
    use crate::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow};

    fn refusal<T: Wanted>(file: &str, text: &str) -> String {
        let parsed = parse::<T>(file, text.as_bytes()).unwrap();
        let error = parsed.require("data.preferences", 0.0).unwrap_err();
        assert!(matches!(error, ParseError::TooManyBad { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn unknown_columns_are_to_be_named() {
        let advice = "by data.preferences[0].columns, such as columns: { prompt: question, chosen: good, rejected: bad }";
        for (file, text) in [
            ("x.jsonl", r#"{"task": "q", "good": "a", "bad": "b"}"#),
            ("x.jsonl", r#"{"question": "q", "good": "a", "bad": "b"}"#),
            ("x.csv", "question,good,bad\nq,a,b\n"),
        ] {
            let error = refusal::<PairRow>(file, text);
            assert!(error.ends_with(advice), "{error}");
        }
        let task = r#"{"task": "q", "reply": "a"}"#;
        assert!(refusal::<PromptRow>("x", task).ends_with("columns: { prompt: task }"));
        assert!(refusal::<DemonstrationRow>("x", task).contains("answer: reply"));
        assert!(refusal::<GoldenRow>("x", r#"{"prompt": "q", "best": "a"}"#).contains("golden: best"));
    }

    #[test]
    fn rows_of_another_set_are_told() {
        let alpaca = r#"{"instruction": "q", "input": "", "output": "a"}"#;
        let sharegpt =
            r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;
        for row in [alpaca, sharegpt] {
            let error = refusal::<PairRow>("x.jsonl", row);
            assert!(error.ends_with("an answer each, which belong in data.sft or data.golden"), "{error}");
        }
        let pair = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        assert!(refusal::<GoldenRow>("x", pair).ends_with("which belong in data.preferences"));
        assert!(
            refusal::<DemonstrationRow>("x", r#"{"prompt": "q"}"#).ends_with("which belong in data.prompts")
        );
    }

    #[test]
    fn rows_with_a_fault_of_their_own_are_to_be_repaired() {
        let repair = ": repair the file or raise the fraction";
        let empty = r#"{"prompt": "q", "chosen": "", "rejected": "b", "id": 1}"#;
        assert!(refusal::<PairRow>("x", empty).ends_with(repair));
        let alone = refusal::<PairRow>("x", "{}");
        assert!(alone.ends_with(repair) && alone.starts_with("1 of 1 row is unusable"), "{alone}");
        let two = refusal::<PairRow>("x", &format!("{empty}\n{empty}\n"));
        assert!(two.starts_with("2 of 2 rows are unusable"), "{two}");
        assert!(refusal::<GoldenRow>("x", r#"{"prompt": 7, "golden": "a", "id": 1}"#).ends_with(repair));
    }
}

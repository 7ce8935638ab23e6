//! Rows in TRL's formats, compared with TRL's own functions. `scripts/fixtures/rows.py` writes the file.

use super::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    row: Value,
    preference: Preference,
    unpaired: Unpaired,
}

#[derive(Deserialize)]
struct Preference {
    prompt: Vec<Message>,
    chosen: String,
    rejected: String,
}

/// A preference in the format of KTO: one labeled response per row.
#[derive(Deserialize)]
struct Unpaired {
    rows: Vec<Value>,
    good: Vec<Good>,
}

#[derive(Deserialize)]
struct Good {
    prompt: Vec<Message>,
    completion: String,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("trl_rows.json")).unwrap()
}

#[test]
fn preferences_are_read_as_trl_reads_them() {
    for Case { row, preference, .. } in cases() {
        let pair = only(&pairs(&row.to_string()));
        let expected = (preference.prompt, preference.chosen, preference.rejected);
        assert_eq!((pair.prompt.messages, pair.chosen, pair.rejected), expected, "{row}");
        let prompt = only(&parse::<PromptRow>("prompts", row.to_string().as_bytes()).unwrap());
        assert_eq!(prompt.prompt.messages, expected.0, "{row}");
    }
}

#[test]
fn unpaired_responses_that_are_labeled_desirable_are_golden_answers() {
    for Case { unpaired, .. } in cases() {
        let text: String = unpaired.rows.iter().map(|row| format!("{row}\n")).collect();
        let parsed = parse::<GoldenRow>("golden", text.as_bytes()).unwrap();
        let read: Vec<_> = parsed.rows.into_iter().map(|row| (row.prompt.messages, row.golden)).collect();
        let good: Vec<_> = unpaired.good.into_iter().map(|row| (row.prompt, row.completion)).collect();
        assert_eq!(read, good, "{text}");
        let bad = unpaired.rows.len() - good.len();
        assert_eq!((parsed.bad_rows, parsed.skipped.undesirable), (0, bad as u64), "{text}");
    }
}

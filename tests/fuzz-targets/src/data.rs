//! Importers of data sets.

use foil_common::data::parse::{Wanted, parse};
use foil_common::data::rows::{self, DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};

use super::Verdict;

pub(super) fn pairs(input: &[u8]) -> Verdict {
    import::<PairRow>(input)
}

pub(super) fn golden(input: &[u8]) -> Verdict {
    import::<GoldenRow>(input)
}

pub(super) fn demonstrations(input: &[u8]) -> Verdict {
    import::<DemonstrationRow>(input)
}

pub(super) fn prompts(input: &[u8]) -> Verdict {
    import::<PromptRow>(input)
}

/// A user's file in any format: the rows survive the form in which the store keeps them.
fn import<T: Wanted + PartialEq + std::fmt::Debug>(input: &[u8]) -> Verdict {
    let Ok(parsed) = parse::<T>("data.jsonl", input) else { return Verdict::Refused };
    assert!(parsed.bad_rows <= parsed.records, "more bad rows than records");
    for bad in &parsed.bad {
        assert!(bad.to_string().len() < 4096, "a long message: {bad}");
    }
    // Of the file's own content, and not of its mistakes.
    let _ = parsed.require(0.5);
    check(&parsed.rows);
    if parsed.rows.is_empty() { Verdict::Refused } else { Verdict::Accepted }
}

/// Stored rows, which ranks read: a coordinator wrote them, but the store may be damaged.
pub(super) fn rows(input: &[u8]) -> Verdict {
    let read = [stored::<PairRow>(input), stored::<GoldenRow>(input), stored::<PromptRow>(input)];
    if read.contains(&Verdict::Accepted) { Verdict::Accepted } else { Verdict::Refused }
}

fn stored<T: Row + PartialEq + std::fmt::Debug>(input: &[u8]) -> Verdict {
    let read = rows::read::<T>("rows.jsonl", input);
    if let Ok(rows) = &read {
        check(rows);
    }
    read.into()
}

fn check<T: Row + PartialEq + std::fmt::Debug>(found: &[T]) {
    let written = rows::write(found);
    let again = rows::read::<T>("rows.jsonl", &written);
    let again = again.unwrap_or_else(|error| panic!("rows that were written are refused: {error}"));
    assert!(again == found, "rows change as they are written");
}

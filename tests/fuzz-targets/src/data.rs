//! Fuzz targets for the importers of data sets.

use bytes::Bytes;
use foil_common::data::convert::{Conversion, SetKind, Shape};
use foil_common::data::near::NearDuplicates;
use foil_common::data::parse::{ColumnNames, Wanted, parse};
use foil_common::data::row_set::RowSet;
use foil_common::data::rows::{self, DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};

use super::Verdict;

const LINES: &str = "data.jsonl";

pub(super) fn pairs(input: &[u8]) -> Verdict {
    import::<PairRow>(LINES, input)
}

pub(super) fn golden(input: &[u8]) -> Verdict {
    import::<GoldenRow>(LINES, input)
}

pub(super) fn demonstrations(input: &[u8]) -> Verdict {
    import::<DemonstrationRow>(LINES, input)
}

pub(super) fn prompts(input: &[u8]) -> Verdict {
    import::<PromptRow>(LINES, input)
}

pub(super) fn parquet(input: &[u8]) -> Verdict {
    import::<PairRow>("data.parquet", input)
}

pub(super) fn arrow(input: &[u8]) -> Verdict {
    import::<PairRow>("data.arrow", input)
}

/// Separated values, which are recognized only by the file name.
pub(super) fn csv(input: &[u8]) -> Verdict {
    import::<PairRow>("data.csv", input)
}

pub(super) fn zstd(input: &[u8]) -> Verdict {
    import::<PairRow>("data.jsonl.zst", input)
}

/// A user's file with renamed columns, in each shape of other programs: reading back what is written returns
/// the original rows. A table has one type for each of its columns.
pub(super) fn convert(input: &[u8]) -> Verdict {
    let columns = [("chosen", "rejected"), ("rejected", "chosen")];
    let columns = columns.into_iter().map(|(own, theirs)| (own.to_owned(), theirs.to_owned())).collect();
    let mut verdict = Verdict::Refused;
    for (number, shape) in [None].into_iter().chain(Shape::ALL.map(|(_, shape)| Some(shape))).enumerate() {
        let names = if number % 2 == 0 { ColumnNames::default() } else { ColumnNames::new(&columns) };
        let files = vec![(LINES.to_owned(), Bytes::copy_from_slice(input).into())];
        let conversion = Conversion { files, names, shape, set: None, max_bad_fraction: 1.0 };
        let mut lines = Vec::new();
        let report = conversion.for_each(&mut |record, _| {
            lines.extend_from_slice(record.to_string().as_bytes());
            lines.push(b'\n');
            Ok(())
        });
        let Ok(report) = report else { continue };
        for bad in &report.bad {
            assert!(bad.to_string().len() < 4096, "a long message: {bad}");
        }
        let faults = match report.set {
            None => continue,
            // Pairs become answers.
            Some(SetKind::Preferences) if shape == Some(Shape::Kto) => faults::<GoldenRow>(&lines),
            Some(SetKind::Preferences) => faults::<PairRow>(&lines),
            Some(SetKind::Golden) => faults::<GoldenRow>(&lines),
            Some(SetKind::Sft) => faults::<DemonstrationRow>(&lines),
            Some(SetKind::Prompts) => faults::<PromptRow>(&lines),
        };
        assert_eq!(faults, 0, "{shape:?}: what was written is refused");
        verdict = Verdict::Accepted;
    }
    verdict
}

fn faults<T: Wanted>(lines: &[u8]) -> u64 {
    parse::<T>(LINES, lines).unwrap_or_else(|error| panic!("what was written is no file: {error}")).bad_rows
}

/// A user's file in any format: its rows survive the format in which the store keeps them.
fn import<T: Wanted + PartialEq + std::fmt::Debug>(file: &str, input: &[u8]) -> Verdict {
    let Ok(parsed) = parse::<T>(file, input) else { return Verdict::Refused };
    assert!(parsed.bad_rows <= parsed.records, "more bad rows than records");
    for bad in &parsed.bad {
        assert!(bad.to_string().len() < 4096, "a long message: {bad}");
    }
    // The result is a function of the file's content; the error, if any, does not matter.
    let _ = parsed.require("data", 0.5);
    check(&parsed.rows);
    let first = RowSet::of(parsed.rows.iter().take(64).cloned()).unwrap_or_else(|error| panic!("{error}"));
    let near = NearDuplicates::new(0.8, 5).of_rows(&first).unwrap_or_else(|error| panic!("{error}"));
    for (row, earlier) in near.iter().enumerate().filter_map(|(row, earlier)| Some((row, (*earlier)?))) {
        assert!(earlier < row && near[earlier].is_none(), "row {row} nearly equals {earlier}");
    }
    if parsed.rows.is_empty() { Verdict::Refused } else { Verdict::Accepted }
}

/// Stored rows that ranks read. A coordinator wrote them, but the store may be damaged.
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

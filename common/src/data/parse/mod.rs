//! Parses files of many formats into rows of one type. The format is recognized by each record, not by the
//! file's name.
//!
//! | record | read as |
//! |---|---|
//! | `{chosen, rejected}`, both whole dialogues (`\n\nHuman: …\n\nAssistant: …`) | pair; the prompt is their shared prefix up to the last `\n\nAssistant:` |
//! | `{prompt, chosen, rejected}`, each a string or a list of messages | pair; the prompt may be in the lists |
//! | `{conversations, chosen, rejected}` with `{from, value}` turns | pair |
//! | `{text: [a, b, …], score: [x, y, …]}`, dialogues or `query<sep>answer` | a pair for every two texts whose scores differ |
//! | `{instruction, completions}`, `{prompt, answers}`, `{history, human_ref_A, human_ref_B, labels}` | a pair for every two answers of different score or rank |
//! | `{prompt, golden}`; `golden` a string, or several of which the first counts | golden |
//! | `{prompt, answer}` (or `completion`, `response`, `output`), `{messages}` ending with the assistant | demonstration, golden |
//! | any of these, `{prompt}`, or a bare string | prompt |
//!
//! Each may have `system` and `history`, which precede the prompt. [`columns`] lists the known columns: a
//! record is a bad row if it has a known column that is not used and would change the row's meaning; the
//! names of all other columns are collected. Files are JSON lines or JSON arrays, plain or gzipped. A
//! `prompt` string in dialogue form is parsed into turns, whose surrounding white space is removed; any other
//! string is one user message. All other texts are kept to the byte.

mod answers;
mod budget;
pub mod columns;
mod comparison;
mod dialogue;
mod fields;
mod pairs;
mod places;
mod prompt_columns;
mod prompts;
mod records;
mod scored;
mod turns;
mod value;

#[cfg(test)]
mod tests;

pub use self::budget::Budget;
use self::columns::Purpose;
pub use self::places::{Place, Places};
use self::value::excerpt;
use super::rows::{Row, assign_ids, content_key};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;

/// Number of bad rows that are kept; beyond it they are only counted.
pub const KEPT_BAD_ROWS: usize = 20;

/// Number of ignored columns whose names are kept.
const KEPT_IGNORED: usize = 64;

/// A record that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    pub place: Place,
    /// The value found, and the expected one.
    pub what: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Valid records that yield no row, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Rows that equal an earlier one.
    pub duplicates: u64,
    /// Compared responses of equal score.
    pub ties: u64,
    /// Golden answers after a prompt's first one.
    pub spare_answers: u64,
    /// Responses labeled undesirable.
    pub undesirable: u64,
}

/// The rows of one or more files.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// In the order of the files, without duplicates, with ids assigned.
    pub rows: Vec<T>,
    /// Number of records, good and bad.
    pub records: u64,
    pub bad_rows: u64,
    /// The first [`KEPT_BAD_ROWS`] of them.
    pub bad: Vec<BadRow>,
    pub skipped: Skipped,
    /// Ignored columns, with the number of records that have them.
    pub ignored: BTreeMap<String, u64>,
    /// The place of each row in the files.
    pub places: Places,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParseError {
    #[error("{file}: {found}; expected JSON lines or a JSON array, plain or gzipped: {advice}")]
    Format { file: String, found: String, advice: String },
    #[error("{file}: holds no rows; {expected} are expected, one JSON object per line")]
    Empty { file: String, expected: &'static str },
    #[error(
        "{place}: the job's rows take more than {} GiB of memory up to here; give fewer rows, or shorter ones",
        Budget::BYTES >> 30
    )]
    TooLarge { place: Place },
    #[error(
        "{bad_rows} of {records} rows are unusable, more than data.max_bad_fraction ({allowed}) allows; the first is {first}: repair the file or raise the fraction"
    )]
    TooManyBad { bad_rows: u64, records: u64, allowed: f64, first: String },
}

impl<T> Parsed<T> {
    /// Fails if more than `allowed` (a fraction) of all records are bad.
    pub fn require(&self, allowed: f64) -> Result<(), ParseError> {
        if self.bad_rows == 0 || self.bad_rows as f64 <= allowed * self.records as f64 {
            return Ok(());
        }
        let first = self.bad.first().map(ToString::to_string).unwrap_or_default();
        Err(ParseError::TooManyBad { bad_rows: self.bad_rows, records: self.records, allowed, first })
    }
}

/// A row type that files are parsed into.
pub trait Wanted: Row {
    /// Name for messages, in the plural.
    const NAME: &'static str;
    const PURPOSE: Purpose;

    /// Adds the rows of one record to `found`.
    ///
    /// # Errors
    /// The fault of the record.
    #[doc(hidden)]
    fn read(record: &Value, found: &mut Found<Self>) -> Result<(), String>;
}

/// The rows of one record.
#[derive(Debug)]
pub struct Found<T> {
    pub(crate) rows: Vec<T>,
    pub(crate) ties: u64,
    pub(crate) spare_answers: u64,
    pub(crate) undesirable: u64,
    /// Ignored columns.
    pub(crate) ignored: Vec<String>,
}

/// Parses one file. `file` names it in messages.
pub fn parse<T: Wanted>(file: &str, bytes: &[u8]) -> Result<Parsed<T>, ParseError> {
    parse_files([(file, bytes)], &mut Budget::default())
}

/// Parses several files into one set, whose rows are charged to `budget`.
pub fn parse_files<'a, T: Wanted, R: Read>(
    files: impl IntoIterator<Item = (&'a str, R)>,
    budget: &mut Budget,
) -> Result<Parsed<T>, ParseError> {
    let mut parsed = Parsed::default();
    let mut seen = HashSet::new();
    let mut origins = Vec::new();
    for (file, bytes) in files {
        let before = parsed.records;
        let file_index = parsed.places.add_file(file);
        let mut records = records::Records::open(file, bytes)?;
        while let Some(record) = records.next()? {
            parsed.records += 1;
            let origin = places::Origin::new(file_index, record.line, record.element);
            let result = record.value.and_then(|value| {
                let mut found = Found::default();
                T::read(&value, &mut found).map(|()| found)
            });
            match result {
                Ok(found) => {
                    let first_new = parsed.rows.len();
                    parsed.add(found, &mut seen);
                    let new = &parsed.rows[first_new..];
                    origins.extend(new.iter().map(|_| origin));
                    if !budget.charge(new) {
                        return Err(ParseError::TooLarge { place: parsed.places.name(origin) });
                    }
                }
                Err(what) => {
                    let place = parsed.places.name(origin);
                    parsed.add_bad(BadRow { place, what });
                }
            }
        }
        if parsed.records == before {
            return Err(ParseError::Empty { file: file.to_owned(), expected: T::NAME });
        }
    }
    assign_ids(&mut parsed.rows);
    parsed.places.assign(parsed.rows.iter().map(Row::id).zip(origins));
    Ok(parsed)
}

impl<T> Default for Parsed<T> {
    fn default() -> Self {
        Parsed {
            rows: Vec::new(),
            records: 0,
            bad_rows: 0,
            bad: Vec::new(),
            skipped: Skipped::default(),
            ignored: BTreeMap::new(),
            places: Places::default(),
        }
    }
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Found { rows: Vec::new(), ties: 0, spare_answers: 0, undesirable: 0, ignored: Vec::new() }
    }
}

impl<T: Wanted> Parsed<T> {
    fn add(&mut self, mut found: Found<T>, seen: &mut HashSet<[u8; 32]>) {
        self.skipped.ties += found.ties;
        self.skipped.spare_answers += found.spare_answers;
        self.skipped.undesirable += found.undesirable;
        found.ignored.sort_unstable();
        found.ignored.dedup();
        for name in found.ignored {
            let name = excerpt(&name, 64);
            if self.ignored.len() < KEPT_IGNORED || self.ignored.contains_key(&name) {
                *self.ignored.entry(name).or_default() += 1;
            }
        }
        for row in found.rows {
            if seen.insert(content_key(&row)) {
                self.rows.push(row);
            } else {
                self.skipped.duplicates += 1;
            }
        }
    }

    fn add_bad(&mut self, row: BadRow) {
        self.bad_rows += 1;
        if self.bad.len() < KEPT_BAD_ROWS {
            self.bad.push(row);
        }
    }
}

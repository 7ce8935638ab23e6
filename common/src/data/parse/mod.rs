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
//! names of all other columns are collected. `records` reads the formats of files. A
//! `prompt` string in dialogue form is parsed into turns, whose surrounding white space is removed; any other
//! string is one user message. All other texts are kept to the byte.

mod answers;
mod benchmarks;
mod budget;
mod choice;
mod column_names;
pub mod columns;
mod comparison;
mod content;
mod dialogue;
mod fields;
mod misfit;
mod pairs;
mod places;
mod prompt_columns;
mod prompts;
mod reading;
mod records;
mod scored;
mod turns;
mod value;

mod stream;
#[cfg(test)]
mod tests;

pub use self::budget::Budget;
pub use self::choice::{Choice, Everything};
pub use self::column_names::ColumnNames;
use self::columns::Purpose;
pub use self::content::{Content, RangeReader};
use self::misfit::Misfit;
pub use self::places::{Place, Places, Position};
pub use self::reading::parse_sources;
pub use self::stream::{Record, RecordStream};
use super::row_set::{RowSet, SpillError};
use super::rows::Row;
use crate::plural::{are, counted};
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

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

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFile {
    pub name: String,
    /// The recognized format and compression, for example "JSON lines, gzip".
    pub format: String,
    /// Number of records, good and bad.
    pub records: u64,
    pub bad_rows: u64,
}

/// Files that are read in the same way.
#[derive(Clone, Debug)]
pub struct SourceFiles<'a> {
    /// Each with its name for messages.
    pub files: Vec<(&'a str, Content)>,
    pub names: &'a ColumnNames,
}

/// A source that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadSource {
    pub first_file: String,
    /// Number of files.
    pub files: usize,
    pub bad_rows: u64,
    pub skipped: Skipped,
    /// Number of rows that the choice admits, whether they are kept or not.
    pub admitted: u64,
}

/// The rows of one or more files, and what was found beside them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed<R> {
    /// Those that the choice keeps, in the order of the files, without duplicates, with ids assigned.
    pub rows: R,
    /// Number of records, good and bad.
    pub records: u64,
    pub bad_rows: u64,
    /// The first [`KEPT_BAD_ROWS`] of them.
    pub bad: Vec<BadRow>,
    /// Why the first bad row does not belong to the set, if known, and the index of its source.
    misfit: Option<(usize, Misfit)>,
    pub skipped: Skipped,
    /// Ignored columns, with the number of records that have them.
    pub ignored: BTreeMap<String, u64>,
    /// The place of each row in the files.
    pub places: Places,
    pub files: Vec<ReadFile>,
    /// In order; the files of each are in `files`.
    pub sources: Vec<ReadSource>,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParseError {
    #[error("{file}: {found}; expected JSON lines, a JSON array, CSV, Parquet or Arrow: {advice}")]
    Format { file: String, found: String, advice: String },
    #[error("{file}: has no column {theirs}, which `columns` gives for {own}; its columns are {found}")]
    Column { file: String, own: String, theirs: String, found: String },
    #[error("{file}: holds no rows; {expected} are expected, {form}")]
    Empty { file: String, expected: &'static str, form: &'static str },
    #[error(
        "{place}: up to here, the job's rows take more than the {} GiB of memory that a rank has for them; give fewer \
         rows, or shorter ones",
        Budget::BYTES >> 30
    )]
    TooLarge { place: Place },
    #[error(transparent)]
    Spill(#[from] SpillError),
    #[error(
        "{bad_rows} of {} {} unusable, more than data.max_bad_fraction ({allowed}) allows; the first is {first}: {advice}",
        counted(*records, "row"),
        are(*bad_rows)
    )]
    TooManyBad { bad_rows: u64, records: u64, allowed: f64, first: String, advice: String },
}

/// The reason why a row is not kept.
enum Unkept {
    /// The rows exceed the budget.
    TooLarge,
    Spill(SpillError),
}

impl From<SpillError> for Unkept {
    fn from(error: SpillError) -> Self {
        Self::Spill(error)
    }
}

impl<T: Row> Parsed<RowSet<T>> {
    /// The same with all rows in memory.
    pub fn in_memory(self) -> Result<Parsed<Vec<T>>, SpillError> {
        let rows = self.rows.to_vec()?;
        Ok(self.with(rows))
    }
}

impl<R> Parsed<R> {
    /// The same with other rows.
    fn with<S>(self, rows: S) -> Parsed<S> {
        let Self { rows: _, records, bad_rows, bad, misfit, skipped, ignored, places, files, sources } = self;
        Parsed { rows, records, bad_rows, bad, misfit, skipped, ignored, places, files, sources }
    }

    /// Fails if more than `allowed` (a fraction) of all records are bad. `field` is that of the set.
    pub fn require(&self, field: &str, allowed: f64) -> Result<(), ParseError> {
        if self.bad_rows == 0 || self.bad_rows as f64 <= allowed * self.records as f64 {
            return Ok(());
        }
        let first = self.bad.first().map(ToString::to_string).unwrap_or_default();
        let advice = match self.misfit {
            Some((source, misfit)) => misfit.advice(&format!("{field}[{source}]")),
            None => "repair the file or raise the fraction".to_owned(),
        };
        let (bad_rows, records) = (self.bad_rows, self.records);
        Err(ParseError::TooManyBad { bad_rows, records, allowed, first, advice })
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

/// Parses one file into memory. `file` names it in messages.
pub fn parse<T: Wanted>(file: &str, bytes: &[u8]) -> Result<Parsed<Vec<T>>, ParseError> {
    let files = [(file, Bytes::copy_from_slice(bytes).into())];
    Ok(parse_files(files, &mut Budget::default())?.in_memory()?)
}

/// Parses several files into one set, whose rows are charged to `budget`.
pub fn parse_files<'a, T: Wanted>(
    files: impl IntoIterator<Item = (&'a str, Content)>,
    budget: &mut Budget,
) -> Result<Parsed<RowSet<T>>, ParseError> {
    let names = ColumnNames::default();
    let files = files.into_iter().map(|file| SourceFiles { files: vec![file], names: &names });
    parse_sources(files, budget, &mut Everything)
}

impl Skipped {
    /// The counts since `before`.
    fn since(self, before: Self) -> Self {
        Skipped {
            duplicates: self.duplicates - before.duplicates,
            ties: self.ties - before.ties,
            spare_answers: self.spare_answers - before.spare_answers,
            undesirable: self.undesirable - before.undesirable,
        }
    }

    fn plus(self, other: Self) -> Self {
        Skipped {
            duplicates: self.duplicates + other.duplicates,
            ties: self.ties + other.ties,
            spare_answers: self.spare_answers + other.spare_answers,
            undesirable: self.undesirable + other.undesirable,
        }
    }
}

impl ReadSource {
    fn add(&mut self, file: &str, bad_rows: u64, skipped: Skipped) {
        if self.files == 0 {
            file.clone_into(&mut self.first_file);
        }
        self.files += 1;
        self.bad_rows += bad_rows;
        self.skipped = self.skipped.plus(skipped);
    }
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Found { rows: Vec::new(), ties: 0, spare_answers: 0, undesirable: 0, ignored: Vec::new() }
    }
}

//! Conversion of data files between formats and shapes, row by row.
//!
//! Without a shape, records are written as they are, with all their columns. With one, they are read as rows
//! of a set, as a job reads them, and written as another program expects them. Each record written in a shape
//! is first read back to check that it gives the row it was made from, except for white space around texts.

mod output;
mod shape;
#[cfg(test)]
mod tests;
mod types;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use self::output::Container;
use self::output::{Output, Packing};
pub use self::shape::Shape;
use self::shape::{Answers, AnyRow};
use self::types::Columns;
use super::parse::{BadRow, ColumnNames, Content, Found, ParseError, Place, RecordStream, Wanted};
use super::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};
use crate::plural::counted;

/// Number of bad rows that are kept; beyond it they are only counted.
const KEPT_BAD: usize = 5;

/// The set that records are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    Preferences,
    Golden,
    Sft,
    Prompts,
}

/// Files to read, and how to write them.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// Each with its name for messages.
    pub files: Vec<(String, Content)>,
    pub names: ColumnNames,
    pub shape: Option<Shape>,
    /// The set. Default: that of the first record.
    pub set: Option<SetKind>,
    /// Fail if more than this fraction of the records cannot be converted.
    pub max_bad_fraction: f64,
}

/// Summary of a conversion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Format and compression of the files that were read.
    pub from: Vec<String>,
    /// Records read, good and bad.
    pub read: u64,
    /// Records written.
    pub written: u64,
    pub bad_rows: u64,
    /// The first of them.
    pub bad: Vec<BadRow>,
    /// Valid records that yield no row: ties, and answers labeled undesirable.
    pub skipped: u64,
    pub set: Option<SetKind>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("{}: {reason}", path.display())]
    Output { path: PathBuf, reason: String },
    #[error("{}: is there already; --force replaces it", path.display())]
    Exists { path: PathBuf },
    #[error("{0}; convert to JSON lines, or leave the row out")]
    Type(BadRow),
    #[error(
        "{bad_rows} of {} cannot be converted, more than is allowed ({allowed}); the first is {first}",
        counted(*read, "row")
    )]
    TooManyBad { bad_rows: u64, read: u64, allowed: f64, first: String },
    #[error("{files}: no row is left to write, of {read} read")]
    Empty { files: String, read: u64 },
}

impl SetKind {
    pub const ALL: [(&str, Self); 4] = [
        ("preferences", Self::Preferences),
        ("golden", Self::Golden),
        ("sft", Self::Sft),
        ("prompts", Self::Prompts),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, set)| *set == self).map_or("", |(name, _)| name)
    }
}

impl Conversion {
    /// Writes the file `path` in the format of its extension, completely or not at all.
    ///
    /// # Errors
    /// The files cannot be read, too many of their rows cannot be converted, or the file cannot be written.
    /// An existing file is replaced only if `force` is set.
    pub fn write(&self, path: &Path, force: bool) -> Result<(Container, Report), ConvertError> {
        let fail = |reason: String| ConvertError::Output { path: path.to_owned(), reason };
        let (container, packing) = output::told_by(&path.to_string_lossy()).map_err(fail)?;
        if !force && path.symlink_metadata().is_ok() {
            return Err(ConvertError::Exists { path: path.to_owned() });
        }
        let temporary = Temporary::create(path).map_err(|error| fail(error.to_string()))?;
        let report = self.run(&temporary, container, packing, path)?;
        temporary.publish(path, force).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => ConvertError::Exists { path: path.to_owned() },
            _ => fail(error.to_string()),
        })?;
        Ok((container, report))
    }

    fn run(
        &self,
        temporary: &Temporary,
        container: Container,
        packing: Packing,
        path: &Path,
    ) -> Result<Report, ConvertError> {
        let fail =
            |error: io::Error| ConvertError::Output { path: path.to_owned(), reason: error.to_string() };
        let mut columns = Columns::default();
        if container.has_columns() {
            self.for_each(&mut |record, place| {
                columns.add(&record).map_err(|what| ConvertError::Type(BadRow { place: place.clone(), what }))
            })?;
        }
        let file = temporary.file.try_clone().map_err(fail)?;
        let mut output = Output::new(file, container, packing, columns).map_err(fail)?;
        let report = self.for_each(&mut |record, _| output.write(record).map_err(fail))?;
        output.finish().map_err(fail)?;
        Ok(report)
    }

    /// Calls `write` with each record to write and the place it was read from.
    ///
    /// # Errors
    /// Those of `write`; the files cannot be read, or too many of their rows cannot be converted.
    pub fn for_each(
        &self,
        write: &mut dyn FnMut(Value, &Place) -> Result<(), ConvertError>,
    ) -> Result<Report, ConvertError> {
        let mut report = Report { set: self.set.filter(|_| self.shape.is_some()), ..Report::default() };
        let names = if self.shape.is_some() { self.names.clone() } else { self.names.clone().with_all() };
        for (file, content) in &self.files {
            let mut records = RecordStream::open(file, content, &names)?;
            while let Some(record) = records.next_record()? {
                report.read += 1;
                let number = report.read;
                let converted = record.value.and_then(|value| self.convert(value, number, &mut report));
                match converted {
                    Ok(records) => {
                        report.skipped += u64::from(records.is_empty());
                        for converted in records {
                            report.written += 1;
                            write(converted, &record.place)?;
                        }
                    }
                    Err(what) => {
                        report.bad_rows += 1;
                        if report.bad.len() < KEPT_BAD {
                            report.bad.push(BadRow { place: record.place, what });
                        }
                    }
                }
            }
            report.from.push(records.format());
        }
        if report.bad_rows as f64 > self.max_bad_fraction * report.read as f64 {
            let Report { bad_rows, read, .. } = report;
            let first = report.bad.first().map(ToString::to_string).unwrap_or_default();
            return Err(ConvertError::TooManyBad { bad_rows, read, allowed: self.max_bad_fraction, first });
        }
        if report.written == 0 {
            let files = self.files.first().map(|(name, _)| name.clone()).unwrap_or_default();
            let files = match self.files.len() {
                0 | 1 => files,
                count => format!("{files} and {} more", count - 1),
            };
            return Err(ConvertError::Empty { files, read: report.read });
        }
        Ok(report)
    }

    /// The records that `record` is converted to.
    fn convert(&self, record: Value, number: u64, report: &mut Report) -> Result<Vec<Value>, String> {
        let Some(shape) = self.shape else {
            return match record {
                Value::Object(_) => Ok(vec![record]),
                // A prompt.
                text => Ok(vec![serde_json::json!({ "prompt": text })]),
            };
        };
        let set = match report.set {
            Some(set) => set,
            None => *report.set.insert(guess(&record)?),
        };
        let mut written = Vec::new();
        for row in rows(set, &record)? {
            let records = shape.write(&row, number)?;
            verify(set, shape, &row, &records)?;
            written.extend(records);
        }
        Ok(written)
    }
}

/// The set that a record belongs to: pairs if it compares answers, else answers, else prompts.
fn guess(record: &Value) -> Result<SetKind, String> {
    let golden = record.get("golden").is_some_and(|value| !value.is_null());
    let answers = if golden { SetKind::Golden } else { SetKind::Sft };
    let mut fault = None;
    for set in [SetKind::Preferences, answers, SetKind::Prompts] {
        match rows(set, record) {
            Ok(_) => return Ok(set),
            Err(what) => fault = fault.or(Some(what)),
        }
    }
    Err(fault.unwrap_or_default())
}

/// The rows of a record.
fn rows(set: SetKind, record: &Value) -> Result<Vec<AnyRow>, String> {
    fn read<T: Wanted>(record: &Value, row: impl Fn(T) -> AnyRow) -> Result<Vec<AnyRow>, String> {
        let mut found = Found::default();
        T::read(record, &mut found)?;
        Ok(found.rows.into_iter().map(row).collect())
    }
    match set {
        SetKind::Preferences => read(record, |row: PairRow| AnyRow {
            prompt: row.prompt,
            answers: Answers::Pair { chosen: row.chosen, rejected: row.rejected, margin: row.margin },
        }),
        SetKind::Golden => {
            read(record, |row: GoldenRow| AnyRow { prompt: row.prompt, answers: Answers::Golden(row.golden) })
        }
        SetKind::Sft => read(record, |row: DemonstrationRow| AnyRow {
            prompt: row.prompt,
            answers: Answers::Demonstration(row.answer),
        }),
        SetKind::Prompts => {
            read(record, |row: PromptRow| AnyRow { prompt: row.prompt().clone(), answers: Answers::None })
        }
    }
}

/// Checks that reading the records written for a row gives the row again.
fn verify(set: SetKind, shape: Shape, row: &AnyRow, records: &[Value]) -> Result<(), String> {
    // In KTO's shape, the two answers of a pair are separate rows.
    let (set, wanted) = match (shape, &row.answers) {
        (Shape::Kto, Answers::Pair { chosen, .. }) => (
            SetKind::Sft,
            AnyRow { prompt: row.prompt.clone(), answers: Answers::Demonstration(chosen.clone()) },
        ),
        _ => (set, row.clone()),
    };
    let read: Result<Vec<_>, String> = records.iter().map(|record| rows(set, record)).collect();
    let same = read.is_ok_and(|read| {
        let read: Vec<AnyRow> = read.into_iter().flatten().collect();
        matches!(read.as_slice(), [only] if only.is(&wanted))
    });
    match same {
        true => Ok(()),
        false => Err(format!(
            "the shape {} cannot hold this row: what would be written is read as another one; take --format conversational, or leave the \
             row out",
            shape.name()
        )),
    }
}

impl AnyRow {
    /// Whether two rows are the same, except for white space around texts and a margin that only one states.
    fn is(&self, other: &Self) -> bool {
        let same = |one: &str, other: &str| one.trim() == other.trim();
        let (one, two) = (&self.prompt.messages, &other.prompt.messages);
        let mut turns = one.iter().zip(two);
        if one.len() != two.len()
            || !turns.all(|(one, two)| one.role == two.role && same(&one.content, &two.content))
        {
            return false;
        }
        match (&self.answers, &other.answers) {
            (
                Answers::Pair { chosen, rejected, margin },
                Answers::Pair { chosen: better, rejected: worse, margin: stated },
            ) => {
                same(chosen, better)
                    && same(rejected, worse)
                    && margin
                        .zip(*stated)
                        .is_none_or(|(one, other)| (one - other).abs() <= 1e-9 * other.abs())
            }
            (Answers::Golden(one), Answers::Golden(other))
            | (Answers::Demonstration(one), Answers::Demonstration(other)) => same(one, other),
            (Answers::None, Answers::None) => true,
            _ => false,
        }
    }
}

/// A temporary file next to the target, removed on drop.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let path = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        Ok(Self { path, file })
    }

    fn publish(&self, target: &Path, force: bool) -> io::Result<()> {
        if force {
            return fs::rename(&self.path, target);
        }
        // Linking fails if the target exists. Not every file system supports links.
        match fs::hard_link(&self.path, target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !target.exists() => {
                fs::rename(&self.path, target)
            }
            result => result,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

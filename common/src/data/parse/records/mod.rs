//! Reads records from a file's bytes, each with its place. One record is in memory at a time.

mod array;
mod arrow;
mod format;
pub(super) mod json;
mod lines;
mod packing;
mod parquet;
mod table;
mod values;

use self::packing::Packing;
use super::ParseError;
use super::column_names::{ColumnNames, Renamer};
use super::content::Content;
use super::places::Position;
use crate::input_file;
use serde_json::Value;
use std::io::{self, BufRead, BufReader};

/// Maximum size of a record in bytes; a longer one is a bad row.
pub(super) const RECORD_LIMIT: usize = 8 << 20;

/// Maximum number of values in one record. In memory, a list of small numbers takes about forty times the
/// size of its text.
const VALUE_LIMIT: usize = 200_000;

/// Maximum size of an unpacked file in bytes.
const FILE_LIMIT: u64 = 4 << 30;

/// The byte-order mark, at the start of a file, or within it if such files were concatenated.
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(super) struct Record {
    pub(super) position: Position,
    pub(super) value: Result<Value, String>,
}

/// The records of a file: the elements of its arrays, the objects on its lines, or the rows of its table.
pub(super) struct Records {
    file: String,
    packing: Packing,
    form: Form,
    renamer: Renamer,
}

type Bytes = Box<dyn BufRead>;

enum Form {
    Lines(lines::Lines<Bytes>),
    Array(array::Array<Bytes>),
    Table(table::Table),
    Values(Box<values::Values>),
}

impl Records {
    /// Recognizes the format by the first bytes, and refuses files that are clearly in another format. Tables
    /// are read by `names`, whose columns they must have.
    pub(super) fn open(file: &str, content: &Content, names: &ColumnNames) -> Result<Self, ParseError> {
        let mut packed = BufReader::with_capacity(1 << 16, content.reader(0));
        let start = packed.fill_buf().map_err(|error| unreadable(file, Packing::Plain, &error))?;
        let packing = Packing::of(start);
        let fail = |error| unreadable(file, packing, &error);
        if start.starts_with(parquet::MAGIC) {
            let form = Form::Table(parquet::open(file, content, names)?);
            return Ok(Records { file: file.to_owned(), packing, form, renamer: Renamer::default() });
        }
        let mut bytes = packing.unpack(packed, FILE_LIMIT + 1).map_err(fail)?;
        let start = bytes.fill_buf().map_err(fail)?;
        if arrow::is_arrow(start) {
            let form = Form::Table(arrow::open(file, packing, bytes, names)?);
            return Ok(Records { file: file.to_owned(), packing, form, renamer: Renamer::default() });
        }
        refuse_foreign(file, start)?;
        let mut line = 1;
        let form = match skip_blank(&mut bytes, &mut line).map_err(fail)? {
            Some(b'[') => Form::Array(array::Array::new(bytes, line)),
            Some(b'{') | None => Form::Lines(lines::Lines::new(bytes, line)),
            // Separated values are recognized only by the name.
            Some(_) => match values::separator(file) {
                Some(separator) => {
                    let values = values::Values::open(file, separator, bytes, line, names, fail)?;
                    Form::Values(Box::new(values))
                }
                None => Form::Lines(lines::Lines::new(bytes, line)),
            },
        };
        let renamer = match form {
            Form::Lines(_) | Form::Array(_) => Renamer::new(names),
            Form::Table(_) | Form::Values(_) => Renamer::default(),
        };
        Ok(Records { file: file.to_owned(), packing, form, renamer })
    }

    /// Columns that are not read, whatever they hold.
    pub(super) fn ignored(&self) -> &[String] {
        match &self.form {
            Form::Table(table) => table.ignored(),
            Form::Values(values) => values.ignored(),
            Form::Lines(_) | Form::Array(_) => self.renamer.hidden(),
        }
    }

    /// How the file's format holds rows, for messages.
    pub(super) fn one_each(&self) -> &'static str {
        match &self.form {
            Form::Lines(_) => "one JSON object per line",
            Form::Array(_) => "one JSON object each in the array",
            Form::Table(_) => "one a row",
            Form::Values(_) => "one a row below the header",
        }
    }

    /// The format and compression, for reports.
    pub(super) fn format(&self) -> String {
        let form = match &self.form {
            Form::Lines(_) => format::LINES,
            Form::Array(_) => format::ARRAY,
            Form::Table(table) => table.kind(),
            Form::Values(values) => values.kind(),
        };
        match self.packing {
            Packing::Plain => form.to_owned(),
            packing => format!("{form}, {packing}"),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, ParseError> {
        let (record, read) = match &mut self.form {
            Form::Table(table) => return table.next(),
            Form::Lines(lines) => (lines.next(), lines.bytes_read()),
            Form::Array(array) => (array.next(), array.bytes_read()),
            Form::Values(values) => (values.next(), values.bytes_read()),
        };
        if read > FILE_LIMIT {
            let found = format!("more than {} GiB of text", FILE_LIMIT >> 30);
            return Err(format_error(&self.file, &found, "split the file"));
        }
        let record = record.map_err(|error| unreadable(&self.file, self.packing, &error))?;
        match record {
            Some(Record { position, value }) => {
                let value = value.map(|value| self.renamer.rename(value));
                Ok(Some(Record { position, value }))
            }
            None => self.renamer.finish(&self.file).map(|()| None),
        }
    }
}

fn format_error(file: &str, found: &str, advice: &str) -> ParseError {
    ParseError::Format { file: file.to_owned(), found: found.to_owned(), advice: advice.to_owned() }
}

fn unreadable(file: &str, packing: Packing, error: &io::Error) -> ParseError {
    match packing.explain(error) {
        Some((found, advice)) => format_error(file, &found, advice),
        None => format_error(file, &format!("a file that cannot be read ({error})"), "check the file"),
    }
}

fn refuse_foreign(file: &str, start: &[u8]) -> Result<(), ParseError> {
    if input_file::is_lfs_pointer(start) {
        return Err(format_error(
            file,
            "a Git LFS pointer in place of the file",
            "fetch it with `git lfs pull`",
        ));
    }
    let text = start.trim_ascii_start();
    let is_page = [&b"<!doctype"[..], b"<html"]
        .iter()
        .any(|tag| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag)));
    if is_page {
        return Err(format_error(
            file,
            "a web page",
            "a download failed or needs a login; fetch the file again",
        ));
    }
    if Packing::of(start) != Packing::Plain {
        return Err(format_error(file, "a file that was compressed twice", "unpack it once"));
    }
    if start.starts_with(parquet::MAGIC) {
        let advice = "unpack it: its columns are compressed already";
        return Err(format_error(file, "a Parquet file that was compressed as a whole", advice));
    }
    let foreign = [
        (&b"PK\x03\x04"[..], "a zip archive"),
        (b"BZh", "a bzip2 file"),
        (b"\xfd7zXZ", "an xz file"),
        (b"\xff\xfe", "UTF-16 text"),
        (b"\xfe\xff", "UTF-16 text"),
    ];
    match foreign.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, found)) => Err(format_error(file, found, "convert it first")),
        None => Ok(()),
    }
}

/// Skips white space and byte-order marks, counting lines, and returns the byte that follows without
/// consuming it.
fn skip_blank(bytes: &mut impl BufRead, line: &mut u64) -> io::Result<Option<u8>> {
    loop {
        let chunk = bytes.fill_buf()?;
        let Some(&first) = chunk.first() else { return Ok(None) };
        // A mark is consumed byte by byte, because a chunk may end within it. No JSON text begins with its
        // bytes.
        if !first.is_ascii_whitespace() && !BOM.contains(&first) {
            return Ok(Some(first));
        }
        *line += u64::from(first == b'\n');
        bytes.consume(1);
    }
}

/// The text without surrounding white space and byte-order marks.
fn trim(mut text: &[u8]) -> &[u8] {
    loop {
        let trimmed = text.trim_ascii();
        let trimmed = trimmed.strip_prefix(BOM).unwrap_or(trimmed);
        let trimmed = trimmed.strip_suffix(BOM).unwrap_or(trimmed);
        if trimmed.len() == text.len() {
            return text;
        }
        text = trimmed;
    }
}

fn overlong() -> String {
    format!("the row is longer than {} MiB", RECORD_LIMIT >> 20)
}

fn many_values() -> String {
    format!("the row holds more than {VALUE_LIMIT} values")
}

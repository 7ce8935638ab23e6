//! Tables of separated values: CSV and TSV. Values are texts, except for labels and numbers. An empty value
//! counts as absent.

use super::super::ParseError;
use super::super::column_names::ColumnNames;
use super::super::columns::Kind;
use super::super::places::Position;
use super::super::value::excerpt;
use super::format::{CSV, TSV};
use super::{Bytes, RECORD_LIMIT, Record, VALUE_LIMIT, format_error, many_values, overlong};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde_json::{Map, Number, Value};
use std::collections::HashSet;
use std::io::{self, BufRead};

/// Size of a buffer that most records fit in.
const BUFFER: usize = 1 << 12;

const TAB: u8 = b'\t';

/// Maximum number of columns named in a message.
const NAMED: usize = 12;

/// The separator that a file's name implies; `None` if the name is not that of a table.
pub(super) fn separator(file: &str) -> Option<u8> {
    let name = file.to_lowercase();
    let name = [".gz", ".zst"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" => Some(b','),
        "tsv" => Some(TAB),
        _ => None,
    }
}

/// A table whose first record names its columns.
pub(super) struct Values {
    bytes: Bytes,
    reader: Reader,
    /// The columns; `None` for those that are not read.
    names: Vec<Option<(String, Option<Kind>)>>,
    ignored: Vec<String>,
    separator: u8,
    /// Number of lines before the reader's first byte.
    first_line: u64,
    text: Vec<u8>,
    ends: Vec<usize>,
    read: u64,
}

/// The value of a text cell. In columns of labels and numbers, a number or a truth value (also `True`, as
/// Python writes it) is converted.
fn value(kind: Option<Kind>, text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    if !matches!(kind, Some(Kind::Label | Kind::Margin)) {
        return Value::from(text);
    }
    let trimmed = text.trim();
    if let Ok(whole) = trimmed.parse::<i64>() {
        return Value::from(whole);
    }
    match trimmed.to_ascii_lowercase().as_str() {
        "true" => Value::from(true),
        "false" => Value::from(false),
        _ => trimmed.parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::from(text), Value::Number),
    }
}

/// A record as it is in the file.
struct Raw {
    line: u64,
    /// Number of fields, and their total bytes.
    size: Result<(usize, usize), String>,
}

impl Values {
    /// Reads the first record, which names the columns; `line` is where the bytes begin, and `fail` explains
    /// an error of reading them.
    pub(super) fn open(
        file: &str,
        separator: u8,
        bytes: Bytes,
        line: u64,
        names: &ColumnNames,
        fail: impl Fn(io::Error) -> ParseError,
    ) -> Result<Self, ParseError> {
        let mut values = Values {
            bytes,
            reader: ReaderBuilder::new().delimiter(separator).build(),
            names: Vec::new(),
            ignored: Vec::new(),
            separator,
            first_line: line - 1,
            text: vec![0; BUFFER],
            ends: vec![0; BUFFER / 16],
            read: 0,
        };
        let header = match values.raw().map_err(fail)? {
            Some(raw) => raw.size.and_then(|size| values.fields(size)),
            None => Ok(Vec::new()),
        };
        let header = header
            .map_err(|what| format_error(file, &format!("a broken first line ({what})"), "repair it"))?;
        let header = header.into_iter().map(|name| name.trim().to_owned()).collect::<Vec<_>>();
        values.name(file, &header, names)?;
        Ok(values)
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.separator == TAB { TSV } else { CSV }
    }

    pub(super) fn ignored(&self) -> &[String] {
        &self.ignored
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.read
    }

    fn name(&mut self, file: &str, header: &[String], names: &ColumnNames) -> Result<(), ParseError> {
        names.require(file, header.iter().map(String::as_str))?;
        let mut seen = HashSet::new();
        for name in header {
            if !name.is_empty() && !seen.insert(name) {
                let found = format!("the column {:?} twice", excerpt(name, 64));
                return Err(format_error(file, &found, "rename one of the two"));
            }
            let known = names.find(name);
            if known.is_none() && !name.is_empty() {
                self.ignored.push(name.clone());
            }
            self.names.push(known.map(|(own, column)| (own, column.map(|column| column.kind))));
        }
        if self.names.iter().flatten().next().is_none() {
            let shown: Vec<_> = header.iter().take(NAMED).map(|name| excerpt(name, 64)).collect();
            let separator = if self.separator == TAB { "tabs" } else { "commas" };
            let found = format!(
                "a table whose first line names no column that rows are read by: {}",
                shown.join(" | ")
            );
            let advice = format!(
                "name the columns in the first line as common/README.md lists them, separated by {separator}, or give \
                 the file's names for them by `columns`, such as columns: {{ prompt: question, chosen: good }}"
            );
            return Err(format_error(file, &found, &advice));
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(raw) = self.raw()? else { return Ok(None) };
        let value = raw.size.and_then(|size| self.record(size));
        Ok(Some(Record { position: Position::Line(raw.line), value }))
    }

    fn record(&self, size: (usize, usize)) -> Result<Value, String> {
        let fields = self.fields(size)?;
        if fields.len() != self.names.len() {
            return Err(format!(
                "found {} values, the first line names {} columns; a value with separators, quotes or line ends in it \
                 stands in quotes",
                fields.len(),
                self.names.len()
            ));
        }
        let named = self.names.iter().zip(fields);
        let named = named.filter_map(|(column, value)| Some((column.as_ref()?, value)));
        let fields = named.map(|((name, kind), text)| (name.clone(), value(*kind, text)));
        Ok(Value::Object(fields.collect::<Map<_, _>>()))
    }

    /// The fields of the record that was read last.
    fn fields(&self, (count, bytes): (usize, usize)) -> Result<Vec<&str>, String> {
        let text = std::str::from_utf8(&self.text[..bytes]).map_err(|error| {
            format!("not UTF-8: byte {} of the row is not part of a character", error.valid_up_to() + 1)
        })?;
        let mut start = 0;
        let mut fields = Vec::with_capacity(count);
        for &end in &self.ends[..count] {
            // A separator may split a character.
            fields.push(text.get(start..end).ok_or("not UTF-8: a character is cut by a separator")?);
            start = end;
        }
        Ok(fields)
    }

    /// Skips blank lines, so that a record is named by its own line.
    fn skip_line_ends(&mut self) -> io::Result<()> {
        loop {
            let input = self.bytes.fill_buf()?;
            let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if blank == 0 {
                return Ok(());
            }
            self.first_line += input[..blank].iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.read += blank as u64;
            self.bytes.consume(blank);
        }
    }

    /// The next record that is not blank.
    fn raw(&mut self) -> io::Result<Option<Raw>> {
        self.skip_line_ends()?;
        let line = self.first_line + self.reader.line();
        let (mut count, mut bytes) = (0, 0);
        let mut fault = None;
        let mut quotes = 0;
        loop {
            let input = self.bytes.fill_buf()?;
            let at_end = input.is_empty();
            let (result, taken, written, ended) =
                self.reader.read_record(input, &mut self.text[bytes..], &mut self.ends[count..]);
            quotes += input[..taken].iter().filter(|&&byte| byte == b'"').count();
            self.bytes.consume(taken);
            self.read += taken as u64;
            (bytes, count) = (bytes + written, count + ended);
            match result {
                ReadRecordResult::InputEmpty => {}
                // The rest of a record that is too long is skipped.
                ReadRecordResult::OutputFull if bytes >= RECORD_LIMIT => {
                    fault.get_or_insert_with(overlong);
                    bytes = 0;
                }
                ReadRecordResult::OutputEndsFull if count >= VALUE_LIMIT => {
                    fault.get_or_insert_with(many_values);
                    count = 0;
                }
                ReadRecordResult::OutputFull => self.text.resize((2 * self.text.len()).min(RECORD_LIMIT), 0),
                ReadRecordResult::OutputEndsFull => {
                    self.ends.resize((2 * self.ends.len()).min(VALUE_LIMIT), 0);
                }
                ReadRecordResult::Record => {
                    // After an unclosed quote, the reader takes the rest of the file as the value.
                    if at_end && quotes % 2 == 1 {
                        fault = Some("a quote is not closed before the end of the file".to_owned());
                    }
                    let size = fault.map_or(Ok((count, bytes)), Err);
                    return Ok(Some(Raw { line, size }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }
}

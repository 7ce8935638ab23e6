//! Reads JSON values from a file's bytes, each with its place. One record is in memory at a time.

mod array;
mod json;
mod lines;

use super::ParseError;
use crate::input_file;
use flate2::bufread::MultiGzDecoder;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read};

/// Maximum size of a record in bytes; a longer one is a bad row.
pub(super) const RECORD_LIMIT: usize = 8 << 20;

/// Maximum size of an unpacked file in bytes.
const FILE_LIMIT: u64 = 4 << 30;

/// The byte-order mark, at the start of a file, or within it if such files were concatenated.
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(super) struct Record {
    pub(super) line: u64,
    pub(super) element: Option<u64>,
    pub(super) value: Result<Value, String>,
}

/// The records of a file: the elements of its arrays, else the objects on its lines.
pub(super) struct Records<'a> {
    file: String,
    form: Form<'a>,
}

type Bytes<'a> = Box<dyn BufRead + 'a>;

enum Form<'a> {
    Lines(lines::Lines<Bytes<'a>>),
    Array(array::Array<Bytes<'a>>),
}

impl<'a> Records<'a> {
    /// Unpacks gzip (recognized by its first bytes) and refuses files that are clearly not JSON.
    pub(super) fn open(file: &str, bytes: impl Read + 'a) -> Result<Self, ParseError> {
        let mut packed = BufReader::with_capacity(1 << 16, bytes);
        let start = packed.fill_buf().map_err(|error| unreadable(file, &error))?;
        refuse_foreign(file, start)?;
        let mut bytes: Bytes<'a> = if start.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(packed).take(FILE_LIMIT + 1)))
        } else {
            Box::new(packed.take(FILE_LIMIT + 1))
        };
        let mut line = 1;
        let first = skip_blank(&mut bytes, &mut line).map_err(|error| unreadable(file, &error))?;
        let form = match first {
            Some(b'[') => Form::Array(array::Array::new(bytes, line)),
            Some(byte) if byte != b'{' && is_table(file) => {
                return Err(format_error(file, "a table of separated values", "convert it first"));
            }
            _ => Form::Lines(lines::Lines::new(bytes, line)),
        };
        Ok(Records { file: file.to_owned(), form })
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, ParseError> {
        let (record, read) = match &mut self.form {
            Form::Lines(lines) => (lines.next(), lines.bytes_read()),
            Form::Array(array) => (array.next(), array.bytes_read()),
        };
        if read > FILE_LIMIT {
            let found = format!("more than {} GiB of text", FILE_LIMIT >> 30);
            return Err(format_error(&self.file, &found, "split the file"));
        }
        record.map_err(|error| unreadable(&self.file, &error))
    }
}

fn format_error(file: &str, found: &str, advice: &str) -> ParseError {
    ParseError::Format { file: file.to_owned(), found: found.to_owned(), advice: advice.to_owned() }
}

fn unreadable(file: &str, error: &io::Error) -> ParseError {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            let found = format!("broken gzip data ({error})");
            format_error(file, &found, "the file may be cut short; fetch it again")
        }
        _ => format_error(file, &format!("a file that cannot be read ({error})"), "check the file"),
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
    let foreign = [
        (&b"PAR1"[..], "a Parquet file"),
        (b"ARROW1", "an Arrow file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"BZh", "a bzip2 file"),
        (b"\xfd7zXZ", "an xz file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"\xff\xfe", "UTF-16 text"),
        (b"\xfe\xff", "UTF-16 text"),
    ];
    match foreign.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, found)) => Err(format_error(file, found, "convert it first")),
        None => Ok(()),
    }
}

/// Whether a file is a table of separated values, by its name: its first bytes do not tell.
fn is_table(file: &str) -> bool {
    let name = file.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    matches!(name.rsplit_once('.'), Some((_, "csv" | "tsv")))
}

/// Skips white space and byte-order marks, counting lines, and returns the byte that follows without
/// consuming it.
fn skip_blank(bytes: &mut impl BufRead, line: &mut u64) -> io::Result<Option<u8>> {
    loop {
        let chunk = bytes.fill_buf()?;
        let Some(&first) = chunk.first() else { return Ok(None) };
        // A mark is taken byte by byte, because a chunk may end within it; its bytes begin no JSON text.
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

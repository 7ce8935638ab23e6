//! From a file's bytes to JSON values, each with its place.

use super::{ParseError, describe};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;

/// What a gzipped file may unpack to, in bytes: beyond it a small upload could fill the coordinator's memory.
const UNPACKED_LIMIT: u64 = 4 << 30;

pub(super) struct Record {
    pub(super) line: usize,
    pub(super) element: Option<usize>,
    pub(super) value: Result<Value, String>,
}

/// Unpacks gzip (told by its first bytes) and refuses what is clearly no JSON text.
pub(super) fn decompress<'a>(file: &str, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, ParseError> {
    let fail = |found: &str, advice: &str| ParseError::Format {
        file: file.to_owned(),
        found: found.to_owned(),
        advice: advice.to_owned(),
    };
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        let read = MultiGzDecoder::new(bytes).take(UNPACKED_LIMIT + 1).read_to_end(&mut unpacked);
        if let Err(error) = read {
            return Err(fail(
                &format!("broken gzip data ({error})"),
                "the file may be cut short; fetch it again",
            ));
        }
        if unpacked.len() as u64 > UNPACKED_LIMIT {
            return Err(fail("more than 4 GiB when unpacked", "split the file"));
        }
        return Ok(Cow::Owned(unpacked));
    }
    let foreign = [
        (&b"PAR1"[..], "a Parquet file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"BZh", "a bzip2 file"),
        (b"\xfd7zXZ", "an xz file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"\xff\xfe", "UTF-16 text"),
        (b"\xfe\xff", "UTF-16 text"),
    ];
    match foreign.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, found)) => Err(fail(found, "convert it first")),
        None => Ok(Cow::Borrowed(bytes)),
    }
}

/// The records of a file: the elements of an array, else one per line.
pub(super) fn split(bytes: &[u8]) -> Vec<Record> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match bytes.iter().position(|byte| !byte.is_ascii_whitespace()) {
        None => Vec::new(),
        Some(start) if bytes[start] == b'[' => array(bytes, start + 1),
        Some(start) => lines(bytes, start),
    }
}

fn lines(bytes: &[u8], start: usize) -> Vec<Record> {
    let mut records = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if !line.is_empty() {
            records.push(Record { line: index + 1, element: None, value: json(line) });
        }
    }
    // A single object written over several lines.
    if records.len() > 1
        && bytes[start] == b'{'
        && records[0].value.is_err()
        && let Ok(value) = json(bytes[start..].trim_ascii())
    {
        let line = records[0].line;
        return vec![Record { line, element: None, value: Ok(value) }];
    }
    records
}

fn array(bytes: &[u8], start: usize) -> Vec<Record> {
    let (spans, fault) = elements(bytes, start);
    let mut records = Vec::with_capacity(spans.len());
    let mut counted = 0;
    let mut line = 1;
    for (element, span) in spans.into_iter().enumerate() {
        let text = bytes[span.clone()].trim_ascii();
        let offset = bytes[span.clone()].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let first = (span.start + offset).min(span.end);
        line += bytes[counted..first].iter().filter(|&&byte| byte == b'\n').count();
        counted = first;
        records.push(Record { line, element: Some(element), value: json(text) });
    }
    if let Some((at, what)) = fault {
        line += bytes[counted..at].iter().filter(|&&byte| byte == b'\n').count();
        records.push(Record { line, element: None, value: Err(what.to_owned()) });
    }
    records
}

/// Where the elements of an array lie, and what is wrong at its end. Elements are told apart by brackets and strings
/// alone, so that one broken element leaves the others readable.
fn elements(bytes: &[u8], start: usize) -> (Vec<Range<usize>>, Option<(usize, &'static str)>) {
    let mut spans = Vec::new();
    let mut from = start;
    let mut open = Vec::new();
    let mut at = start;
    let blank = |range: Range<usize>| bytes[range].iter().all(u8::is_ascii_whitespace);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            opener @ (b'[' | b'{') => open.push(opener),
            b']' if open.is_empty() || !open.contains(&b'[') && blank(at + 1..bytes.len()) => {
                if !(spans.is_empty() && blank(from..at)) {
                    spans.push(from..at);
                }
                let fault =
                    (!blank(at + 1..bytes.len())).then_some((at, "more text follows the array's end"));
                return (spans, fault);
            }
            // What a closing bracket does not match was left open by a broken element.
            closer @ (b']' | b'}') => {
                let opener = if closer == b']' { b'[' } else { b'{' };
                if let Some(matching) = open.iter().rposition(|&bracket| bracket == opener) {
                    open.truncate(matching);
                }
            }
            b',' if open.is_empty() => {
                spans.push(from..at);
                from = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    let end = bytes.len();
    if !blank(from..end) {
        spans.push(from..end);
    }
    (spans, Some((end, "the array has no end: the file may be cut short")))
}

/// The closing quote of the string that opens at `open`, or the last byte.
fn string_end(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'"' => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len() - 1
}

fn json(text: &[u8]) -> Result<Value, String> {
    if let Err(error) = std::str::from_utf8(text) {
        return Err(format!(
            "not UTF-8: byte {} of the row is no part of a character",
            error.valid_up_to() + 1
        ));
    }
    match serde_json::from_slice(text) {
        Ok(value @ (Value::Object(_) | Value::String(_))) => Ok(value),
        Ok(other) => Err(format!("found {}; a row is a JSON object", describe(&other))),
        Err(error) => {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            let place = match error.line() {
                0 | 1 => format!("column {}", error.column()),
                line => format!("line {line} of the row, column {}", error.column()),
            };
            Err(format!("not JSON: {message} at {place}"))
        }
    }
}

//! The elements of JSON arrays. Only brackets and strings are examined to separate them, so that one broken
//! element leaves the others readable.

use super::super::places::Position;
use super::{BOM, RECORD_LIMIT, Record, json, overlong, trim};
use std::io::{self, BufRead};

/// Number of open brackets whose kind is known; deeper ones are only counted. serde_json refuses such a row
/// anyway.
const DEPTH: usize = 128;

pub(super) struct Array<R> {
    bytes: R,
    line: u64,
    read: u64,
    state: State,
    /// Index of the next element.
    index: u64,
    element: Element,
    scan: Scan,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the opening bracket of the file's first array or of a further one.
    Outside,
    Inside,
    /// The file ended within an array whose last element has been returned.
    Cut,
    Done,
}

/// The part of an element read so far.
#[derive(Default)]
struct Element {
    text: Vec<u8>,
    /// Line of its first byte.
    line: u64,
    overlong: bool,
    /// The length up to a closing bracket that may be the array's, if only white space follows it.
    maybe_end: Option<usize>,
}

/// The scan's position in the structure of an element.
#[derive(Default)]
struct Scan {
    open: Vec<u8>,
    deeper: u64,
    quoted: bool,
    escaped: bool,
}

#[derive(PartialEq, Eq)]
enum Step {
    /// Part of the element.
    Inner,
    /// A closing bracket that matches no open one, after an object: the array's own, if nothing follows.
    MaybeEnd,
    Comma,
    End,
}

impl<R: BufRead> Array<R> {
    pub(super) fn new(bytes: R, line: u64) -> Self {
        let (element, scan) = (Element::default(), Scan::default());
        Array { bytes, line, read: 0, state: State::Outside, index: 0, element, scan }
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.read
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            match self.state {
                State::Done => return Ok(None),
                State::Cut => {
                    self.state = State::Done;
                    return Ok(Some(self.fault("the array has no end: the file may be cut short")));
                }
                State::Outside => {
                    if let Some(record) = self.enter()? {
                        return Ok(Some(record));
                    }
                }
                State::Inside => {
                    if let Some(record) = self.advance()? {
                        return Ok(Some(record));
                    }
                }
            }
        }
    }

    fn fault(&self, what: &str) -> Record {
        Record { position: Position::Line(self.line), value: Err(what.to_owned()) }
    }

    /// Moves to the first element of the next array. A file has several arrays if files were concatenated.
    fn enter(&mut self) -> io::Result<Option<Record>> {
        match super::skip_blank(&mut self.bytes, &mut self.line)? {
            None => self.state = State::Done,
            Some(b'[') => {
                self.take_byte();
                (self.state, self.index, self.scan) = (State::Inside, 0, Scan::default());
            }
            Some(_) => {
                self.state = State::Done;
                return Ok(Some(self.fault("more text follows the array's end")));
            }
        }
        Ok(None)
    }

    fn take_byte(&mut self) {
        self.bytes.consume(1);
        self.read += 1;
    }

    /// Reads up to an element's end, or to the end of the buffered bytes.
    fn advance(&mut self) -> io::Result<Option<Record>> {
        let chunk = self.bytes.fill_buf()?;
        if chunk.is_empty() {
            return Ok(self.end_of_file());
        }
        for (at, &byte) in chunk.iter().enumerate() {
            let step = self.scan.step(byte);
            match step {
                Step::Inner | Step::MaybeEnd => self.element.push(byte, step == Step::MaybeEnd, self.line),
                Step::Comma | Step::End => {
                    self.bytes.consume(at + 1);
                    self.read += at as u64 + 1;
                    return Ok(self.finish(step == Step::End));
                }
            }
            self.line += u64::from(byte == b'\n');
        }
        let count = chunk.len();
        self.bytes.consume(count);
        self.read += count as u64;
        Ok(None)
    }

    fn finish(&mut self, last: bool) -> Option<Record> {
        let is_empty = self.element.is_empty();
        if last {
            self.state = State::Outside;
        }
        if last && is_empty && self.index == 0 {
            self.element = Element::default();
            return None;
        }
        Some(self.record())
    }

    fn end_of_file(&mut self) -> Option<Record> {
        match self.element.maybe_end {
            Some(end) => {
                self.element.text.truncate(end);
                self.state = State::Done;
            }
            None => self.state = State::Cut,
        }
        (!self.element.is_empty()).then(|| self.record())
    }

    fn record(&mut self) -> Record {
        let element = std::mem::take(&mut self.element);
        let index = self.index;
        self.index += 1;
        let line = if element.is_empty() { self.line } else { element.line };
        let value = if element.overlong { Err(overlong()) } else { whole(&element.text) };
        Record { position: Position::Element { line, index }, value }
    }
}

fn whole(text: &[u8]) -> Result<serde_json::Value, String> {
    let text = trim(text);
    let parsed = json::read(text);
    let rest = trim(parsed.rest);
    if rest.is_empty() {
        return parsed.value;
    }
    let advice = if rest.starts_with(b"{") { "; a comma is missing between two rows" } else { "" };
    Err(format!("not JSON: trailing characters at column {}{advice}", text.len() - rest.len() + 1))
}

impl Element {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && !self.overlong
    }

    fn push(&mut self, byte: u8, maybe_end: bool, line: u64) {
        let blank = byte.is_ascii_whitespace();
        if self.is_empty() {
            if blank || BOM.contains(&byte) {
                return;
            }
            self.line = line;
        }
        if maybe_end {
            self.maybe_end = Some(self.text.len());
        } else if !blank {
            self.maybe_end = None;
        }
        if self.text.len() < RECORD_LIMIT {
            self.text.push(byte);
        } else {
            self.overlong |= !blank;
        }
    }
}

impl Scan {
    fn step(&mut self, byte: u8) -> Step {
        if self.escaped {
            self.escaped = false;
            return Step::Inner;
        }
        if self.quoted {
            match byte {
                b'\\' => self.escaped = true,
                b'"' => self.quoted = false,
                _ => {}
            }
            return Step::Inner;
        }
        match byte {
            b'"' => self.quoted = true,
            b'{' | b'[' if self.open.len() < DEPTH => self.open.push(byte),
            b'{' | b'[' => self.deeper += 1,
            b'}' | b']' if self.deeper > 0 => self.deeper -= 1,
            b']' if self.open.is_empty() => return Step::End,
            b',' if self.open.is_empty() => return Step::Comma,
            b'}' | b']' => return self.close(if byte == b']' { b'[' } else { b'{' }),
            _ => {}
        }
        Step::Inner
    }

    /// Closes a bracket. Open brackets that it does not match were left open by a broken element.
    fn close(&mut self, opener: u8) -> Step {
        match self.open.iter().rposition(|&bracket| bracket == opener) {
            Some(matching) => {
                self.open.truncate(matching);
                Step::Inner
            }
            None if opener == b'[' => Step::MaybeEnd,
            None => Step::Inner,
        }
    }
}

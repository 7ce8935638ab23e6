//! JSON lines, and objects that are written over several lines.

use super::super::places::Position;
use super::{BOM, RECORD_LIMIT, Record, json, overlong, trim};
use std::collections::VecDeque;
use std::io::{self, BufRead};

pub(super) struct Lines<R> {
    bytes: R,
    /// Lines that have been read but are not yet part of a record.
    waiting: VecDeque<Line>,
    /// Number of the next line of `bytes`.
    number: u64,
    read: u64,
}

struct Line {
    number: u64,
    /// Without surrounding white space; at most [`RECORD_LIMIT`] bytes.
    text: Vec<u8>,
    overlong: bool,
    /// Whether it starts in the first column.
    flush: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(bytes: R, number: u64) -> Self {
        Lines { bytes, waiting: VecDeque::new(), number, read: 0 }
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.read
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(line) = self.next_line()? else { return Ok(None) };
        let record = |value| Ok(Some(Record { position: Position::Line(line.number), value }));
        if line.overlong {
            return record(Err(overlong()));
        }
        let parsed = json::read(&line.text);
        if parsed.unfinished
            && line.text.starts_with(b"{")
            && let Some(value) = self.spread(&line)?
        {
            return record(Ok(value));
        }
        let rest = trim(parsed.rest);
        if rest.is_empty() {
            return record(parsed.value);
        }
        // Files may have been concatenated without a line end between them.
        if !rest.starts_with(b"{") {
            let column = line.text.len() - rest.len() + 1;
            return record(Err(format!("not JSON: trailing characters at column {column}")));
        }
        let rest = Line { number: line.number, text: rest.to_vec(), overlong: false, flush: true };
        self.waiting.push_front(rest);
        record(parsed.value)
    }

    /// The object that starts on `first` and ends on a later line. `None` if there is none: the lines after
    /// `first` are then read separately, so that one broken row leaves the others readable.
    fn spread(&mut self, first: &Line) -> io::Result<Option<serde_json::Value>> {
        let mut text = first.text.clone();
        let mut taken = Vec::new();
        let mut brackets = Brackets::default();
        brackets.pass(&text);
        while brackets.depth > 0 {
            let Some(line) = self.next_line()? else { break };
            // A new row: `first` was cut short.
            let stop = line.overlong
                || line.flush && line.text.starts_with(b"{")
                || text.len() + line.text.len() > RECORD_LIMIT;
            text.push(b'\n');
            text.extend_from_slice(&line.text);
            brackets.pass(b"\n");
            brackets.pass(&line.text);
            taken.push(line);
            if stop {
                brackets.depth = 1;
                break;
            }
        }
        if brackets.depth == 0 {
            let parsed = json::read(&text);
            if let Ok(value) = parsed.value
                && trim(parsed.rest).is_empty()
            {
                return Ok(Some(value));
            }
        }
        for line in taken.into_iter().rev() {
            self.waiting.push_front(line);
        }
        Ok(None)
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        if let Some(line) = self.waiting.pop_front() {
            return Ok(Some(line));
        }
        loop {
            let Some((text, overlong)) = self.raw_line()? else { return Ok(None) };
            let number = self.number;
            self.number += 1;
            let trimmed = trim(&text);
            if !trimmed.is_empty() || overlong {
                let flush =
                    text.strip_prefix(BOM).unwrap_or(&text).starts_with(&trimmed[..trimmed.len().min(1)]);
                return Ok(Some(Line { number, text: trimmed.to_vec(), overlong, flush }));
            }
        }
    }

    /// A line's first bytes, and whether it is longer than a record may be.
    fn raw_line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let (mut text, mut overlong, mut any) = (Vec::new(), false, false);
        loop {
            let chunk = self.bytes.fill_buf()?;
            if chunk.is_empty() {
                return Ok(any.then_some((text, overlong)));
            }
            any = true;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = RECORD_LIMIT - text.len();
            overlong |= part.len() > room;
            text.extend_from_slice(&part[..part.len().min(room)]);
            let taken = part.len() + usize::from(end.is_some());
            self.read += taken as u64;
            self.bytes.consume(taken);
            if end.is_some() {
                return Ok(Some((text, overlong)));
            }
        }
    }
}

/// Depth of open brackets of any kind.
#[derive(Default)]
struct Brackets {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Brackets {
    fn pass(&mut self, text: &[u8]) {
        for &byte in text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.quoted,
                b'"' => self.quoted = !self.quoted,
                b'{' | b'[' if !self.quoted => self.depth += 1,
                b'}' | b']' if !self.quoted => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }
}

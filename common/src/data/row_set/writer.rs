//! Writing the lines of a set.

use std::fs::File;
use std::io::Write;

use bytes::Bytes;

use super::lines::Lines;
use super::{RowSet, SpillError};
use crate::data::parse::Content;
use crate::data::rows::{PromptKey, Row};

/// Number of bytes up to which lines stay in memory.
const HELD: usize = 8 << 20;
/// Number of bytes that are written to a file together.
const PIECE: usize = 1 << 20;

/// The line of a row.
#[derive(Clone, Copy, Debug)]
pub(in crate::data) struct Entry {
    pub(super) id: u64,
    pub(super) prompt: PromptKey,
    pub(super) start: u64,
    /// Without the line's end.
    pub(super) length: u32,
}

/// Collects lines.
#[derive(Debug, Default)]
pub(in crate::data) struct RowWriter {
    /// What follows `written` bytes of the file.
    buffer: Vec<u8>,
    file: Option<File>,
    written: u64,
    has_groups: bool,
}

impl RowWriter {
    /// Writes a row. It belongs to the set if its entry is given to [`Self::finish`].
    pub(in crate::data) fn push<T: Row>(&mut self, row: &T) -> Result<Entry, SpillError> {
        let before = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, row).map_err(SpillError::line)?;
        let length = u32::try_from(self.buffer.len() - before);
        let length = length.map_err(|_| SpillError::line("it takes more than 4 GiB"))?;
        self.buffer.push(b'\n');
        self.has_groups |= !row.groups().is_empty();
        let start = self.written + before as u64;
        if self.buffer.len() >= if self.file.is_some() { PIECE } else { HELD } {
            self.flush()?;
        }
        Ok(Entry { id: row.id(), prompt: row.prompt().key(), start, length })
    }

    /// The set of these rows, in this order.
    pub(in crate::data) fn finish<T: Row>(mut self, entries: Vec<Entry>) -> Result<RowSet<T>, SpillError> {
        if self.file.is_some() {
            self.flush()?;
        }
        let content = match self.file {
            Some(file) => Content::from(file),
            None => Content::from(Bytes::from(self.buffer)),
        };
        Ok(RowSet::new(Lines::new(content, entries), self.has_groups))
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        let file = match &mut self.file {
            Some(file) => file,
            // It has no name, so that it goes with this process.
            none => none.insert(tempfile::tempfile().map_err(SpillError::file)?),
        };
        file.write_all(&self.buffer).map_err(SpillError::file)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

//! JSON lines and the positions of those that belong to a set.

use std::io;

use bytes::Bytes;

use super::SpillError;
use super::writer::Entry;
use crate::data::parse::Content;
use crate::data::rows::PromptKey;

/// Number of bytes that are read together.
const PIECE: usize = 1 << 20;

/// The lines of a set, each of one row.
#[derive(Clone, Debug)]
pub struct Lines {
    content: Content,
    /// In the order of the set.
    entries: Vec<Entry>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { content: Bytes::new().into(), entries: Vec::new() }
    }
}

impl Lines {
    pub(super) fn new(content: Content, entries: Vec<Entry>) -> Self {
        Self { content, entries }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Their size in bytes, with their ends.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.length) + 1).sum()
    }

    pub fn ids(&self) -> impl ExactSizeIterator<Item = u64> {
        self.entries.iter().map(|entry| entry.id)
    }

    /// The keys of the rows' prompts.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &PromptKey> {
        self.entries.iter().map(|entry| &entry.prompt)
    }

    #[cfg(test)]
    pub(super) fn is_in_a_file(&self) -> bool {
        matches!(self.content, Content::File(_))
    }

    pub(super) fn get(&self, index: usize) -> Result<Bytes, SpillError> {
        let entry = self.entries.get(index).ok_or_else(|| SpillError::line("there is no such row"))?;
        self.content.range(entry.start, entry.length as usize).map_err(SpillError::file)
    }

    /// All lines, without their ends.
    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Bytes, SpillError>> {
        let mut window = Window { content: &self.content, start: 0, bytes: Bytes::new() };
        self.entries.iter().map(move |entry| window.line(entry).map_err(SpillError::file))
    }

    /// All lines, in pieces of about a megabyte: the content of a file that [`crate::data::rows::read`]
    /// reads.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Bytes, SpillError>> {
        let mut lines = self.iter();
        std::iter::from_fn(move || {
            let mut piece = Vec::new();
            while piece.len() < PIECE {
                match lines.next() {
                    None => break,
                    Some(Err(error)) => return Some(Err(error)),
                    Some(Ok(line)) => {
                        piece.extend_from_slice(&line);
                        piece.push(b'\n');
                    }
                }
            }
            (!piece.is_empty()).then(|| Ok(piece.into()))
        })
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(usize, u64) -> bool) {
        let mut index = 0..;
        self.entries.retain(|entry| index.next().is_some_and(|index| keep(index, entry.id)));
        self.entries.shrink_to_fit();
    }

    pub(super) fn partition(self, split_off: impl Fn(&PromptKey) -> bool) -> (Self, Self) {
        let (taken, rest) = self.entries.into_iter().partition(|entry| split_off(&entry.prompt));
        (Self::new(self.content.clone(), rest), Self::new(self.content, taken))
    }
}

/// A part of the content, read ahead of the lines in it.
struct Window<'a> {
    content: &'a Content,
    start: u64,
    bytes: Bytes,
}

impl Window<'_> {
    fn line(&mut self, entry: &Entry) -> io::Result<Bytes> {
        let length = entry.length as usize;
        let within = |window: &Self| {
            let start = usize::try_from(entry.start.checked_sub(window.start)?).ok()?;
            let end = start.checked_add(length)?;
            (end <= window.bytes.len()).then(|| window.bytes.slice(start..end))
        };
        if let Some(line) = within(self) {
            return Ok(line);
        }
        self.bytes = self.content.up_to(entry.start, length.max(PIECE))?;
        self.start = entry.start;
        within(self).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

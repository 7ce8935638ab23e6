//! Sets of rows that take little memory: a set keeps its rows as JSON lines, which lie in a temporary file
//! once they are many. Memory holds the position, the id and the prompt's key of each row.

mod lines;
mod writer;

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;

use super::rows::{Prompt, PromptKey, Row, content_id};

pub use self::lines::Lines;
pub(super) use self::writer::{Entry, RowWriter};

/// Number and size of the rows that are decoded together.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 8 << 20;

/// Rows that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpillError {
    #[error(
        "cannot keep rows in a temporary file in {directory}: {what}; free space there, or set TMPDIR to a \
         directory with more"
    )]
    File { directory: String, what: String },
    #[error(
        "a row cannot be written as JSON and read again: {what}; this is a bug in Foil, please report it"
    )]
    Line { what: String },
}

impl SpillError {
    fn file(what: impl fmt::Display) -> Self {
        Self::File { directory: std::env::temp_dir().display().to_string(), what: what.to_string() }
    }

    fn line(what: impl fmt::Display) -> Self {
        Self::Line { what: what.to_string() }
    }
}

/// Rows in order, with distinct ids. Clones share the lines.
#[derive(Clone, Debug)]
pub struct RowSet<T> {
    lines: Lines,
    /// Whether a row may have groups.
    has_groups: bool,
    row: PhantomData<fn() -> T>,
}

impl<T> Default for RowSet<T> {
    fn default() -> Self {
        Self { lines: Lines::default(), has_groups: false, row: PhantomData }
    }
}

impl<T: Row> RowSet<T> {
    /// A set of rows that have their ids.
    pub fn of(rows: impl IntoIterator<Item = T>) -> Result<Self, SpillError> {
        let mut writer = RowWriter::default();
        let entries = rows.into_iter().map(|row| writer.push(&row)).collect::<Result<_, _>>()?;
        writer.finish(entries)
    }

    pub(super) fn new(lines: Lines, has_groups: bool) -> Self {
        Self { lines, has_groups, row: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The rows as JSON lines, whatever their type.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    pub fn ids(&self) -> impl ExactSizeIterator<Item = u64> {
        self.lines.ids()
    }

    /// False if no row has groups.
    pub fn has_groups(&self) -> bool {
        self.has_groups
    }

    /// The row at an index below the length.
    pub fn get(&self, index: usize) -> Result<T, SpillError> {
        decoded(&self.lines.get(index)?)
    }

    /// All rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<T, SpillError>> {
        self.lines.iter().map(|line| decoded(&line?))
    }

    /// All rows in order, several at a time.
    pub fn batches(&self) -> impl Iterator<Item = Result<Vec<T>, SpillError>> {
        let mut lines = self.lines.iter();
        std::iter::from_fn(move || {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < BATCH_ROWS && bytes < BATCH_BYTES {
                let Some(line) = lines.next() else { break };
                match line.and_then(|line| Ok((line.len(), decoded(&line)?))) {
                    Ok((length, row)) => {
                        bytes += length;
                        batch.push(row);
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            (!batch.is_empty()).then_some(Ok(batch))
        })
    }

    /// All rows in memory.
    pub fn to_vec(&self) -> Result<Vec<T>, SpillError> {
        self.iter().collect()
    }

    /// Keeps the rows whose index and id satisfy a condition.
    pub fn retain(&mut self, keep: impl FnMut(usize, u64) -> bool) {
        self.lines.retain(keep);
    }

    /// Splits off the rows whose prompts satisfy a condition: (rest, split off).
    pub fn partition(self, split_off: impl Fn(&PromptKey) -> bool) -> (Self, Self) {
        let (rest, taken) = self.lines.partition(split_off);
        (Self::new(rest, self.has_groups), Self::new(taken, self.has_groups))
    }

    /// The same rows with a change to each.
    pub fn changed(&self, mut change: impl FnMut(&mut T)) -> Result<Self, SpillError> {
        let mut writer = RowWriter::default();
        let mut entries = Vec::with_capacity(self.len());
        for row in self.iter() {
            let mut row = row?;
            change(&mut row);
            entries.push(writer.push(&row)?);
        }
        writer.finish(entries)
    }

    /// The same rows with distinct ids, for rows with the ids of their content. One that repeats an earlier
    /// row, or collides with it, hashes its occurrence too.
    pub(super) fn with_distinct_ids(self) -> Result<Self, SpillError> {
        let mut ids: Vec<u64> = self.ids().collect();
        ids.sort_unstable();
        if ids.windows(2).all(|two| two[0] != two[1]) {
            return Ok(self);
        }
        let mut used = HashSet::with_capacity(self.len());
        self.changed(|row| {
            let id = (0..).map(|occurrence| content_id(row, occurrence)).find(|id| used.insert(*id));
            row.set_id(id.unwrap_or_default());
        })
    }
}

fn decoded<T: Row>(line: &Bytes) -> Result<T, SpillError> {
    serde_json::from_slice(line).map_err(SpillError::line)
}

impl Lines {
    /// The prompt of the row at an index below the length.
    pub fn prompt(&self, index: usize) -> Result<Prompt, SpillError> {
        prompt(&self.get(index)?)
    }

    /// The prompts of all rows with their keys, in order.
    pub fn prompts(&self) -> impl Iterator<Item = Result<(PromptKey, Prompt), SpillError>> {
        self.keys().copied().zip(self.iter()).map(|(key, line)| Ok((key, prompt(&line?)?)))
    }
}

fn prompt(line: &Bytes) -> Result<Prompt, SpillError> {
    /// What rows of all types have.
    #[derive(serde::Deserialize)]
    struct Prompted {
        prompt: Prompt,
    }
    serde_json::from_slice(line).map(|row: Prompted| row.prompt).map_err(SpillError::line)
}

#[cfg(test)]
mod tests;

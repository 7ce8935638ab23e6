//! Places of rows in files, so that a row that is dropped later can be named.

use std::fmt;

/// A record in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub position: Position,
}

/// The position of a record in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Line where the record starts, from 1.
    Line(u64),
    /// Element of an array, from 0, and the line where it starts.
    Element { line: u64, index: u64 },
    /// Row of a table without lines, from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Position::Line(line) => write!(f, "{}:{line}", self.file),
            Position::Element { line, index } => write!(f, "{}:{line}: [{index}]", self.file),
            Position::Row(row) => write!(f, "{}: row {row}", self.file),
        }
    }
}

/// The places of a set's rows, by the rows' ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    files: Vec<PlacedFile>,
    /// Sorted by id.
    rows: Vec<(u64, Origin)>,
}

/// A file that rows came from.
#[derive(Clone, Debug, PartialEq)]
struct PlacedFile {
    name: String,
    source: usize,
}

/// A compact [`Place`]; a job has one for every row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Origin {
    file: u32,
    /// [`NO_LINE`] in tables.
    line: u32,
    /// The element or row; [`NO_INDEX`] if there are only lines.
    index: u32,
}

const NO_LINE: u32 = 0;
const NO_INDEX: u32 = u32::MAX;

impl Origin {
    pub(super) fn new(file: u32, position: Position) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (line, index) = match position {
            Position::Line(line) => (narrow(line), NO_INDEX),
            Position::Element { line, index } => (narrow(line), narrow(index)),
            Position::Row(row) => (NO_LINE, narrow(row)),
        };
        Origin { file, line, index }
    }

    fn position(self) -> Position {
        match (u64::from(self.line), u64::from(self.index)) {
            (_, row) if self.line == NO_LINE => Position::Row(row),
            (line, _) if self.index == NO_INDEX => Position::Line(line),
            (line, index) => Position::Element { line, index },
        }
    }
}

impl Places {
    /// The place of the row with this id; `None` for rows that came from no file.
    pub fn of(&self, id: u64) -> Option<Place> {
        let at = self.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.name(self.rows[at].1))
    }

    /// The index of the source that the row with this id came from; `None` for rows that came from no file.
    pub fn source(&self, id: u64) -> Option<usize> {
        let at = self.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.files.get(self.rows[at].1.file as usize).map(|file| file.source)
    }

    pub(super) fn add_file(&mut self, name: &str, source: usize) -> u32 {
        self.files.push(PlacedFile { name: name.to_owned(), source });
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn assign(&mut self, rows: impl Iterator<Item = (u64, Origin)>) {
        self.rows = rows.collect();
        self.rows.sort_unstable_by_key(|(id, _)| *id);
    }

    pub(super) fn name(&self, origin: Origin) -> Place {
        let file = self.files.get(origin.file as usize).map(|file| file.name.clone()).unwrap_or_default();
        Place { file, position: origin.position() }
    }
}

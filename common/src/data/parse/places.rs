//! Places of rows in files, so that a row that is dropped later can be named.

use std::fmt;

/// A record in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// Line where the record starts, from 1.
    pub line: u64,
    /// Index in the file's array, from 0; `None` if the file is not an array.
    pub element: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        match self.element {
            Some(element) => write!(f, ": [{element}]"),
            None => Ok(()),
        }
    }
}

/// The places of a set's rows, by the rows' ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    files: Vec<String>,
    /// Sorted by id.
    rows: Vec<(u64, Origin)>,
}

/// A [`Place`] whose file is known by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Origin {
    file: u32,
    line: u32,
    /// [`NO_ELEMENT`] outside of arrays.
    element: u32,
}

const NO_ELEMENT: u32 = u32::MAX;

impl Origin {
    pub(super) fn new(file: u32, line: u64, element: Option<u64>) -> Self {
        let narrow = |number: u64| u32::try_from(number).unwrap_or(NO_ELEMENT);
        Origin { file, line: narrow(line), element: element.map_or(NO_ELEMENT, narrow) }
    }
}

impl Places {
    /// The place of the row with this id; `None` for rows that came from no file.
    pub fn of(&self, id: u64) -> Option<Place> {
        let at = self.rows.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.name(self.rows[at].1))
    }

    pub(super) fn add_file(&mut self, name: &str) -> u32 {
        self.files.push(name.to_owned());
        u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn assign(&mut self, rows: impl Iterator<Item = (u64, Origin)>) {
        self.rows = rows.collect();
        self.rows.sort_unstable_by_key(|(id, _)| *id);
    }

    pub(super) fn name(&self, origin: Origin) -> Place {
        let element = (origin.element != NO_ELEMENT).then_some(origin.element.into());
        let file = self.files.get(origin.file as usize).cloned().unwrap_or_default();
        Place { file, line: origin.line.into(), element }
    }
}

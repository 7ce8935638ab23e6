//! Columns of files whose names differ from Foil's.

use std::collections::{BTreeMap, BTreeSet};

use super::ParseError;
use super::columns::{self, Column};
use super::value::excerpt;
use serde_json::{Map, Value};

/// Maximum number of a file's columns named in a message.
const NAMED: usize = 64;

/// Foil's names of columns, by the names in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    renamed: BTreeMap<String, String>,
    /// Read the columns that Foil does not know, too.
    all: bool,
}

impl ColumnNames {
    /// Creates the map from the files' names by Foil's names.
    pub fn new(columns: &BTreeMap<String, String>) -> Self {
        let renamed = columns.iter().map(|(own, theirs)| (theirs.clone(), own.clone())).collect();
        ColumnNames { renamed, all: false }
    }

    /// The same names, but with all other columns read too.
    pub fn with_all(self) -> Self {
        ColumnNames { all: true, ..self }
    }

    /// Foil's name of a file's column; `None` if another column of the file is renamed to its name.
    pub(super) fn own<'a>(&'a self, theirs: &'a str) -> Option<&'a str> {
        match self.renamed.get(theirs) {
            Some(own) => Some(own),
            None if self.renamed.values().any(|own| own == theirs) => None,
            None => Some(theirs),
        }
    }

    /// The name that a file's column is read by, and the known column that it is; `None` if it is not read.
    pub(super) fn find(&self, theirs: &str) -> Option<(String, Option<&'static Column>)> {
        let own = self.own(theirs)?;
        let column = columns::find(own);
        (self.all || column.is_some()).then(|| (own.to_owned(), column))
    }

    /// Checks a table's columns for those that are renamed.
    ///
    /// # Errors
    /// A name that the table lacks. The message lists those that it has.
    pub(super) fn require<'a>(
        &self,
        file: &str,
        header: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), ParseError> {
        match self.renamed.iter().find(|(theirs, _)| header.clone().all(|name| name != theirs.as_str())) {
            None => Ok(()),
            Some((theirs, own)) => Err(missing(file, theirs, own, header)),
        }
    }
}

fn missing<'a>(file: &str, theirs: &str, own: &str, has: impl Iterator<Item = &'a str>) -> ParseError {
    let mut names: Vec<String> = has.map(|name| excerpt(name, 64)).take(NAMED + 1).collect();
    if names.len() > NAMED {
        names[NAMED] = "…".to_owned();
    }
    ParseError::Column {
        file: file.to_owned(),
        own: own.to_owned(),
        theirs: excerpt(theirs, 64),
        found: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
    }
}

/// Renames the fields of JSON records, which have no header.
#[derive(Debug, Default)]
pub(super) struct Renamer {
    names: ColumnNames,
    /// Renamed columns that a record had.
    seen: BTreeSet<String>,
    /// All columns that records had, up to [`NAMED`].
    columns: BTreeSet<String>,
    /// Columns that are replaced by renamed ones.
    hidden: Vec<String>,
}

impl Renamer {
    pub(super) fn new(names: &ColumnNames) -> Self {
        Renamer { names: names.clone(), ..Renamer::default() }
    }

    pub(super) fn hidden(&self) -> &[String] {
        &self.hidden
    }

    pub(super) fn rename(&mut self, record: Value) -> Value {
        let Value::Object(fields) = record else { return record };
        if self.names.renamed.is_empty() {
            return Value::Object(fields);
        }
        let mut renamed = Map::new();
        for (name, value) in fields {
            if self.columns.len() <= NAMED {
                self.columns.insert(excerpt(&name, 64));
            }
            if self.names.renamed.contains_key(&name) && !self.seen.contains(&name) {
                self.seen.insert(name.clone());
            }
            match self.names.own(&name) {
                Some(own) => _ = renamed.insert(own.to_owned(), value),
                None if self.hidden.contains(&name) => {}
                None => self.hidden.push(name),
            }
        }
        Value::Object(renamed)
    }

    /// To be called at the end of a file.
    ///
    /// # Errors
    /// A renamed column that no record had.
    pub(super) fn finish(&self, file: &str) -> Result<(), ParseError> {
        match self.names.renamed.iter().find(|(theirs, _)| !self.seen.contains(*theirs)) {
            Some((theirs, own)) if !self.columns.is_empty() => {
                Err(missing(file, theirs, own, self.columns.iter().map(String::as_str)))
            }
            _ => Ok(()),
        }
    }
}

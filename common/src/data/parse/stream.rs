//! Reads the records of files one by one, before they become rows.

use super::column_names::ColumnNames;
use super::content::Content;
use super::records::Records;
use super::{ParseError, Place};
use serde_json::Value;

/// A record with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub place: Place,
    /// The record, or what is wrong with it.
    pub value: Result<Value, String>,
}

/// The records of a file. One is in memory at a time.
pub struct RecordStream {
    file: String,
    records: Records,
}

impl RecordStream {
    /// # Errors
    /// The file's format is unknown, or it lacks columns that `names` lists.
    pub fn open(file: &str, content: &Content, names: &ColumnNames) -> Result<Self, ParseError> {
        Ok(RecordStream { file: file.to_owned(), records: Records::open(file, content, names)? })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read further.
    pub fn next_record(&mut self) -> Result<Option<Record>, ParseError> {
        let record = self.records.next()?;
        Ok(record.map(|record| Record {
            place: Place { file: self.file.clone(), position: record.position },
            value: record.value,
        }))
    }

    /// The format and compression, for reports.
    pub fn format(&self) -> String {
        self.records.format()
    }
}

//! Records of columnar files: Parquet and Arrow. A batch of rows is in memory at a time.

mod columns;
mod value;

use super::super::ParseError;
use super::super::places::Position;
use super::{Record, format_error};
use arrow_array::{ArrayRef, RecordBatch};
use serde_json::{Map, Value};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) use self::columns::Columns;

/// Maximum number of rows of a table. A column of one repeated value takes almost no space in a file.
pub(super) const ROW_LIMIT: u64 = 100_000_000;

/// A source of record batches.
pub(super) trait Batches {
    /// The next batch with the known columns only, in the order of [`Columns::names`].
    ///
    /// # Errors
    /// The library's description of broken data.
    fn next(&mut self) -> Result<Option<RecordBatch>, String>;
}

/// A table of records.
pub(super) struct Table {
    file: String,
    kind: &'static str,
    columns: Columns,
    batches: Box<dyn Batches>,
    batch: Vec<ArrayRef>,
    rows_of_batch: usize,
    /// Next row of the batch.
    next: usize,
    /// Row of the file at the start of the batch.
    start: u64,
}

impl Table {
    /// `kind` names the format in messages.
    pub(super) fn new(file: &str, kind: &'static str, columns: Columns, batches: Box<dyn Batches>) -> Self {
        Table {
            file: file.to_owned(),
            kind,
            columns,
            batches,
            batch: Vec::new(),
            rows_of_batch: 0,
            next: 0,
            start: 0,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Columns of the file that are not read.
    pub(super) fn ignored(&self) -> &[String] {
        &self.columns.ignored
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, ParseError> {
        while self.next == self.rows_of_batch {
            if !self.advance()? {
                return Ok(None);
            }
        }
        let row = self.next;
        self.next += 1;
        let position = Position::Row(self.start + row as u64);
        Ok(Some(Record { position, value: self.record(row) }))
    }

    fn record(&self, row: usize) -> Result<Value, String> {
        let mut room = value::Room::default();
        let mut fields = Map::with_capacity(self.batch.len());
        for (name, array) in self.columns.names.iter().zip(&self.batch) {
            let value = value::read(array, row, &mut room).map_err(|what| format!("{name}: {what}"))?;
            fields.insert(name.clone(), value);
        }
        Ok(Value::Object(fields))
    }

    /// Moves to the next batch; false at the end.
    fn advance(&mut self) -> Result<bool, ParseError> {
        self.start += self.rows_of_batch as u64;
        (self.next, self.rows_of_batch) = (0, 0);
        // The batch is dropped before the next one is read.
        self.batch.clear();
        let batches = &mut self.batches;
        let Some(batch) = guarded(&self.file, self.kind, || batches.next())? else { return Ok(false) };
        if self.start.saturating_add(batch.num_rows() as u64) > ROW_LIMIT {
            let found = format!("more than {ROW_LIMIT} rows");
            return Err(format_error(&self.file, &found, "split the file"));
        }
        self.rows_of_batch = batch.num_rows();
        self.batch = batch.columns().to_vec();
        Ok(true)
    }
}

/// Runs a library's reading of data, which may panic if the data is broken.
pub(super) fn guarded<T>(
    file: &str,
    kind: &str,
    read: impl FnOnce() -> Result<T, String>,
) -> Result<T, ParseError> {
    let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(message(panic.as_ref())));
    result.map_err(|what| broken(file, kind, &what))
}

/// An error about broken data in a file of this kind.
pub(super) fn broken(file: &str, kind: &str, what: &str) -> ParseError {
    format_error(file, &format!("broken {kind} data ({what})"), "fetch the file or write it again")
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("its reader failed").to_owned()
}

//! Writes files of records in the formats that Foil reads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use arrow_ipc::MetadataVersion;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_schema::Schema;
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression as PageCompression;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use super::types::{Columns, Type};

/// Rows and approximate bytes of a batch of a table.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;
/// Bytes of a Parquet row group, which is kept in memory until it is complete.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Lines,
    Array,
    Csv,
    Tsv,
    Parquet,
    Arrow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// File name endings, without the compression's.
const ENDINGS: [(&str, Container); 8] = [
    ("jsonl", Container::Lines),
    ("ndjson", Container::Lines),
    ("json", Container::Array),
    ("csv", Container::Csv),
    ("tsv", Container::Tsv),
    ("parquet", Container::Parquet),
    ("arrow", Container::Arrow),
    ("feather", Container::Arrow),
];

/// The format and compression that a name indicates.
///
/// # Errors
/// A description of the fault in the name.
pub(super) fn told_by(name: &str) -> Result<(Container, Packing), String> {
    let lower = name.to_lowercase();
    let (stem, packing) = match (lower.strip_suffix(".gz"), lower.strip_suffix(".zst")) {
        (Some(stem), _) => (stem, Packing::Gzip),
        (_, Some(stem)) => (stem, Packing::Zstd),
        _ => (lower.as_str(), Packing::Plain),
    };
    let ending = stem.rsplit_once('.').map_or("", |(_, ending)| ending);
    let Some((_, container)) = ENDINGS.iter().find(|(known, _)| *known == ending) else {
        let endings: Vec<String> = ENDINGS.iter().map(|(ending, _)| format!(".{ending}")).collect();
        return Err(format!(
            "its name does not tell a format; give it one of the endings {}, those of text with .gz or .zst after it",
            endings.join(", ")
        ));
    };
    if packing != Packing::Plain && matches!(container, Container::Parquet | Container::Arrow) {
        return Err(format!(
            "a .{ending} file is not compressed as a whole; leave out what follows .{ending}"
        ));
    }
    Ok((*container, packing))
}

impl Container {
    pub fn name(self) -> &'static str {
        match self {
            Self::Lines => "JSON lines",
            Self::Array => "JSON array",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
        }
    }

    /// Whether the columns must be known before the first row is written.
    pub(super) fn has_columns(self) -> bool {
        !matches!(self, Self::Lines | Self::Array)
    }
}

/// A file that records are written to.
pub(super) enum Output {
    Text { bytes: Box<Packed>, form: Text, rows: u64 },
    Table { table: Table, columns: Columns, schema: Arc<Schema>, batch: Vec<Value>, bytes: usize },
}

pub(super) enum Text {
    Lines,
    Array,
    Separated { separator: u8, names: Vec<String> },
}

pub(super) enum Table {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Arrow(Box<FileWriter<BufWriter<File>>>),
}

pub(super) enum Packed {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<File>>),
}

impl Output {
    /// # Errors
    /// A column that the format cannot hold.
    pub(super) fn new(
        file: File,
        container: Container,
        packing: Packing,
        columns: Columns,
    ) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 16, file);
        let form = match container {
            Container::Lines => Text::Lines,
            Container::Array => Text::Array,
            Container::Csv | Container::Tsv => {
                let separator = if container == Container::Csv { b',' } else { b'\t' };
                Text::Separated { separator, names: flat(container, &columns)? }
            }
            Container::Parquet | Container::Arrow => return Self::table(file, container, columns),
        };
        let bytes = match packing {
            Packing::Plain => Packed::Plain(file),
            Packing::Gzip => Packed::Gzip(GzEncoder::new(file, Compression::default())),
            Packing::Zstd => Packed::Zstd(zstd::stream::write::Encoder::new(file, 0)?),
        };
        let mut output = Output::Text { bytes: Box::new(bytes), form, rows: 0 };
        output.begin()?;
        Ok(output)
    }

    fn table(file: BufWriter<File>, container: Container, columns: Columns) -> io::Result<Self> {
        let schema = Arc::new(columns.schema());
        let table = if container == Container::Parquet {
            let properties = WriterProperties::builder().set_compression(PageCompression::SNAPPY).build();
            let writer =
                ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(io::Error::other)?;
            Table::Parquet(Box::new(writer))
        } else {
            // Not every reader supports the padding to 64 bytes before the first message.
            let options =
                IpcWriteOptions::try_new(8, false, MetadataVersion::V5).map_err(io::Error::other)?;
            let writer =
                FileWriter::try_new_with_options(file, &schema, options).map_err(io::Error::other)?;
            Table::Arrow(Box::new(writer))
        };
        Ok(Output::Table { table, columns, schema, batch: Vec::new(), bytes: 0 })
    }

    fn begin(&mut self) -> io::Result<()> {
        match self {
            Output::Text { bytes, form: Text::Array, .. } => bytes.write_all(b"["),
            Output::Text { bytes, form: Text::Separated { separator, names }, .. } => {
                write_separated(bytes, *separator, names.iter().map(String::as_str))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn write(&mut self, record: Value) -> io::Result<()> {
        match self {
            Output::Text { bytes, form, rows } => {
                *rows += 1;
                match form {
                    Text::Lines => {
                        serde_json::to_writer(&mut *bytes, &record)?;
                        bytes.write_all(b"\n")
                    }
                    Text::Array => {
                        bytes.write_all(if *rows > 1 { b",\n" } else { b"\n" })?;
                        Ok(serde_json::to_writer(&mut *bytes, &record)?)
                    }
                    Text::Separated { separator, names } => {
                        let cells: Vec<String> =
                            names.iter().map(|name| cell(record.get(name).unwrap_or(&Value::Null))).collect();
                        write_separated(bytes, *separator, cells.iter().map(String::as_str))
                    }
                }
            }
            Output::Table { batch, bytes, .. } => {
                *bytes += size(&record);
                batch.push(record);
                if batch.len() >= BATCH_ROWS || *bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Output::Table { table, columns, schema, batch, bytes } = self else { return Ok(()) };
        if batch.is_empty() {
            return Ok(());
        }
        let records = columns.batch(schema, batch).map_err(io::Error::other)?;
        match table {
            Table::Parquet(writer) => {
                writer.write(&records).map_err(io::Error::other)?;
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    writer.flush().map_err(io::Error::other)?;
                }
            }
            Table::Arrow(writer) => writer.write(&records).map_err(io::Error::other)?,
        }
        batch.clear();
        *bytes = 0;
        Ok(())
    }

    /// Writes what is buffered, and syncs the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let file = match self {
            Output::Text { mut bytes, form, rows } => {
                if let Text::Array = form {
                    bytes.write_all(if rows > 0 { b"\n]\n" } else { b"]\n" })?;
                }
                match *bytes {
                    Packed::Plain(file) => file,
                    Packed::Gzip(encoder) => encoder.finish()?,
                    Packed::Zstd(encoder) => encoder.finish()?,
                }
            }
            Output::Table { table: Table::Parquet(writer), .. } => {
                writer.into_inner().map_err(io::Error::other)?
            }
            Output::Table { table: Table::Arrow(mut writer), .. } => {
                writer.finish().map_err(io::Error::other)?;
                writer.into_inner().map_err(io::Error::other)?
            }
        };
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }
}

impl Write for Packed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packed::Plain(file) => file.write(bytes),
            Packed::Gzip(encoder) => encoder.write(bytes),
            Packed::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packed::Plain(file) => file.flush(),
            Packed::Gzip(encoder) => encoder.flush(),
            Packed::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// The names of columns, none of which is a list or an object.
fn flat(container: Container, columns: &Columns) -> io::Result<Vec<String>> {
    let nested = columns.0.iter().find(|(_, kind)| matches!(kind, Type::List(_) | Type::Struct(_)));
    match nested {
        None => Ok(columns.0.iter().map(|(name, _)| name.clone()).collect()),
        Some((name, kind)) => Err(io::Error::other(format!(
            "the column {name} holds {kind} in some row, which {} does not have; take JSON lines or Parquet, or a shape of texts \
             (--format trl)",
            container.name()
        ))),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn write_separated<'a>(
    bytes: &mut impl Write,
    separator: u8,
    cells: impl Iterator<Item = &'a str>,
) -> io::Result<()> {
    let mut cells = cells.peekable();
    let mut is_first = true;
    while let Some(cell) = cells.next() {
        if !is_first {
            bytes.write_all(&[separator])?;
        }
        // A blank line would not be a row.
        let is_only = std::mem::take(&mut is_first) && cells.peek().is_none();
        let quoted = is_only && cell.is_empty()
            || cell.bytes().any(|byte| [separator, b'"', b'\n', b'\r'].contains(&byte))
            || cell.starts_with([' ', '\u{feff}'])
            || cell.ends_with(' ');
        if quoted {
            write!(bytes, "\"{}\"", cell.replace('"', "\"\""))?;
        } else {
            bytes.write_all(cell.as_bytes())?;
        }
    }
    bytes.write_all(b"\n")
}

/// Approximate bytes of a record in memory.
fn size(value: &Value) -> usize {
    16 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => 0,
    }
}

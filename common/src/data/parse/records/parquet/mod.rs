//! Parquet files. Their sizes are checked before the library reads them: it allocates the sizes that headers
//! declare.

mod footer;
mod pages;
mod thrift;

use super::super::ParseError;
use super::super::column_names::ColumnNames;
use super::super::content::Content;
use super::format::PARQUET;
use super::packing::Packing;
use super::table::{Batches, Columns, Table, broken, guarded};
use super::{format_error, unreadable};
use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::{ChunkReader, Length};
use std::io::BufReader;
use std::sync::Arc;

const KIND: &str = PARQUET;

pub(super) const MAGIC: &[u8] = b"PAR1";

/// Opens a file that begins with [`MAGIC`].
pub(super) fn open(file: &str, content: &Content, names: &ColumnNames) -> Result<Table, ParseError> {
    let footer = footer::read(file, content)?;
    let explain = |error: ParquetError| error.to_string();
    // The schema that Arrow's writers add is not read: all types of known columns are Parquet's own.
    let plain = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let inferred = guarded(file, KIND, || {
        let metadata = ParquetMetaDataReader::decode_metadata(&footer).map_err(explain)?;
        ArrowReaderMetadata::try_new(Arc::new(metadata), plain).map_err(explain)
    })?;
    let columns = Columns::choose(file, KIND, inferred.schema(), names)?;
    let metadata = inferred.metadata();
    let rows = pages::check(file, content, metadata, &columns.indices)?;
    let length = content.length().map_err(|error| unreadable(file, Packing::Plain, &error))?;
    let source = Source { content: content.clone(), length };
    let reader = guarded(file, KIND, || {
        let views = ArrowReaderOptions::new().with_schema(Arc::new(with_views(inferred.schema())));
        let read = ArrowReaderMetadata::try_new(metadata.clone(), views).map_err(explain)?;
        let mask = ProjectionMask::roots(read.parquet_schema(), columns.indices.iter().copied());
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(source, read);
        builder.with_projection(mask).with_batch_size(rows).build().map_err(explain)
    })?;
    Ok(Table::new(file, KIND, columns, Box::new(Reader(reader))))
}

struct Reader(ParquetRecordBatchReader);

impl Batches for Reader {
    fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        self.0.next().transpose().map_err(|error| error.to_string())
    }
}

/// The schema with texts as views into pages. Copying a dictionary's text for every row could take unbounded
/// memory.
fn with_views(schema: &Schema) -> Schema {
    let fields: Vec<_> = schema.fields().iter().map(|field| with_view(field)).collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

fn with_view(field: &Field) -> Field {
    let within = |item: &Field| Arc::new(with_view(item));
    let kind = match field.data_type() {
        DataType::Utf8 => DataType::Utf8View,
        DataType::List(item) => DataType::List(within(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|child| within(child)).collect()),
        DataType::Map(entries, sorted) => DataType::Map(within(entries), *sorted),
        other => other.clone(),
    };
    field.clone().with_data_type(kind)
}

/// A file as the library reads it.
struct Source {
    content: Content,
    length: u64,
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Source {
    type T = BufReader<super::super::content::ContentReader>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(BufReader::new(self.content.reader(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        Ok(self.content.range(start, length)?)
    }
}

/// A refusal of a file whose sizes exceed a bound.
fn too_large(file: &str, what: &str) -> ParseError {
    format_error(
        file,
        &format!("Parquet data with {what}"),
        "write the file again with smaller pages and row groups",
    )
}

fn damaged(file: &str, what: &str) -> ParseError {
    broken(file, KIND, what)
}

//! Arrow's IPC files and streams. A file is a stream between magic numbers, followed by a footer that is not
//! needed to read it from its start.

use super::super::ParseError;
use super::super::column_names::ColumnNames;
use super::format::ARROW;
use super::packing::Packing;
use super::table::{Batches, Columns, ROW_LIMIT, Table, guarded};
use super::{Bytes, FILE_LIMIT, unreadable};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::{Message, root_as_message};
use arrow_schema::{ArrowError, SchemaRef};
use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

const KIND: &str = ARROW;

const FILE_MAGIC: &[u8] = b"ARROW1";
/// Length of the magic number of a file, with its padding.
const FILE_START: usize = 8;
/// Mark of a message; the length of its description follows.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Maximum size of a message's description in bytes.
const DESCRIPTION_LIMIT: usize = 16 << 20;
/// Maximum size of a message's data, packed and unpacked. Two of them may be in memory at a time.
const MESSAGE_LIMIT: u64 = 512 << 20;
/// Maximum size of a batch in proportion to its packed size, and the size up to which any is taken. LZ4 packs
/// 255 times at most, and ZSTD packs more only where a batch holds nothing but the same texts.
const MAX_RATIO: u64 = 1024;
const SMALL_BATCH: u64 = 4 << 20;
/// Maximum number of buffers and columns of a message.
const PARTS_LIMIT: usize = 1 << 16;

/// Whether a file begins as one of Arrow's.
pub(super) fn is_arrow(start: &[u8]) -> bool {
    start.starts_with(FILE_MAGIC) || start.starts_with(&CONTINUATION)
}

/// Opens a file or stream from its unpacked bytes.
pub(super) fn open(
    file: &str,
    packing: Packing,
    mut bytes: Bytes,
    names: &ColumnNames,
) -> Result<Table, ParseError> {
    let fail = |error| unreadable(file, packing, &error);
    let is_file = bytes.fill_buf().map_err(fail)?.starts_with(FILE_MAGIC);
    if is_file {
        take(&mut bytes, FILE_START as u64).map_err(fail)?;
        skip_padding(&mut bytes).map_err(fail)?;
    }
    let mut stream = Stream { bytes, read: 0 };
    let schema = guarded(file, KIND, || {
        let first = stream.next_message()?.ok_or("it is empty")?;
        let schema = first.description()?.header_as_schema().ok_or("it does not begin with its schema")?;
        try_fb_to_schema(schema).map_err(|error| error.to_string())
    })?;
    let columns = Columns::choose(file, KIND, &schema, names)?;
    let indices = columns.indices.clone();
    let reader = Reader {
        stream,
        schema: Arc::new(schema),
        indices,
        dictionaries: HashMap::new(),
        sizes: HashMap::new(),
    };
    Ok(Table::new(file, KIND, columns, Box::new(reader)))
}

/// The record batches of a stream.
struct Reader {
    stream: Stream,
    schema: SchemaRef,
    /// Indices of the columns that are read.
    indices: Vec<usize>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// Their sizes in bytes.
    sizes: HashMap<i64, u64>,
}

impl Batches for Reader {
    fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        loop {
            let Some(message) = self.stream.next_message()? else { return Ok(None) };
            let description = message.description()?;
            let version = description.version();
            let explain = |error: ArrowError| error.to_string();
            if let Some(batch) = description.header_as_record_batch() {
                check(&batch, &message.body)?;
                let decoder = RecordBatchDecoder::try_new(
                    &message.body,
                    batch,
                    self.schema.clone(),
                    &self.dictionaries,
                    &version,
                );
                let decoder = decoder.map_err(explain)?.with_projection(Some(&self.indices));
                return decoder.read_record_batch().map(Some).map_err(explain);
            }
            if let Some(batch) = description.header_as_dictionary_batch() {
                let size = check(&batch.data().ok_or("a dictionary has no data")?, &message.body)?;
                let before = if batch.isDelta() { self.sizes.get(&batch.id()).copied() } else { None };
                self.sizes.insert(batch.id(), before.unwrap_or_default() + size);
                if self.sizes.values().sum::<u64>() > MESSAGE_LIMIT {
                    return Err(format!("its dictionaries take more than {} MiB", MESSAGE_LIMIT >> 20));
                }
                read_dictionary(&message.body, batch, &self.schema, &mut self.dictionaries, &version)
                    .map_err(explain)?;
            }
        }
    }
}

/// A message: its description, and the data that it describes.
struct StreamMessage {
    description: Vec<u8>,
    body: Buffer,
}

impl StreamMessage {
    fn description(&self) -> Result<Message<'_>, String> {
        root_as_message(&self.description).map_err(|error| error.to_string())
    }
}

/// The messages of a stream: its schema, dictionaries and record batches.
struct Stream {
    bytes: Bytes,
    read: u64,
}

impl Stream {
    /// The next message; `None` at the end of the stream.
    fn next_message(&mut self) -> Result<Option<StreamMessage>, String> {
        let Some(length) = self.description_length()? else { return Ok(None) };
        if length > DESCRIPTION_LIMIT {
            return Err(format!(
                "the description of a message takes more than {} MiB",
                DESCRIPTION_LIMIT >> 20
            ));
        }
        let description = self.take(length as u64)?;
        let message = root_as_message(&description).map_err(|error| error.to_string())?;
        let size = u64::try_from(message.bodyLength()).ok().filter(|size| *size <= MESSAGE_LIMIT);
        let body = Buffer::from_vec(self.take(size.ok_or_else(too_large)?)?);
        Ok(Some(StreamMessage { description, body }))
    }

    /// The length of the next message's description; `None` at the end of the stream.
    fn description_length(&mut self) -> Result<Option<usize>, String> {
        let mut prefix = Vec::new();
        let count = (&mut self.bytes).take(8).read_to_end(&mut prefix).map_err(|error| error.to_string())?;
        self.read += count as u64;
        match prefix.split_first_chunk::<4>() {
            None if prefix.is_empty() => Ok(None),
            Some((&CONTINUATION, length)) => {
                let length = length.try_into().map_err(|_| "the stream is cut short")?;
                let length = u32::from_le_bytes(length);
                Ok((length > 0).then_some(length as usize))
            }
            // Streams of Arrow before 0.15, and their end.
            Some(([0, 0, 0, 0], _)) => Ok(None),
            _ => {
                Err("a message does not begin with its mark: the data may be older than Arrow 0.15"
                    .to_owned())
            }
        }
    }

    fn take(&mut self, count: u64) -> Result<Vec<u8>, String> {
        let mut taken = Vec::new();
        (&mut self.bytes).take(count).read_to_end(&mut taken).map_err(|error| error.to_string())?;
        self.read += taken.len() as u64;
        if self.read > FILE_LIMIT {
            return Err(format!("it is longer than {} GiB: split the file", FILE_LIMIT >> 30));
        }
        if (taken.len() as u64) < count { Err("the stream is cut short".to_owned()) } else { Ok(taken) }
    }
}

/// Skips the zeros with which some writers align the first message to up to 64 bytes. A message begins with
/// another byte.
fn skip_padding(bytes: &mut Bytes) -> io::Result<()> {
    for _ in FILE_START..64 {
        if bytes.fill_buf()?.first() != Some(&0) {
            break;
        }
        bytes.consume(1);
    }
    Ok(())
}

fn take(bytes: &mut Bytes, count: u64) -> io::Result<()> {
    io::copy(&mut bytes.take(count), &mut io::sink()).map(|_| ())
}

fn too_large() -> String {
    format!("a batch takes more than {} MiB: write batches of fewer rows", MESSAGE_LIMIT >> 20)
}

/// Checks what a batch declares about its data: the positions of its buffers, the number of rows, and the
/// unpacked size, which is returned.
fn check(batch: &arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<u64, String> {
    let limit = i64::try_from(ROW_LIMIT).unwrap_or(i64::MAX);
    if !(0..=limit).contains(&batch.length()) {
        return Err(format!("a batch has {} rows", batch.length()));
    }
    let count = batch.buffers().map_or(0, |list| list.len()) + batch.nodes().map_or(0, |list| list.len());
    if count > PARTS_LIMIT {
        return Err(format!("a batch has more than {PARTS_LIMIT} buffers"));
    }
    // A buffer's room is allocated as it declares, before it is unpacked.
    let mut unpacked = 0u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let range = range.and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let bytes = range.and_then(|range| body.get(range)).ok_or("a buffer lies beyond its message")?;
        // The unpacked length precedes a buffer; −1 marks one that is not compressed.
        let length =
            batch.compression().and_then(|_| bytes.first_chunk()).map(|bytes| i64::from_le_bytes(*bytes));
        let length = match length {
            None | Some(-1) => bytes.len() as u64,
            Some(length) => u64::try_from(length).map_err(|_| "the length of a buffer is negative")?,
        };
        unpacked = unpacked.saturating_add(length);
    }
    if unpacked > (body.len() as u64).saturating_mul(MAX_RATIO) + SMALL_BATCH {
        return Err(format!(
            "a batch declares {unpacked} bytes, more than {MAX_RATIO} times its packed size"
        ));
    }
    if unpacked > MESSAGE_LIMIT { Err(too_large()) } else { Ok(unpacked) }
}

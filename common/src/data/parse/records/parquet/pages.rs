//! The sizes of a file's pages. A page declares its unpacked length and its number of values, and the library
//! allocates memory for both.

use super::super::super::ParseError;
use super::super::super::content::Content;
use super::super::packing::Packing;
use super::super::table::ROW_LIMIT;
use super::super::{FILE_LIMIT, unreadable};
use super::thrift::{Fault, I32, STRUCT, Walk};
use super::{damaged, too_large};
use flate2::bufread::MultiGzDecoder;
use parquet::basic::CompressionCodec;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use std::io::{self, Read};

/// Maximum size of an unpacked page. Writers aim at 1 MiB; DuckDB writes up to 100 MB.
const PAGE_LIMIT: u64 = 128 << 20;
/// Maximum size of the largest pages of all columns together: a page of each is in memory at a time.
const PAGES_LIMIT: u64 = 512 << 20;
/// Maximum size of a page's header.
const HEADER_LIMIT: usize = 1 << 20;
/// Number of bytes that suffices for most headers.
const HEADER_GUESS: usize = 1 << 10;
/// Maximum number of values in a page, however few bytes encode them.
const VALUES_OF_PAGE: u64 = 1 << 24;
/// Maximum number of values of a list column in a row group: all may belong to one row.
const VALUES_OF_LISTS: u64 = 1 << 25;

/// Rows that are read at a time.
const ROWS: u64 = 256;
/// Maximum size of the texts of a batch where they are stored as differences from each other.
const DELTA_BYTES: u64 = 128 << 20;

/// Number of the encoding in which a text may repeat the start of the one before.
const DELTA_BYTE_ARRAY: i32 = 7;
const DATA: i32 = 0;
const DICTIONARY: i32 = 2;
const DATA_V2: i32 = 3;

/// Checks the page sizes of these columns, and returns the number of rows to read at a time.
pub(super) fn check(
    file: &str,
    content: &Content,
    metadata: &ParquetMetaData,
    roots: &[usize],
) -> Result<usize, ParseError> {
    let schema = metadata.file_metadata().schema_descr();
    let (mut unpacked, mut rows, mut batch) = (0u64, 0u64, ROWS);
    for group in metadata.row_groups() {
        rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
        if group.num_columns() != schema.num_columns() {
            return Err(damaged(file, "a row group has other columns than the schema"));
        }
        let mut largest = 0;
        for (leaf, chunk) in group.columns().iter().enumerate() {
            if !roots.contains(&schema.get_column_root_idx(leaf)) {
                continue;
            }
            let sizes = Chunk::new(file, content, chunk)?.sizes()?;
            unpacked = unpacked.saturating_add(sizes.unpacked);
            largest += sizes.largest;
            if let Some(rows) = DELTA_BYTES.checked_div(sizes.delta) {
                batch = batch.min(rows).max(1);
            }
        }
        if largest > PAGES_LIMIT {
            let limit = PAGES_LIMIT >> 20;
            return Err(too_large(file, &format!("pages that take more than {limit} MiB at a time")));
        }
    }
    if unpacked > FILE_LIMIT {
        return Err(too_large(
            file,
            &format!("more than {} GiB in the columns that are read", FILE_LIMIT >> 30),
        ));
    }
    if rows > ROW_LIMIT {
        return Err(too_large(file, &format!("more than {ROW_LIMIT} rows")));
    }
    Ok(batch as usize)
}

/// Sizes of the pages of a column in a row group.
#[derive(Debug, Default)]
struct Sizes {
    /// Size of all pages together.
    unpacked: u64,
    /// Size of the dictionary and the largest page.
    largest: u64,
    /// Size of the largest page whose texts are differences.
    delta: u64,
}

/// A column in a row group.
struct Chunk<'a> {
    file: &'a str,
    content: &'a Content,
    chunk: &'a ColumnChunkMetaData,
    name: String,
    start: u64,
    end: u64,
}

impl<'a> Chunk<'a> {
    fn new(file: &'a str, content: &'a Content, chunk: &'a ColumnChunkMetaData) -> Result<Self, ParseError> {
        let name = chunk.column_path().string();
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let place = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        let length = content.length().map_err(|error| unreadable(file, Packing::Plain, &error))?;
        let place = place.and_then(|(start, size)| Some((start, start.checked_add(size)?)));
        let Some((start, end)) = place.filter(|(_, end)| *end <= length) else {
            return Err(damaged(file, &format!("the column {name} lies beyond the file")));
        };
        if !is_read(chunk.compression_codec()) {
            let found = format!("the column {name} compressed by {:?}", chunk.compression_codec());
            return Err(super::format_error(file, &found, "compress it by snappy, zstd, gzip or lz4"));
        }
        Ok(Chunk { file, content, chunk, name, start, end })
    }

    fn damaged(&self, what: &str) -> ParseError {
        damaged(self.file, &format!("the column {}: {what}", self.name))
    }

    fn too_large(&self, what: &str) -> ParseError {
        too_large(self.file, &format!("{what} in the column {}", self.name))
    }

    fn sizes(&self) -> Result<Sizes, ParseError> {
        let mut sizes = Sizes::default();
        let (mut at, mut values, mut dictionary, mut page) = (self.start, 0u64, 0, 0);
        while at < self.end {
            let (header, length) = self.header(at)?;
            let body = at + length as u64;
            let Some(next) = body.checked_add(header.packed).filter(|next| *next <= self.end) else {
                return Err(self.damaged("a page is longer than the column"));
            };
            if header.unpacked > PAGE_LIMIT || self.expands_beyond(&header, body)? {
                return Err(self.too_large(&format!("a page of more than {} MiB", PAGE_LIMIT >> 20)));
            }
            let most = if header.kind == DICTIONARY { header.unpacked } else { VALUES_OF_PAGE };
            if header.values > most {
                return Err(self.too_large(&format!("a page of more than {most} values")));
            }
            if header.kind == DICTIONARY {
                dictionary = dictionary.max(header.unpacked);
            } else {
                values += header.values;
                page = page.max(header.unpacked);
            }
            if header.has_differences {
                sizes.delta = sizes.delta.max(header.unpacked);
            }
            sizes.unpacked = sizes.unpacked.saturating_add(header.unpacked);
            at = next;
        }
        sizes.largest = dictionary + page;
        if self.chunk.column_descr().max_rep_level() > 0 {
            if values > VALUES_OF_LISTS {
                return Err(self.too_large(&format!("a row group of more than {VALUES_OF_LISTS} values")));
            }
            if sizes.delta > 0 {
                let found = format!("the list column {} in the encoding DELTA_BYTE_ARRAY", self.name);
                return Err(super::format_error(
                    self.file,
                    &found,
                    "write it in the encoding PLAIN or as a dictionary",
                ));
            }
        }
        Ok(sizes)
    }

    /// The header of the page at a position, and its length.
    fn header(&self, at: u64) -> Result<(Header, usize), ParseError> {
        let left = usize::try_from(self.end - at).unwrap_or(usize::MAX);
        for size in [HEADER_GUESS.min(left), HEADER_LIMIT.min(left)] {
            let bytes = self.content.range(at, size);
            let bytes = bytes.map_err(|error| unreadable(self.file, Packing::Plain, &error))?;
            match Header::read(&bytes) {
                Ok(read) => return Ok(read),
                Err(Fault::End) => {}
                Err(Fault::Broken(what)) => {
                    return Err(self.damaged(&format!("the header of a page: {what}")));
                }
            }
        }
        Err(self.damaged("the header of a page is cut short"))
    }

    /// Whether a page unpacks to more than a page may hold. For codecs for which the library does not stop at
    /// the size in the header, only the data shows this.
    fn expands_beyond(&self, header: &Header, body: u64) -> Result<bool, ParseError> {
        /// Maximum expansion of a byte of deflate, and of an LZ4 block.
        const GZIP_RATIO: u64 = 1032;
        const LZ4_RATIO: u64 = 255;
        match self.chunk.compression_codec() {
            CompressionCodec::LZ4 => Ok(header.packed > PAGE_LIMIT / LZ4_RATIO),
            CompressionCodec::GZIP if header.packed > PAGE_LIMIT / GZIP_RATIO => {
                let packed = self
                    .content
                    .reader(body + header.levels)
                    .take(header.packed.saturating_sub(header.levels));
                let unpacked = MultiGzDecoder::new(io::BufReader::new(packed)).take(PAGE_LIMIT + 1);
                // Broken data is reported as the library reads it.
                let size = io::copy(&mut { unpacked }, &mut io::sink()).unwrap_or_default();
                Ok(size > PAGE_LIMIT)
            }
            _ => Ok(false),
        }
    }
}

fn is_read(codec: CompressionCodec) -> bool {
    matches!(
        codec,
        CompressionCodec::UNCOMPRESSED
            | CompressionCodec::SNAPPY
            | CompressionCodec::GZIP
            | CompressionCodec::ZSTD
            | CompressionCodec::LZ4
            | CompressionCodec::LZ4_RAW
    )
}

/// The fields of a `PageHeader` that are checked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    kind: i32,
    unpacked: u64,
    packed: u64,
    values: u64,
    has_differences: bool,
    /// Bytes of the levels that come before the packed data in pages of version 2.
    levels: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<(Self, usize), Fault> {
        let mut header = Self::default();
        let mut walk = Walk::new(bytes);
        walk.fields(|walk, field| {
            if field.is(1, I32)? {
                header.kind = walk.i32()?;
            } else if field.is(2, I32)? {
                header.unpacked = walk.size()?;
            } else if field.is(3, I32)? {
                header.packed = walk.size()?;
            } else if field.is(5, STRUCT)? || field.is(7, STRUCT)? {
                header.body(walk, 2)?;
            } else if field.is(8, STRUCT)? {
                header.body(walk, 4)?;
            } else {
                return Ok(false);
            }
            Ok(true)
        })?;
        match header.kind {
            DATA | DICTIONARY | DATA_V2 => Ok((header, walk.at)),
            _ => Err(Fault::Broken("it is of an unknown kind")),
        }
    }

    /// Reads the part specific to a kind of page; `encoding` is the number of its encoding field.
    fn body(&mut self, walk: &mut Walk<'_>, encoding: i64) -> Result<(), Fault> {
        let is_v2 = encoding == 4;
        walk.fields(|walk, field| {
            if field.is(1, I32)? {
                self.values = self.values.max(walk.size()?);
            } else if field.is(encoding, I32)? {
                let encoding = walk.i32()?;
                self.has_differences |= encoding == DELTA_BYTE_ARRAY;
            } else if is_v2 && (field.is(5, I32)? || field.is(6, I32)?) {
                self.levels += walk.size()?;
            } else {
                return Ok(false);
            }
            Ok(true)
        })
    }
}

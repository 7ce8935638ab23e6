//! The content of a data file: some formats are read from its end.

use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of the blocks that are read from a [`RangeReader`].
const BLOCK: u64 = 4 << 20;
/// Number of blocks of a file that are kept: a table's reader moves back and forth between a few columns.
const KEPT_BLOCKS: usize = 8;

/// A source of ranges of bytes, such as an object in a store.
pub trait RangeReader: fmt::Debug + Send + Sync {
    fn length(&self) -> u64;

    /// Bytes `[range.start, range.end)`, which lie within the length.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes>;
}

/// A data file, in memory, on disk or elsewhere. Clones are cheap, and their readers have independent
/// positions.
#[derive(Clone, Debug)]
pub enum Content {
    Memory(Bytes),
    File(Arc<File>),
    Remote(Arc<Blocks>),
}

/// A [`RangeReader`] with its latest blocks, by number.
#[derive(Debug)]
pub struct Blocks {
    reader: Box<dyn RangeReader>,
    latest: Mutex<VecDeque<(u64, Bytes)>>,
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Content::Memory(bytes)
    }
}

impl From<File> for Content {
    fn from(file: File) -> Self {
        Content::File(Arc::new(file))
    }
}

impl Content {
    pub fn remote(reader: impl RangeReader + 'static) -> Self {
        Content::Remote(Arc::new(Blocks { reader: Box::new(reader), latest: Mutex::default() }))
    }

    /// Frees what was kept for further reading.
    pub(super) fn release(&self) {
        if let Content::Remote(blocks) = self {
            blocks.latest().clear();
        }
    }

    pub(in crate::data) fn length(&self) -> io::Result<u64> {
        match self {
            Content::Memory(bytes) => Ok(bytes.len() as u64),
            Content::File(file) => Ok(file.metadata()?.len()),
            Content::Remote(blocks) => Ok(blocks.reader.length()),
        }
    }

    pub(in crate::data) fn reader(&self, at: u64) -> ContentReader {
        ContentReader { content: self.clone(), at }
    }

    /// At most `length` bytes from a position, fewer at the end of the file.
    pub(in crate::data) fn up_to(&self, at: u64, length: usize) -> io::Result<Bytes> {
        if let Content::Memory(bytes) = self {
            return Ok(part(bytes, at, length));
        }
        let mut bytes = Vec::new();
        self.reader(at).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    /// Exactly `length` bytes from a position.
    pub(in crate::data) fn range(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let bytes = self.up_to(at, length)?;
        if bytes.len() < length {
            let what = format!("the file ends within {length} bytes at {at}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        Ok(bytes)
    }
}

/// At most `length` bytes from a position, without copying them.
fn part(bytes: &Bytes, at: u64, length: usize) -> Bytes {
    let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(start..start.saturating_add(length).min(bytes.len()))
}

impl Blocks {
    /// At most `length` bytes from a position, up to the end of its block; none at the end of the file.
    fn up_to(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let whole = self.reader.length();
        if at >= whole {
            return Ok(Bytes::new());
        }
        let (number, start) = (at / BLOCK, at / BLOCK * BLOCK);
        let found = {
            let mut latest = self.latest();
            let place = latest.iter().position(|(other, _)| *other == number);
            // The last used is the last to go.
            let found = place.and_then(|place| latest.remove(place));
            found.inspect(|found| latest.push_front(found.clone()))
        };
        let block = match found {
            Some((_, block)) => block,
            None => {
                let range = start..(start + BLOCK).min(whole);
                let expected = range.end - range.start;
                let block = self.reader.read(range)?;
                if block.len() as u64 != expected {
                    let what = format!("{} bytes at {start} instead of {expected}", block.len());
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
                }
                let mut latest = self.latest();
                latest.truncate(KEPT_BLOCKS - 1);
                latest.push_front((number, block.clone()));
                block
            }
        };
        Ok(part(&block, at - start, length))
    }

    fn latest(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of a [`Content`] from a position on.
pub(in crate::data) struct ContentReader {
    content: Content,
    at: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.content {
            Content::File(file) => file.read_at(buffer, self.at)?,
            Content::Memory(bytes) => copy(&part(bytes, self.at, buffer.len()), buffer),
            Content::Remote(blocks) => copy(&blocks.up_to(self.at, buffer.len())?, buffer),
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Copies bytes to the start of a buffer that has room for them.
fn copy(bytes: &[u8], buffer: &mut [u8]) -> usize {
    buffer[..bytes.len()].copy_from_slice(bytes);
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn readers_of_a_file_do_not_move_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        for content in [Content::from(file), Content::from(Bytes::from_static(b"0123456789"))] {
            let (mut one, mut other) = (content.reader(0), content.reader(5));
            let (mut first, mut second) = ([0; 3], String::new());
            one.read_exact(&mut first).unwrap();
            other.read_to_string(&mut second).unwrap();
            assert_eq!((&first, second.as_str()), (b"012", "56789"));
            assert_eq!(&content.range(8, 2).unwrap()[..], b"89");
            assert_eq!(&content.up_to(8, 5).unwrap()[..], b"89");
            assert!(content.up_to(99, 5).unwrap().is_empty());
            assert_eq!(content.range(8, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(content.length().unwrap(), 10);
        }
    }

    /// Bytes that tell their position, and the number of reads.
    #[derive(Debug)]
    struct Counted(u64, Arc<Mutex<usize>>);

    fn byte(at: u64) -> u8 {
        at.wrapping_mul(31).to_le_bytes()[0] ^ (at >> 20).to_le_bytes()[0]
    }

    impl RangeReader for Counted {
        fn length(&self) -> u64 {
            self.0
        }

        fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
            *self.1.lock().unwrap() += 1;
            Ok(range.map(byte).collect())
        }
    }

    #[test]
    fn remote_bytes_are_read_by_blocks() {
        let (length, reads) = (2 * BLOCK + 100, Arc::new(Mutex::new(0)));
        let content = Content::remote(Counted(length, Arc::clone(&reads)));
        assert_eq!(content.length().unwrap(), length);
        let across = content.range(BLOCK - 5, 10).unwrap();
        assert_eq!(across[..], (BLOCK - 5..BLOCK + 5).map(byte).collect::<Vec<_>>());
        let mut all = Vec::new();
        content.reader(0).read_to_end(&mut all).unwrap();
        assert!(all.len() as u64 == length && all.iter().zip(0..).all(|(found, at)| *found == byte(at)));
        assert_eq!(*reads.lock().unwrap(), 3, "each block is read once");
        assert_eq!(content.up_to(length - 1, 9).unwrap().len(), 1);
        assert!(content.up_to(length + 1, 9).unwrap().is_empty());
        assert_eq!(content.range(length - 1, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        content.release();
        content.range(0, 1).unwrap();
        assert_eq!(*reads.lock().unwrap(), 4);
    }
}

//! The content of a data file: some formats are read from its end.

use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A data file, in memory or on disk. Clones are cheap, and their readers have independent positions.
#[derive(Clone, Debug)]
pub enum Content {
    Memory(Bytes),
    File(Arc<File>),
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
    pub(super) fn length(&self) -> io::Result<u64> {
        match self {
            Content::Memory(bytes) => Ok(bytes.len() as u64),
            Content::File(file) => Ok(file.metadata()?.len()),
        }
    }

    pub(super) fn reader(&self, at: u64) -> ContentReader {
        ContentReader { content: self.clone(), at }
    }

    /// At most `length` bytes from a position, fewer at the end of the file.
    pub(super) fn up_to(&self, at: u64, length: usize) -> io::Result<Bytes> {
        if let Content::Memory(bytes) = self {
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            return Ok(bytes.slice(start..start.saturating_add(length).min(bytes.len())));
        }
        let mut bytes = Vec::new();
        self.reader(at).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    /// Exactly `length` bytes from a position.
    pub(super) fn range(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let bytes = self.up_to(at, length)?;
        if bytes.len() < length {
            let what = format!("the file ends within {length} bytes at {at}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        Ok(bytes)
    }
}

/// A reader of a [`Content`] from a position on.
pub(super) struct ContentReader {
    content: Content,
    at: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.content {
            Content::File(file) => file.read_at(buffer, self.at)?,
            Content::Memory(bytes) => {
                let rest = bytes.get(usize::try_from(self.at).unwrap_or(usize::MAX)..).unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                count
            }
        };
        self.at += count as u64;
        Ok(count)
    }
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
}

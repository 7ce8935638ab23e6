//! Compression of whole files.

use flate2::bufread::MultiGzDecoder;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

/// Largest window of a zstd file, as the logarithm of its bytes: 128 MiB, as in the `zstd` program.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// The compression that a file's first bytes indicate.
    pub(super) fn of(start: &[u8]) -> Self {
        // A zstd file may begin with a skippable frame, which has one of 16 magic numbers.
        let is_skippable = |start: &[u8]| start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            [_, _, _, _, ..] if is_skippable(start) => Packing::Zstd,
            _ => Packing::Plain,
        }
    }

    /// The unpacked bytes, of which at most `limit` are read.
    pub(super) fn unpack(self, packed: impl BufRead + 'static, limit: u64) -> io::Result<Box<dyn BufRead>> {
        let buffered = |unpacked| Box::new(BufReader::with_capacity(1 << 16, unpacked));
        Ok(match self {
            Packing::Plain => Box::new(packed.take(limit)),
            Packing::Gzip => buffered(Box::new(MultiGzDecoder::new(packed).take(limit)) as Box<dyn Read>),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                buffered(Box::new(decoder.take(limit)))
            }
        })
    }

    /// Describes a decompression error, with advice; `None` if the file itself cannot be read.
    pub(super) fn explain(self, error: &io::Error) -> Option<(String, &'static str)> {
        // Errors of the operating system have a number; those of a decoder do not.
        if self == Packing::Plain || error.raw_os_error().is_some() {
            return None;
        }
        if self == Packing::Zstd && error.to_string().contains("too much memory") {
            let found = format!("zstd data with a window of more than {} MiB", (1 << ZSTD_WINDOW_LOG) >> 20);
            return Some((found, "compress the file without --long and --ultra"));
        }
        Some((format!("broken {self} data ({error})"), "the file may be cut short; fetch it again"))
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Packing::Plain => "plain",
            Packing::Gzip => "gzip",
            Packing::Zstd => "zstd",
        })
    }
}

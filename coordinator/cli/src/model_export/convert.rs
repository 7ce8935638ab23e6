//! The pass over a model's weights: every file is read once from start to end, hashed, converted and written.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use foil_common::input_file;

use super::layout::{Item, Layout, Shard};
use super::numbers::Converter;
use super::work::Work;
use crate::card::ModelFile;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// Parameters of a pass over the weights.
pub(super) struct Pass<'a> {
    pub(super) layout: &'a Layout,
    /// The hash that a file must have, if it is known.
    pub(super) expected: &'a dyn Fn(&Path) -> Option<String>,
    /// Called with the number of bytes that were read.
    pub(super) moved: &'a dyn Fn(u64),
    /// Whether to stop.
    pub(super) is_stopped: &'a dyn Fn() -> bool,
}

/// Stopped by a signal. What is written is kept for the next attempt.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub(super) struct Stopped;

impl Pass<'_> {
    /// Writes all shards into the work directory. Existing shards are not written again, but their sources
    /// are still read and verified.
    pub(super) fn run(&self, work: &mut Work) -> Result<Vec<ModelFile>> {
        let mut writer = Writer { layout: self.layout, shard: None, next: 0 };
        for file in &self.layout.files {
            let mut reader = Reader::open(&file.path)?;
            for item in &file.items {
                writer.turn_to(item.shard, work)?;
                reader.skip(item.start)?;
                self.tensor(item, &mut reader, &mut writer)?;
            }
            let hash = reader.finish()?;
            if let Some(expected) = (self.expected)(&file.path)
                && hash != expected
            {
                bail!(Corrupt { path: file.path.clone(), expected, found: hash });
            }
        }
        writer.turn_to(self.layout.shards.len(), work)?;
        Ok(self.layout.shards.iter().filter_map(|shard| work.finished(&shard.name)).collect())
    }

    fn tensor(&self, item: &Item, reader: &mut Reader, writer: &mut Writer<'_>) -> Result<()> {
        let mut converter = Converter::new(item.from, item.to);
        let (mut left, mut done) = (item.bytes, 0usize);
        let width = super::numbers::format(item.from).map_or(1, |(_, width)| width);
        let mut converted = Vec::with_capacity(2 * PIECE);
        while left > 0 {
            if (self.is_stopped)() {
                return Err(Stopped.into());
            }
            let piece = reader.read(left.min(PIECE as u64) as usize)?;
            converted.clear();
            if writer.is_writing() {
                converter
                    .convert(piece, &mut converted)
                    .map_err(|unfit| unfit_error(item, done + unfit.index, unfit.value))?;
                writer.write(&converted)?;
            }
            (self.moved)(piece.len() as u64);
            left -= piece.len() as u64;
            done += piece.len() / width;
        }
        Ok(())
    }
}

fn unfit_error(item: &Item, index: usize, value: f32) -> anyhow::Error {
    let name = &item.name;
    match value.is_finite() {
        true => anyhow!(
            "tensor {name}: the number {value:e} at index {index} is beyond the range of {}; export it as bf16 or fp32",
            item.to
        ),
        false => anyhow!(
            "tensor {name}: the number at index {index} is {value}: the model is broken; export another round's"
        ),
    }
}

/// A file that differs from what was trained.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} has BLAKE3 {found}, but the one that was trained has {expected}: it is damaged or was changed. Pull the model again; if it \
     was changed on purpose, remove foil.json beside it to export it without this check",
    path.display()
)]
pub(super) struct Corrupt {
    pub(super) path: PathBuf,
    pub(super) expected: String,
    pub(super) found: String,
}

/// Reads a file from start to end and hashes all of it.
struct Reader {
    path: PathBuf,
    file: File,
    at: u64,
    hasher: blake3::Hasher,
    piece: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let file = input_file::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, at: 0, hasher: blake3::Hasher::new(), piece: Vec::new() })
    }

    fn read(&mut self, size: usize) -> Result<&[u8]> {
        self.piece.resize(size, 0);
        self.file
            .read_exact(&mut self.piece)
            .with_context(|| format!("cannot read {} at byte {}", self.path.display(), self.at))?;
        self.hasher.update(&self.piece);
        self.at += size as u64;
        Ok(&self.piece)
    }

    /// Reads and hashes the header, up to the byte `to`.
    fn skip(&mut self, to: u64) -> Result<()> {
        while self.at < to {
            self.read((to - self.at).min(PIECE as u64) as usize)?;
        }
        Ok(())
    }

    /// Reads to the end; returns the hash of the whole file.
    fn finish(mut self) -> Result<String> {
        let size =
            self.file.metadata().with_context(|| format!("cannot read {}", self.path.display()))?.len();
        self.skip(size)?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

/// Writes one shard after the other.
struct Writer<'a> {
    layout: &'a Layout,
    /// The shard being written; `None` if it exists already.
    shard: Option<Open>,
    /// The number of shards that were begun.
    next: usize,
}

struct Open {
    name: String,
    part: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
}

impl Writer<'_> {
    fn is_writing(&self) -> bool {
        self.shard.is_some()
    }

    /// Closes the shards before `shard` and opens it. The number after the last shard only closes.
    fn turn_to(&mut self, shard: usize, work: &mut Work) -> Result<()> {
        while self.next <= shard {
            if let Some(open) = self.shard.take() {
                open.close(work)?;
            }
            if let Some(shard) = self.layout.shards.get(self.next)
                && work.finished(&shard.name).is_none()
            {
                self.shard = Some(Open::create(shard, work)?);
            }
            self.next += 1;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.shard {
            Some(open) => open.write(bytes),
            None => Ok(()),
        }
    }
}

impl Open {
    fn create(shard: &Shard, work: &Work) -> Result<Self> {
        let part = work.unfinished(&shard.name);
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let mut open = Self {
            name: shard.name.clone(),
            part,
            file: BufWriter::with_capacity(PIECE, file),
            hasher: blake3::Hasher::new(),
        };
        open.write(&shard.header)?;
        Ok(open)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.part.display()))
    }

    fn close(self, work: &mut Work) -> Result<()> {
        let cannot = || format!("cannot write {}", self.part.display());
        let file =
            self.file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
        file.sync_all().with_context(cannot)?;
        let size = file.metadata().with_context(cannot)?.len();
        let blake3 = self.hasher.finalize().to_hex().to_string();
        work.finish(ModelFile { name: self.name, size, blake3 })
    }
}

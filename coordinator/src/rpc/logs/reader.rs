//! Reads the logs of a job's processes from the store, merged by time within each attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use foil_common::logs::{self, Part, Process};
use foil_common::storage::{Store, StoreError};
use foil_proto::v1;
use tonic::Status;

use super::cursor::Cursor;
use super::filter::{Context, Filter};
use super::pieces::{Piece, pieces};
use crate::rpc::status::store_unavailable;

/// Size limit of the lines of a tail; if lines are long, the tail has fewer.
const TAIL_BYTES: usize = 8 << 20;

/// Reads logs incrementally, starting at a cursor.
pub(super) struct Reader {
    store: Store,
    job: String,
    filter: Filter,
    pub(super) cursor: Cursor,
    contexts: BTreeMap<Process, Context>,
    /// Processes whose last part has been seen.
    complete: BTreeSet<Process>,
}

/// The log of one process while it is merged with others.
struct Source {
    process: Process,
    pieces: VecDeque<Piece>,
    /// Lines read but not yet taken, each with the offset after it.
    lines: VecDeque<(Entry, u64)>,
    context: Context,
    /// Time of the first of the lines.
    time: f64,
}

enum Entry {
    Line(String),
    Dropped(u64),
}

/// Receives the lines of a pass.
pub(super) trait Sink {
    /// Receives a line; the cursor is positioned after it.
    async fn take(&mut self, line: v1::RankLogLine, cursor: &Cursor) -> Result<(), Status>;
}

impl Reader {
    pub(super) fn new(store: Store, job: &str, filter: Filter, cursor: Cursor) -> Self {
        let (contexts, complete) = (BTreeMap::new(), BTreeSet::new());
        Self { store, job: job.to_owned(), filter, cursor, contexts, complete }
    }

    /// Whether the process's log is being read and has not ended yet.
    pub(super) fn awaits(&self, process: &Process) -> bool {
        self.filter.wants_process(process) && !self.complete.contains(process)
    }

    /// Reads everything available. `attempt` is the job's last one; logs of attempts before the second to
    /// last are listed only once.
    pub(super) async fn pass(&mut self, attempt: u32, sink: &mut impl Sink) -> Result<(), Status> {
        let mut listed = self.list(attempt).await?;
        if listed.iter().any(|(process, parts)| self.has_gap(process, parts)) {
            // A part may have been replaced by another during the listing.
            for (process, parts) in self.list(attempt).await? {
                listed.entry(process).or_default().extend(parts);
            }
        }
        let mut attempts: BTreeMap<u32, Vec<(Process, Vec<Part>)>> = BTreeMap::new();
        for (process, parts) in listed {
            if parts.iter().any(|part| part.is_last) {
                self.complete.insert(process.clone());
            }
            attempts.entry(process.attempt).or_default().push((process, parts));
        }
        for (_, logs) in attempts {
            self.merge(logs, sink).await?;
        }
        self.cursor.forget_before(attempt.saturating_sub(1));
        Ok(())
    }

    /// Sets the cursor so that the next pass returns at least the given number of lines, if there are that
    /// many, and only few more.
    pub(super) async fn seek_tail(&mut self, lines: usize) -> Result<(), Status> {
        let mut attempts: BTreeMap<u32, Vec<(Process, Vec<Part>)>> = BTreeMap::new();
        for (process, parts) in self.list(0).await? {
            attempts.entry(process.attempt).or_default().push((process, parts));
        }
        let mut found = 0;
        for (_, logs) in attempts.into_iter().rev() {
            // Lines of later attempts come after all lines of this one.
            let is_wanted = found < lines;
            for (process, parts) in logs {
                let all = pieces(&parts, self.cursor.offset(&process));
                let end = parts.iter().map(|part| part.end).max().unwrap_or_default();
                let (mut start, mut own) = (end, 0);
                for piece in all.iter().rev() {
                    if !is_wanted || own >= lines {
                        break;
                    }
                    own += self.count(piece).await?;
                    start = piece.start();
                }
                self.cursor.advance(&process, start);
                found += own;
            }
        }
        Ok(())
    }

    /// Number of wanted lines in a piece.
    async fn count(&self, piece: &Piece) -> Result<usize, Status> {
        let Piece::Part { part, from } = piece else { return Ok(0) };
        let Some(text) = self.read(part, *from).await? else { return Ok(0) };
        let mut context = Context::default();
        let wanted = text.lines().filter(|line| {
            context.enter(line);
            self.filter.wants(&context)
        });
        Ok(wanted.count())
    }

    async fn list(&self, attempt: u32) -> Result<BTreeMap<Process, Vec<Part>>, Status> {
        let first = self.cursor.first_attempt().max(self.filter.attempt.unwrap_or_default());
        let prefixes = match self.filter.attempt {
            Some(attempt) => vec![logs::attempt_prefix(&self.job, attempt)],
            None if first > 0 => {
                // The last lines of the second-to-last attempt may arrive late.
                let first = first.min(attempt.saturating_sub(1)).max(1);
                (first..=attempt).map(|attempt| logs::attempt_prefix(&self.job, attempt)).collect()
            }
            None => vec![logs::prefix(&self.job)],
        };
        let mut parts: BTreeMap<Process, Vec<Part>> = BTreeMap::new();
        for prefix in prefixes {
            let listed = self.store.list(&prefix).await.map_err(|error| store_unavailable(&error))?;
            for part in listed.iter().filter_map(|listed| Part::parse(&self.job, &listed.key)) {
                if self.filter.wants_process(&part.process) {
                    parts.entry(part.process.clone()).or_default().push(part);
                }
            }
        }
        Ok(parts)
    }

    fn has_gap(&self, process: &Process, parts: &[Part]) -> bool {
        let pieces = pieces(parts, self.cursor.offset(process));
        pieces.iter().any(|piece| matches!(piece, Piece::Gap { .. }))
    }

    async fn merge(&mut self, logs: Vec<(Process, Vec<Part>)>, sink: &mut impl Sink) -> Result<(), Status> {
        let mut sources = Vec::with_capacity(logs.len());
        for (process, parts) in logs {
            let pieces = pieces(&parts, self.cursor.offset(&process)).into();
            let context = self.contexts.remove(&process).unwrap_or_default();
            // Resuming starts here, even if no line is wanted.
            self.cursor.advance(&process, self.cursor.offset(&process));
            let mut source = Source { process, pieces, lines: VecDeque::new(), context, time: 0.0 };
            self.fill(&mut source).await?;
            sources.push(source);
        }
        loop {
            let waiting = sources.iter_mut().filter(|source| !source.lines.is_empty());
            let Some(next) = waiting.min_by(|a, b| a.time.total_cmp(&b.time)) else { break };
            let Some((entry, offset)) = next.lines.pop_front() else { break };
            self.cursor.advance(&next.process, offset);
            let (attempt, rank) = (next.process.attempt, next.process.rank);
            let line = match entry {
                Entry::Line(line) => {
                    next.context.enter(&line);
                    let wanted = self.filter.wants(&next.context);
                    wanted.then_some(v1::RankLogLine { attempt, rank, line, dropped_bytes: 0 })
                }
                Entry::Dropped(bytes) => {
                    Some(v1::RankLogLine { attempt, rank, line: String::new(), dropped_bytes: bytes })
                }
            };
            if next.lines.is_empty() {
                self.fill(next).await?;
            } else {
                next.look_ahead();
            }
            if let Some(line) = line {
                sink.take(line, &self.cursor).await?;
            }
        }
        self.contexts.extend(sources.into_iter().map(|source| (source.process, source.context)));
        Ok(())
    }

    /// Reads the next piece that contains lines.
    async fn fill(&self, source: &mut Source) -> Result<(), Status> {
        while source.lines.is_empty()
            && let Some(piece) = source.pieces.pop_front()
        {
            match piece {
                Piece::Gap { from, to } => source.lines.push_back((Entry::Dropped(to - from), to)),
                Piece::Part { part, from } => match self.read(&part, from).await? {
                    Some(text) => {
                        let mut offset = from;
                        for line in text.split_inclusive('\n') {
                            offset += line.len() as u64;
                            source.lines.push_back((Entry::Line(line.trim_end().to_owned()), offset));
                        }
                    }
                    // Another part has replaced it, or it was the oldest; the next pass will tell.
                    None => source.pieces.clear(),
                },
            }
        }
        source.look_ahead();
        Ok(())
    }

    /// The text of a part, starting at an offset in the log; none if the part has been deleted.
    async fn read(&self, part: &Part, from: u64) -> Result<Option<String>, Status> {
        let bytes = match self.store.get(&part.key(&self.job)).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(store_unavailable(&error)),
        };
        let skip = usize::try_from(from - part.start).unwrap_or(bytes.len()).min(bytes.len());
        let mut text = String::from_utf8_lossy(&bytes[skip..]).into_owned();
        // Offsets count bytes, and would differ for text that was not UTF-8.
        if text.len() != bytes.len() - skip {
            text = bytes[skip..]
                .iter()
                .map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' })
                .collect();
        }
        Ok(Some(text))
    }
}

impl Source {
    /// Sets the time by which the next line is merged.
    fn look_ahead(&mut self) {
        if let Some((Entry::Line(line), _)) = self.lines.front() {
            let mut ahead = self.context.clone();
            ahead.enter(line);
            self.time = ahead.time;
        } else {
            self.time = self.context.time;
        }
    }
}

/// Keeps only the last lines.
#[derive(Debug)]
pub(super) struct Tail {
    lines: VecDeque<v1::RankLogLine>,
    max: usize,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(max: usize) -> Self {
        Self { lines: VecDeque::new(), max, bytes: 0 }
    }

    pub(super) fn into_lines(self) -> VecDeque<v1::RankLogLine> {
        self.lines
    }
}

impl Sink for Tail {
    async fn take(&mut self, line: v1::RankLogLine, _: &Cursor) -> Result<(), Status> {
        self.bytes += line.line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.max || self.bytes > TAIL_BYTES {
            let Some(first) = self.lines.pop_front() else { break };
            self.bytes -= first.line.len();
        }
        Ok(())
    }
}

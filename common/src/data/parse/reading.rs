//! Reading the files of several sources into one set.

use super::choice::{Choice, Kept};
use super::value::excerpt;
use super::{
    BadRow, Budget, ColumnNames, Content, Found, KEPT_BAD_ROWS, KEPT_IGNORED, ParseError, Parsed, ReadFile,
    ReadSource, SourceFiles, Unkept, Wanted, misfit, places, records,
};
use crate::data::row_set::RowSet;
use crate::data::rows::content_key;
use std::collections::HashSet;

/// Parses the files of several sources into one set, of whose rows `choice` keeps some. A row that equals one
/// of an earlier source is left out.
pub fn parse_sources<'a, T: Wanted>(
    sources: impl IntoIterator<Item = SourceFiles<'a>>,
    budget: &mut Budget,
    choice: &mut dyn Choice<T>,
) -> Result<Parsed<RowSet<T>>, ParseError> {
    let mut reading =
        Reading { parsed: Parsed::default(), seen: HashSet::new(), kept: Kept::new(choice), budget };
    for SourceFiles { files, names } in sources {
        let source = reading.parsed.sources.len();
        reading.parsed.sources.push(ReadSource::default());
        reading.kept.start(source);
        for (file, content) in files {
            reading.file(file, &content, (source, names))?;
            content.release();
        }
        reading.parsed.sources[source].admitted = reading.kept.finish(reading.budget)?;
    }
    let Reading { mut parsed, kept, .. } = reading;
    let (rows, origins) = kept.into_rows()?;
    parsed.places.assign(rows.ids().zip(origins));
    Ok(parsed.with(rows))
}

/// Files that are being read into a set.
struct Reading<'a, T> {
    parsed: Parsed<()>,
    /// Half of the content key of every row so far.
    seen: HashSet<u128>,
    kept: Kept<'a, T>,
    budget: &'a mut Budget,
}

impl<T: Wanted> Reading<'_, T> {
    fn file(
        &mut self,
        file: &str,
        content: &Content,
        (source, names): (usize, &ColumnNames),
    ) -> Result<(), ParseError> {
        let parsed = &mut self.parsed;
        let (before, bad_before, skipped) = (parsed.records, parsed.bad_rows, parsed.skipped);
        let file_index = parsed.places.add_file(file, source);
        let mut records = records::Records::open(file, content, names)?;
        while let Some(record) = records.next()? {
            parsed.records += 1;
            let origin = places::Origin::new(file_index, record.position);
            let result = record.value.and_then(|value| {
                let mut found = Found::default();
                let read = T::read(&value, &mut found);
                if read.is_err() && parsed.bad.is_empty() {
                    let misfit = misfit::of(T::PURPOSE, &value, records.ignored());
                    parsed.misfit = misfit.map(|misfit| (source, misfit));
                }
                read.map(|()| found)
            });
            match result {
                Ok(found) => {
                    for row in parsed.new_rows(found, &mut self.seen) {
                        self.kept.add(row, origin, self.budget).map_err(|unkept| match unkept {
                            Unkept::TooLarge => ParseError::TooLarge { place: parsed.places.name(origin) },
                            Unkept::Spill(error) => error.into(),
                        })?;
                    }
                }
                Err(what) => {
                    let place = parsed.places.name(origin);
                    parsed.add_bad(BadRow { place, what });
                }
            }
        }
        if parsed.records == before {
            return Err(ParseError::Empty {
                file: file.to_owned(),
                expected: T::NAME,
                form: records.one_each(),
            });
        }
        parsed.ignore(records.ignored().iter().cloned(), parsed.records - before);
        let (records_read, bad_rows) = (parsed.records - before, parsed.bad_rows - bad_before);
        parsed.files.push(ReadFile {
            name: file.to_owned(),
            format: records.format(),
            records: records_read,
            bad_rows,
        });
        let skipped = parsed.skipped.since(skipped);
        parsed.sources[source].add(file, bad_rows, skipped);
        Ok(())
    }
}

/// Half of a hash, which is enough to tell rows apart.
fn half(key: [u8; 32]) -> u128 {
    let mut low = [0; 16];
    low.copy_from_slice(&key[..16]);
    u128::from_le_bytes(low)
}

impl Parsed<()> {
    /// Counts what a record held, and returns its rows that are new.
    fn new_rows<T: Wanted>(&mut self, mut found: Found<T>, seen: &mut HashSet<u128>) -> Vec<T> {
        self.skipped.ties += found.ties;
        self.skipped.spare_answers += found.spare_answers;
        self.skipped.undesirable += found.undesirable;
        found.ignored.sort_unstable();
        found.ignored.dedup();
        self.ignore(found.ignored, 1);
        let before = found.rows.len();
        found.rows.retain(|row| seen.insert(half(content_key(row))));
        self.skipped.duplicates += (before - found.rows.len()) as u64;
        found.rows
    }

    /// Counts unread columns, which `records` records have.
    fn ignore(&mut self, names: impl IntoIterator<Item = String>, records: u64) {
        for name in names {
            let name = excerpt(&name, 64);
            if self.ignored.len() < KEPT_IGNORED || self.ignored.contains_key(&name) {
                *self.ignored.entry(name).or_default() += records;
            }
        }
    }

    fn add_bad(&mut self, row: BadRow) {
        self.bad_rows += 1;
        if self.bad.len() < KEPT_BAD_ROWS {
            self.bad.push(row);
        }
    }
}

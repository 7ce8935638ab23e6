//! Checks that reading a large file takes little memory beside one batch.
//!
//! The ordinary run writes a file of about 15 MB. `FOIL_LARGE_PARQUET=PATH cargo test -p foil-common --test
//! data_memory` reads the file of about 100 MB that `scripts/fixtures/data_files.py --large PATH` has
//! written.

#![allow(clippy::print_stdout, reason = "figures of a run")]
#![allow(clippy::disallowed_methods, reason = "fresh data in each run")]
// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use foil_common::data::parse::{Budget, parse_files};
use foil_common::data::rows::PairRow;
use parquet::arrow::ArrowWriter;
use rand::distr::{Alphanumeric, SampleString};

/// Writes rows of random letters, with additional columns that are not read.
fn write(path: &Path) {
    let text = |length| Alphanumeric.sample_string(&mut rand::rng(), length);
    let texts = |length| Arc::new(StringArray::from_iter_values((0..1000).map(|_| text(length)))) as ArrayRef;
    let mut writer: Option<ArrowWriter<File>> = None;
    for _ in 0..10 {
        let columns = (0..64).map(|column| {
            let numbers = Float32Array::from_iter_values((0..1000).map(|_| rand::random::<f32>()));
            (format!("embedding{column}"), Arc::new(numbers) as ArrayRef)
        });
        let read = ["prompt", "chosen", "rejected"].map(|name| (name.to_owned(), texts(400)));
        let batch = RecordBatch::try_from_iter(read.into_iter().chain(columns)).unwrap();
        let new = || ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
        writer.get_or_insert_with(new).write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}

/// Peak resident memory of this process in bytes, since it was last reset.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
fn a_large_file_is_read_in_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (path, limit) = match std::env::var_os("FOIL_LARGE_PARQUET") {
        Some(path) => (path.into(), 300 << 20),
        None => (dir.path().join("large.parquet"), 80 << 20),
    };
    if !path.exists() {
        write(&path);
    }
    let size = fs::metadata(&path).unwrap().len();
    forget_peak();
    let files = [("large.parquet", File::open(&path).unwrap().into())];
    let parsed = parse_files::<PairRow>(files, &mut Budget::default()).unwrap();
    let peak = peak();
    println!("{} rows of {} MB took {} MB", parsed.rows.len(), size / 1_000_000, peak / 1_000_000);
    assert_eq!(parsed.bad_rows, 0, "{:?}", parsed.bad);
    assert!(parsed.rows.len() >= 10_000);
    assert!(peak < limit, "{} MiB of a file of {} MiB", peak >> 20, size >> 20);
}

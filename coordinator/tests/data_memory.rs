//! Checks that data sets which are used whole take little memory while a submission reads, checks, splits and
//! describes them.
//!
//! `FOIL_LARGE_MB=N` sets the size of the file.

#![allow(clippy::print_stdout, reason = "figures of a run")]
#![allow(clippy::disallowed_methods, reason = "fresh data in each run")]
// A test that cannot set itself up has failed.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use foil_common::datasets;
use foil_common::spec;
use foil_coordinator::resolve::local::local;
use foil_proto::v1;

/// Letters of an answer; a row has two of them.
const ANSWER: usize = 2000;

/// The value of a line of this process's status, in bytes.
fn status(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn letters(count: usize) -> String {
    (0..count).map(|_| fastrand::char('a'..='h')).collect()
}

/// Writes pairs that take `bytes`; returns their number.
fn write_pairs(path: &Path, bytes: usize) -> u64 {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let rows = bytes / (2 * ANSWER + 60);
    for _ in 0..rows {
        let (prompt, chosen, rejected) = (letters(20), letters(ANSWER), letters(ANSWER));
        writeln!(file, r#"{{"prompt":"{prompt}","chosen":"{chosen}","rejected":"{rejected}"}}"#).unwrap();
    }
    file.flush().unwrap();
    rows as u64
}

fn job(dir: &Path) -> spec::Job {
    let path = |name: &str| vec![dir.join(name).display().to_string()];
    let letters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/jobs/letters");
    let data = v1::DataSpec {
        preferences: path("pairs.jsonl"),
        golden: path("golden.jsonl"),
        prompts: path("golden.jsonl"),
        sft: path("sft.jsonl"),
        ..Default::default()
    };
    let wire = v1::JobSpec {
        name: "large".into(),
        policy: Some(v1::PolicySpec { model: letters.display().to_string(), init: "random".into() }),
        text: Some(v1::TextSpec { max_length: Some(32), ..Default::default() }),
        sampling: Some(v1::SamplingSpec { max_new_tokens: Some(16), ..Default::default() }),
        data: Some(data),
        ..Default::default()
    };
    spec::Job::try_from(wire).unwrap()
}

#[test]
fn a_large_set_that_is_used_whole_takes_little_memory() {
    let size = std::env::var("FOIL_LARGE_MB").map_or(40, |size| size.parse().unwrap()) * 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let rows = write_pairs(&dir.path().join("pairs.jsonl"), size);
    let golden: String =
        (0..50).map(|_| format!("{{\"prompt\":\"{}\",\"golden\":\"a!!\"}}\n", letters(9))).collect();
    fs::write(dir.path().join("golden.jsonl"), golden).unwrap();
    fs::write(dir.path().join("sft.jsonl"), "{\"prompt\":\"ab\",\"answer\":\"ab!\"}").unwrap();
    let job = job(dir.path());
    let before = status("VmRSS:");
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let local = local(&job).unwrap();
    let grown = status("VmHWM:").saturating_sub(before);
    println!("{} MB of pairs took {} MB", size / 1_000_000, grown / 1_000_000);
    let sets = [datasets::PREFERENCES, datasets::EVALUATION_PREFERENCES];
    let counts = local.datasets().into_iter().filter(|set| sets.contains(&set.name.as_str()));
    assert_eq!(counts.map(|set| set.rows).sum::<u64>(), rows);
    // Batches of rows, and the positions of all.
    assert!(grown < (24 << 20) + rows as usize * 250, "{} MiB of a file of {} MiB", grown >> 20, size >> 20);
}

//! Bodies of the fuzz targets. `tests/fuzz` runs each with libFuzzer, and this crate's own test runs each
//! over its committed corpus and over mutations of it.
//!
//! A target accepts any bytes. It must not panic or exceed its memory bound, and anything it accepts must
//! survive being written and read again.

mod data;
mod job;
mod log;
mod model;
pub mod mutate;
mod wire;

use std::backtrace::Backtrace;
use std::io::Write as _;
use std::panic;
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};

/// A reader of untrusted bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of its libFuzzer target and of its corpus folder.
    pub name: &'static str,
    pub run: fn(&[u8]) -> Verdict,
    /// Kind of its inputs, as a file extension, which determines how they are mutated.
    pub extension: &'static str,
    /// Maximum memory for an input from a corpus, in MiB.
    pub mebibytes: usize,
    /// Number of inputs in the ordinary test.
    pub runs: u32,
}

/// Outcome of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Refused,
}

impl<T, E> From<Result<T, E>> for Verdict {
    fn from(read: Result<T, E>) -> Self {
        if read.is_ok() { Self::Accepted } else { Self::Refused }
    }
}

impl<T> From<Option<T>> for Verdict {
    fn from(read: Option<T>) -> Self {
        if read.is_some() { Self::Accepted } else { Self::Refused }
    }
}

const fn target(
    name: &'static str,
    run: fn(&[u8]) -> Verdict,
    extension: &'static str,
    mebibytes: usize,
    runs: u32,
) -> Target {
    Target { name, run, extension, mebibytes, runs }
}

/// All targets.
pub const TARGETS: [Target; 22] = [
    target("agent_message", wire::agent_message, "bin", 16, 2000),
    target("chat_template", model::chat_template, "jinja", 256, 300),
    target("data_arrow", data::arrow, "arrow", 64, 1000),
    target("data_convert", data::convert, "jsonl", 128, 400),
    target("data_csv", data::csv, "csv", 64, 1000),
    target("data_demonstrations", data::demonstrations, "jsonl", 64, 600),
    target("data_golden", data::golden, "jsonl", 64, 600),
    target("data_pairs", data::pairs, "jsonl", 64, 600),
    target("data_parquet", data::parquet, "parquet", 256, 1000),
    target("data_prompts", data::prompts, "jsonl", 64, 600),
    target("data_zstd", data::zstd, "zst", 64, 600),
    target("event", log::event, "bin", 32, 1000),
    target("job_file", job::job_file, "yaml", 64, 600),
    target("job_spec", wire::job_spec, "bin", 32, 1000),
    target("log_record", log::record, "bin", 16, 2000),
    target("model_config", model::config, "json", 192, 1000),
    target("rank_message", wire::rank_message, "bin", 32, 2000),
    target("rows", data::rows, "jsonl", 64, 600),
    target("safetensors", model::safetensors, "safetensors", 64, 600),
    target("shard_index", model::shard_index, "json", 128, 600),
    target("snapshot", log::snapshot, "bin", 16, 1000),
    target("tokenizer", model::tokenizer, "json", 512, 150),
];

/// Runs the target with this name under libFuzzer.
///
/// libFuzzer's panic hook ends the process on any panic, even on one of a library that its caller catches and
/// reports as a broken file. Only a panic that leaves the target is a finding.
///
/// # Panics
/// There is no such target.
pub fn fuzz(name: &str, input: &[u8]) {
    static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        panic::set_hook(Box::new(|found| {
            let text = format!("{found}\n{}", Backtrace::force_capture());
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }));
    });
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    if panic::catch_unwind(|| (target.run)(input)).is_err() {
        let text = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        // libFuzzer's output is on standard error as well.
        let _ = std::io::stderr().write_all(text.as_bytes());
        std::process::abort();
    }
}

/// The folder of a target's corpus.
pub fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}

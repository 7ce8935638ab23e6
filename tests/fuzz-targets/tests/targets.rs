//! Runs each fuzz target over its committed corpus and over mutations of it from a fresh seed.
//!
//! `FOIL_FUZZ_SEED` repeats a run, and `FOIL_FUZZ_RUNS` multiplies its number of inputs.

#![allow(clippy::print_stdout, reason = "prints the figures of a run")]

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use foil_fuzz_targets::{TARGETS, Target, Verdict, corpus, mutate};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// Serializes the targets, so that the memory of each can be measured.
static TURN: Mutex<()> = Mutex::new(());

/// Maximum size of a corpus file, since the corpus is read with every build.
const MAX_FILE_BYTES: u64 = 64 << 10;

fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(corpus(target.name))
        .unwrap_or_else(|error| panic!("{}: {error}", target.name))
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a file")))
        .collect();
    found.sort();
    found
}

/// Runs an input. A panic or excessive memory use is a finding, which is kept and named.
fn try_input(target: &Target, told: &str, input: &[u8]) -> Verdict {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let verdict = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let mebibytes = MEMORY.peak_usage().saturating_sub(before) >> 20;
    match verdict {
        Ok(verdict) if mebibytes <= target.mebibytes => verdict,
        Ok(_) => {
            let what = format!("it took {mebibytes} MiB, more than {}", target.mebibytes);
            panic!("{}: {told}: {what}; kept as {}", target.name, keep(target, input).display())
        }
        Err(panic) => {
            let what = message(panic.as_ref());
            panic!("{}: {told}: {what}; kept as {}", target.name, keep(target, input).display())
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Keeps a finding outside the corpus, to be added along with its fix.
fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("foil-fuzz-{}.{}", target.name, target.extension));
    fs::write(&path, input).expect("a temporary file");
    path
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn check(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = seeds(target);
    let verdicts: Vec<Verdict> = seeds.iter().map(|(file, input)| try_input(target, file, input)).collect();
    for wanted in [Verdict::Accepted, Verdict::Refused] {
        assert!(verdicts.contains(&wanted), "{name}: no file of its corpus is {wanted:?}");
    }
    let seed = number("FOIL_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let runs = u64::from(target.runs) * number("FOIL_FUZZ_RUNS").unwrap_or(1);
    let mut accepted = 0;
    for run in 0..runs {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(run));
        let mut input = random.choice(&seeds).expect("a corpus").1.clone();
        for _ in 0..random.usize(1..=3) {
            mutate::file(&format!("input.{}", target.extension), &mut input, &mut random);
        }
        let told = format!("FOIL_FUZZ_SEED={}", seed.wrapping_add(run));
        accepted += u64::from(try_input(target, &told, &input) == Verdict::Accepted);
    }
    println!("{name}: {} files, {runs} inputs from seed {seed}, {accepted} accepted", seeds.len());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_target_is_tested_and_has_its_fuzzer() {
            let names = [$(stringify!($name)),*];
            let manifest = fs::read_to_string(corpus("../Cargo.toml")).expect("the fuzzers' manifest");
            for target in TARGETS {
                assert!(names.contains(&target.name), "{} has no test", target.name);
                assert!(manifest.contains(&format!("name = \"{}\"\n", target.name)), "{} has no fuzzer", target.name);
                let body = fs::read_to_string(corpus("../fuzz_targets").join(format!("{}.rs", target.name)));
                assert!(body.expect("a fuzzer").contains(&format!("fuzz(\"{}\", input)", target.name)));
                for entry in fs::read_dir(corpus(target.name)).expect("a corpus").flatten() {
                    let bytes = entry.metadata().expect("a file").len();
                    assert!(bytes <= MAX_FILE_BYTES, "{} has {bytes} bytes", entry.path().display());
                }
            }
            assert_eq!(names.len(), TARGETS.len());
        }
    };
}

targets! {
    agent_message chat_template data_arrow data_convert data_csv data_demonstrations data_golden data_pairs data_parquet
    data_prompts data_zstd event job_file job_spec log_record model_config rank_message rows safetensors shard_index snapshot tokenizer
}

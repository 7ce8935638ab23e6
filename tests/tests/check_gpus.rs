//! The GPU check, run on the CPU.

use std::process::{Command, Output};

use foil_tests::foil_worker;
use serde_json::Value;

fn check(arguments: &[&str], environment: &[(&str, &str)]) -> (Output, String, String) {
    let mut command = Command::new(foil_worker().with_file_name("foil-check-gpus"));
    command.args(arguments).env("OMP_NUM_THREADS", "1").envs(environment.iter().copied());
    let output = command.output().expect("foil-check-gpus starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

const SMALL: [&str; 4] = ["--device", "cpu", "--mebibytes", "1"];

#[test]
fn every_number_of_ranks_has_its_row_and_exact_sums() {
    let (output, stdout, stderr) = check(&[&SMALL[..], &["--ranks", "3"]].concat(), &[]);
    assert!(output.status.success(), "{stderr}");
    let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    for ranks in ["1", "2", "3"] {
        let row = rows.iter().find(|row| row[0] == ranks).unwrap_or_else(|| panic!("no {ranks} in {stdout}"));
        // Four collectives in three kinds at four lengths.
        assert_eq!(row[1..3], ["48", "exact"], "{stdout}");
        assert_eq!(row.last() == Some(&"GB/s"), ranks != "1", "{stdout}");
    }
}

#[test]
fn a_short_job_runs_on_all_ranks() {
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/check.yaml");
    let (output, stdout, stderr) = check(&[&SMALL[..], &["--ranks", "2", "--job", job]].concat(), &[]);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("check.yaml on 2 ranks: succeeded in "), "{stdout}");
    let (output, _, stderr) = check(&[&SMALL[..], &["--ranks", "1", "--job", "nowhere.yaml"]].concat(), &[]);
    assert!(!output.status.success() && stderr.contains("nowhere.yaml on 1 ranks failed"), "{stderr}");
}

/// The steps of `--full` with their errors, and whether the whole check passed.
fn full(environment: &[(&str, &str)]) -> (bool, Vec<(String, bool)>, String) {
    let out = tempfile::tempdir().expect("a directory");
    let out = out.path().join("out");
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/check.yaml");
    let arguments = ["--ranks", "2", "--small", "--job", job, "--full", out.to_str().expect("UTF-8")];
    let (output, stdout, stderr) = check(&[&SMALL[..], &arguments].concat(), environment);
    let summary = std::fs::read(out.join("summary.json")).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
    let summary: Value = serde_json::from_slice(&summary).expect("JSON");
    assert_eq!(output.status.success(), summary["passed"] == true, "{stdout}{stderr}");
    let steps = summary["steps"].as_array().expect("steps").iter();
    let steps =
        steps.map(|step| (step["name"].as_str().expect("a name").to_owned(), step["error"].is_null()));
    (output.status.success(), steps.collect(), stdout)
}

#[test]
fn a_full_check_holds_operations_collectives_and_jobs_to_bounds() {
    let (passed, steps, stdout) = full(&[]);
    assert!(passed, "{stdout}");
    let names: Vec<_> = steps.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["facts", "kernels", "speed", "shortage", "collectives", "lost rank", "jobs"]);
    for check in [
        "gradient, bf16, 8/2 heads of 64, shared prompts",
        "gradient of a token of probability 0.998, bf16",
        "reward step of tiny model, share of the bf16 limit",
        "exact collectives of 2 ranks",
        "end of a rank whose peer was killed between all-reduces",
        "a killed rank changes no weights",
        "job succeeds: bf16, fsdp",
    ] {
        assert!(stdout.contains(check), "no {check} in {stdout}");
    }
    assert!(stdout.lines().last().unwrap().starts_with("passed in "), "{stdout}");
}

#[test]
fn a_full_check_goes_on_after_a_step_that_fails() {
    let marker = tempfile::tempdir().unwrap();
    let once = marker.path().join("fired");
    let environment =
        [("FOIL_FAILPOINT", "rank.start=kill@1"), ("FOIL_FAILPOINT_ONCE", once.to_str().unwrap())];
    let (passed, steps, stdout) = full(&environment);
    assert!(!passed && stdout.contains("rank 0 on cpu:0 ended with signal: 9"), "{stdout}");
    let failed: Vec<_> = steps.iter().filter(|(_, passed)| !passed).map(|(name, _)| name.as_str()).collect();
    assert_eq!((failed, steps.len()), (vec!["collectives"], 7), "{stdout}");
    assert!(stdout.lines().last().unwrap().starts_with("failed: collectives; logs are in "), "{stdout}");
}

#[test]
fn a_rank_that_dies_is_named_with_advice() {
    let marker = tempfile::tempdir().unwrap();
    let once = marker.path().join("fired");
    let environment =
        [("FOIL_FAILPOINT", "rank.start=kill@1"), ("FOIL_FAILPOINT_ONCE", once.to_str().unwrap())];
    let (output, stdout, stderr) = check(&[&SMALL[..], &["--ranks", "2"]].concat(), &environment);
    assert!(!output.status.success(), "{stdout}");
    assert!(stderr.contains("rank 0 on cpu:0 ended with signal: 9"), "{stderr}");
    assert!(stderr.contains("NCCL_DEBUG=INFO"), "{stderr}");
}

#[test]
fn without_a_gpu_one_line_says_so() {
    let (output, stdout, stderr) = check(&[], &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(!output.status.success() && stdout.is_empty(), "{stdout}");
    assert!(stderr.starts_with("foil-check-gpus: there is no GPU to check"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

//! The directory of a `foil run` contains its page and its report while the run is in progress and after it
//! was killed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use foil_tests::{Run, foil};

/// Runs a command on the run's directory and asserts success. Returns its standard output.
fn foil_on(run: &Run, arguments: &[&str]) -> String {
    let output =
        Command::new(foil()).args(arguments).current_dir(run.scratch()).output().expect("foil starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn metrics(run: &Run, folder: &str) -> String {
    let written = foil_on(run, &["report", "out", "--out", folder, "--format", "csv"]);
    std::fs::read_to_string(run.scratch().join(written)).expect("a report")
}

#[test]
fn a_run_in_progress_is_shown_by_its_directory() {
    let run = Run::letters();
    let mut first = run.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("foil starts");
    let mut lines = BufReader::new(first.stderr.take().expect("stderr is piped")).lines();
    let reached = lines.any(|line| line.is_ok_and(|line| line.contains("r01.reward.generate")));
    assert!(reached, "the run ended before its first round was seen");

    let page = foil_on(&run, &["ui", "out", "--no-browser"]);
    let (url, id) = page.split_once("/jobs/").expect("a page");
    assert!(url.starts_with("http://127.0.0.1:") && !id.is_empty(), "{page}");
    let job = foil_on(&run, &["get", id, "--coordinator", url, "-o", "name"]);
    assert_eq!(job, id);
    assert!(metrics(&run, "during").contains(&format!(",{id},letters,0,running,0,policy,gold_mean,")));
    let lock = run.out().join(".lock");
    assert_eq!(std::fs::metadata(&lock).expect("a file").permissions().mode() & 0o777, 0o600);

    first.kill().expect("the run can be killed");
    first.wait().expect("the run can be waited for");
    assert!(!std::fs::read_to_string(&lock).expect("a file").is_empty(), "it could take nothing back");
    // No process works on it.
    assert!(metrics(&run, "killed").contains(&format!(",{id},letters,0,queued,0,policy,gold_mean,")));
    run.finish();
    assert_eq!(std::fs::read_to_string(&lock).expect("a file"), "");
    assert!(metrics(&run, "after").contains(&format!(",{id},letters,0,succeeded,1,policy,gold_mean,")));
}

//! Mutated inputs are either accepted or rejected, whatever they contain. `foil-fuzz --runs 20000` is the
//! long form.

use std::process::Command;

#[test]
fn mutated_inputs_are_answered_without_panic_hang_or_bloat() {
    let findings = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_foil-fuzz"))
        .args(["--runs", "300", "--seed", "0", "--foil"])
        .arg(foil_tests::foil())
        .arg("--out")
        .arg(findings.path())
        .output()
        .expect("the fuzzer starts");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    // If all inputs are rejected or all are accepted, the run tests nothing.
    let count = |what: &str| -> u64 {
        let before = report.split(what).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    assert!(count(" accepted") > 30 && count(" refused") > 30, "{report}");
}

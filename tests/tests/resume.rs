//! A `foil run` that is killed and restarted reaches the same weights.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use foil_tests::Run;

/// Kills a run once it reports a phase on standard error, and starts it again.
fn weights_after_kill_in(phase: &str) -> (Vec<u8>, Vec<u8>) {
    let run = Run::letters().ranks(2);
    let mut first = run.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("foil starts");
    let mut lines = BufReader::new(first.stderr.take().expect("stderr is piped")).lines();
    let reached = lines.any(|line| line.is_ok_and(|line| line.contains(phase)));
    first.kill().expect("the run can be killed");
    let status = first.wait().expect("the run can be waited for");
    assert!(reached && !status.success(), "the run ended before {phase} was seen");
    run.finish().weights()
}

#[test]
fn a_killed_run_resumes_to_the_same_weights() {
    let baseline = Run::letters().ranks(2).finish().weights();
    for phase in ["r00.sft", "r01.reward.generate", "r01.policy.score"] {
        assert!(weights_after_kill_in(phase) == baseline, "killed at {phase}: the weights differ");
    }
}

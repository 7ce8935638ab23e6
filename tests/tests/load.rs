//! A small run of `scripts/load`: every agent stays connected, and a standby takes over with every job.

use std::process::Command;

#[test]
fn a_standby_takes_over_with_all_agents_jobs_and_watchers() {
    let output = Command::new(env!("CARGO_BIN_EXE_foil-load"))
        .args([
            "--agents",
            "40",
            "--jobs",
            "4,12",
            "--watchers",
            "8",
            "--samples",
            "4",
            "--sockets",
            "20,5",
            "--idle-seconds",
            "1",
        ])
        .output()
        .expect("foil-load starts");
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{errors}");
    assert!(report.contains("with 25 idle and slow sockets"), "{report}");
    assert!(report.contains("failover with 16 jobs: "), "{report}");
}

//! Runs a short job on all ranks with the installed programs.

#![expect(clippy::disallowed_methods, reason = "the job is timed")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use foil_worker::agent::DeviceKind;

/// Runs `file` on `ranks` ranks with the `foil` in this program's directory and returns a line for the table.
///
/// # Errors
/// A job that cannot start or fails, with its output.
pub(crate) fn run(file: &Path, device: DeviceKind, ranks: usize) -> Result<String> {
    let foil = std::env::current_exe().context("finding this program")?.with_file_name("foil");
    let out = tempfile::tempdir().context("a directory for the job")?;
    let started = Instant::now();
    let output = Command::new(&foil)
        .arg("run")
        .arg(file)
        .args(["--json", "--device", device.name(), "--ranks", &ranks.to_string(), "--out"])
        .arg(out.path().join("run"))
        .output()
        .with_context(|| {
            format!("{} cannot be started; build it with `cargo build --release`", foil.display())
        })?;
    let name = file.display();
    if output.status.success() {
        return Ok(format!(
            "job {name} on {ranks} ranks: succeeded in {:.1} s",
            started.elapsed().as_secs_f64()
        ));
    }
    let output_text = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!(
        "job {name} on {ranks} ranks failed ({}): {}; the collectives above work, so see the job's own error",
        output.status,
        output_text.trim()
    ))
}

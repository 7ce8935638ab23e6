//! A short job on all ranks, by the programs that users run.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use foil_worker::agent::DeviceKind;

/// Plays `file` on `ranks` ranks with the `foil` beside this program; gives a line for the table.
///
/// # Errors
/// A job that does not start or does not succeed, with what it said.
pub(crate) fn play(file: &Path, device: DeviceKind, ranks: usize) -> Result<String> {
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
    let said = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!(
        "job {name} on {ranks} ranks failed ({}): {}; the collectives above are in order, so look at the job's own words",
        output.status,
        said.trim()
    ))
}

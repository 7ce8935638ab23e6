//! The machine: driver, memory, disk and limits.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use foil_worker::agent::DeviceKind;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::finding::{Bound, Finding};
use super::{Check, process};

const GB: f64 = 1e9;

pub(super) fn find(check: &Check<'_>, limit: Duration, findings: &mut Vec<Finding>) -> Result<()> {
    findings.push(Finding::note("devices", check.devices.len() as f64, ""));
    if check.device == DeviceKind::Cuda {
        // The driver's version was checked when the devices were listed.
        for (name, arguments) in [("nvidia-smi", &["-q"][..]), ("topology", &["topo", "-m"])] {
            let mut command = Command::new("nvidia-smi");
            let text = check.out.join(format!("{name}.txt"));
            let ran = process::run(command.args(arguments), &text, &check.log(name), limit / 3);
            findings
                .push(Finding::may_hold(format!("nvidia-smi {} answers", arguments.join(" ")), ran.is_ok()));
        }
        let (locked, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        findings.push(Finding::may_hold(
            "memory may be locked without a limit (ulimit -l)",
            locked == RLIM_INFINITY,
        ));
        findings.push(Finding::may(
            "room in /dev/shm, for NCCL",
            free(Path::new("/dev/shm"))?,
            "GB",
            Bound::AtLeast(1.0),
        ));
    }
    let worker = std::env::current_exe().context("finding this program")?.with_file_name("foil-worker");
    let text = check.out.join("version.txt");
    let starts =
        process::run(Command::new(&worker).arg("--version"), &text, &check.log("foil-worker"), limit / 3);
    findings.push(Finding::must_hold("foil-worker starts with its libraries", starts.is_ok()));
    findings.push(Finding::note("room in the temporary directory", free(&std::env::temp_dir())?, "GB"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.push(Finding::note("cores of the host", cores as f64, ""));
    starts
}

/// Free space for this user.
fn free(path: &Path) -> Result<f64> {
    let found = statvfs(path).with_context(|| format!("asking for the room in {}", path.display()))?;
    Ok(found.blocks_available() as f64 * found.fragment_size() as f64 / GB)
}

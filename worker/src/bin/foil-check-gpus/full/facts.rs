//! The machine: driver, memory, disk and limits.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use foil_worker::agent::DeviceKind;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::Check;
use super::finding::{Bound, Finding};

const GB: f64 = 1e9;

pub(super) fn find(check: &Check<'_>, findings: &mut Vec<Finding>) -> Result<()> {
    findings.push(Finding::must("devices", check.devices.len() as f64, "", Bound::AtLeast(1.0)));
    if check.device == DeviceKind::Cuda {
        // The driver's version was checked when the devices were listed.
        for (name, arguments) in [("nvidia-smi", &["-q"][..]), ("topology", &["topo", "-m"])] {
            let output = Command::new("nvidia-smi").args(arguments).output().context("running nvidia-smi")?;
            fs::write(check.log(name), [output.stdout, output.stderr].concat())?;
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
    let version = Command::new(&worker).arg("--version").output();
    let starts = version.is_ok_and(|output| output.status.success());
    findings.push(Finding::must_hold("foil-worker starts with its libraries", starts));
    findings.push(Finding::note("room in the temporary directory", free(&std::env::temp_dir())?, "GB"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    findings.push(Finding::note("cores of the host", cores as f64, ""));
    Ok(())
}

/// Free space for this user.
fn free(path: &Path) -> Result<f64> {
    let found = statvfs(path).with_context(|| format!("asking for the room in {}", path.display()))?;
    Ok(found.blocks_available() as f64 * found.fragment_size() as f64 / GB)
}

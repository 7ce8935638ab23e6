//! The devices that an agent offers: CPU slots, or GPUs by UUID.

use std::fs;
use std::process::Command;

use foil_proto::v1;

/// Kind of device that ranks run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    Cpu,
    #[value(alias = "gpu")]
    Cuda,
}

impl DeviceKind {
    /// The name on the wire and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "cannot run nvidia-smi, which lists the GPUs: {0}; install the NVIDIA driver or use --device cpu"
    )]
    NoTool(std::io::Error),
    #[error("nvidia-smi failed: {0}; check the driver with `nvidia-smi`, or use --device cpu")]
    ToolFailed(String),
    #[error(
        "unexpected line of nvidia-smi, not `index, uuid, name, memory, driver version, MIG mode`: `{0}`; please report it"
    )]
    Unreadable(String),
    #[error(
        "the NVIDIA driver {found} is older than {needed}, which CUDA {major}.{minor} of this build's libtorch needs: update \
         the driver, or set TORCH_INDEX to PyTorch's index of wheels for CUDA 12 (cu126 or cu128), run scripts/setup and build \
         again"
    )]
    OldDriver { found: String, needed: u32, major: u32, minor: u32 },
    #[error(
        "{name} ({uuid}) is divided by MIG, whose instances ranks cannot use: turn MIG off (nvidia-smi -mig 0), or leave the \
         GPU out of CUDA_VISIBLE_DEVICES"
    )]
    Mig { name: String, uuid: String },
    #[error(
        "--ranks asks for {wanted} GPUs but {found} are visible; ask for fewer or check CUDA_VISIBLE_DEVICES"
    )]
    TooFew { wanted: usize, found: usize },
}

/// `ranks` CPU slots (default 1), or the first `ranks` of the GPUs visible to this process (default all).
pub fn list(kind: DeviceKind, ranks: Option<usize>) -> Result<Vec<v1::Device>, DeviceError> {
    match kind {
        DeviceKind::Cpu => Ok(cpu_slots(ranks.unwrap_or(1))),
        DeviceKind::Cuda => {
            let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            let mut gpus =
                parse_gpus(&query_gpus()?, visible.as_deref(), foil_torch::runtime::cuda_version())?;
            let wanted = ranks.unwrap_or(gpus.len().max(1));
            if gpus.len() < wanted {
                return Err(DeviceError::TooFew { wanted, found: gpus.len() });
            }
            gpus.truncate(wanted);
            Ok(gpus)
        }
    }
}

fn cpu_slots(slots: usize) -> Vec<v1::Device> {
    let memory_bytes = host_memory_bytes();
    (0..slots)
        .map(|slot| v1::Device {
            id: format!("cpu:{slot}"),
            kind: "cpu".to_owned(),
            name: "CPU".to_owned(),
            memory_bytes,
        })
        .collect()
}

/// The host's memory in bytes, or 0 if /proc does not report it.
fn host_memory_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn query_gpus() -> Result<String, DeviceError> {
    let output = Command::new("nvidia-smi")
        .args([
            "--query-gpu=index,uuid,name,memory.total,driver_version,mig.mode.current",
            "--format=csv,noheader,nounits",
        ])
        .output()
        .map_err(DeviceError::NoTool)?;
    if !output.status.success() {
        let message =
            String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
        return Err(DeviceError::ToolFailed(message.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses nvidia-smi's list and keeps the GPUs that CUDA_VISIBLE_DEVICES names, by index or UUID, in
/// nvidia-smi's order. `cuda` is the CUDA version of libtorch.
fn parse_gpus(
    listing: &str,
    visible: Option<&str>,
    cuda: Option<(u32, u32)>,
) -> Result<Vec<v1::Device>, DeviceError> {
    let mut gpus = Vec::new();
    for line in listing.lines().filter(|line| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [index, uuid, name, mebibytes, driver, mig] = fields[..] else {
            return Err(DeviceError::Unreadable(line.to_owned()));
        };
        let is_visible =
            visible.is_none_or(|list| list.split(',').map(str::trim).any(|one| one == index || one == uuid));
        if is_visible {
            check_driver(driver, cuda)?;
            if mig == "Enabled" {
                return Err(DeviceError::Mig { name: name.to_owned(), uuid: uuid.to_owned() });
            }
            gpus.push(v1::Device {
                id: uuid.to_owned(),
                kind: "cuda".to_owned(),
                name: name.to_owned(),
                // Some boards report "[N/A]".
                memory_bytes: mebibytes.parse::<u64>().unwrap_or(0) * 1024 * 1024,
            });
        }
    }
    Ok(gpus)
}

/// The oldest driver branch that supports a CUDA major version, according to NVIDIA's compatibility table.
fn oldest_driver(major: u32) -> u32 {
    match major {
        0..=11 => 450,
        12 => 525,
        _ => 580,
    }
}

/// Rejects a driver that is older than libtorch's CUDA: libtorch would see no GPU and not say why.
fn check_driver(driver: &str, cuda: Option<(u32, u32)>) -> Result<(), DeviceError> {
    let Some((major, minor)) = cuda else { return Ok(()) };
    let needed = oldest_driver(major);
    let branch = driver.split('.').next().and_then(|branch| branch.parse::<u32>().ok());
    match branch {
        Some(branch) if branch < needed => {
            Err(DeviceError::OldDriver { found: driver.to_owned(), needed, major, minor })
        }
        // Leaves versions in another format to libtorch.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_slots_are_numbered() {
        let slots = list(DeviceKind::Cpu, Some(3)).unwrap();
        assert_eq!(slots.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["cpu:0", "cpu:1", "cpu:2"]);
        assert!(slots[0].memory_bytes > 0);
    }

    #[test]
    fn gpus_are_named_by_uuid_and_filtered_by_visible_devices() {
        let listing = "0, GPU-aa, NVIDIA H200, 143771, 580.95.05, Disabled\n1, GPU-bb, NVIDIA H200, 143771, 580.95.05, [N/A]\n";
        let parse = |visible| parse_gpus(listing, visible, Some((13, 0)));
        let all = parse(None).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].id.as_str(), all[0].memory_bytes), ("GPU-aa", 143_771 * 1024 * 1024));
        assert_eq!(parse(Some("1")).unwrap()[0].id, "GPU-bb");
        assert_eq!(parse(Some("GPU-aa")).unwrap()[0].id, "GPU-aa");
        assert!(parse(Some("")).unwrap().is_empty());
        let unreadable = parse_gpus("No devices were found", None, None);
        assert!(matches!(unreadable, Err(DeviceError::Unreadable(_))));
    }

    #[test]
    fn an_old_driver_and_divided_gpus_are_refused_with_advice() {
        let listing = "0, GPU-aa, NVIDIA A100, 81920, 570.86.15, Enabled\n1, GPU-bb, NVIDIA A100, 81920, 570.86.15, Disabled\n";
        let message = |visible, cuda| parse_gpus(listing, Some(visible), cuda).unwrap_err().to_string();
        let old = message("1", Some((13, 0)));
        assert!(old.starts_with("the NVIDIA driver 570.86.15 is older than 580, which CUDA 13.0"), "{old}");
        assert!(old.contains("TORCH_INDEX"), "{old}");
        let mig = message("0", Some((12, 8)));
        assert!(mig.starts_with("NVIDIA A100 (GPU-aa) is divided by MIG"), "{mig}");
        for cuda in [Some((12, 8)), None] {
            assert_eq!(parse_gpus(listing, Some("1"), cuda).unwrap().len(), 1);
        }
    }
}

//! Keeps a rank on the CPUs next to its GPU, since copies from the memory of another socket take longer.

use std::fs;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Binds this thread, and the threads that it starts, to the CPUs next to the GPU with the given UUID. Does
/// nothing if the system does not report these CPUs, or if fewer than `threads` of them may be used.
pub(super) fn bind_near(uuid: &str, threads: usize) {
    let Some(near) = cpus_near(Path::new("/"), uuid) else { return };
    let this = Pid::from_raw(0);
    let bound = sched_getaffinity(this).and_then(|allowed| match both(&near, &allowed)? {
        (set, count) if count >= threads => sched_setaffinity(this, &set).map(|()| count),
        _ => Ok(0),
    });
    match bound {
        Ok(0) => tracing::debug!(uuid, ?near, "too few of the GPU's CPUs may be used"),
        Ok(count) => tracing::debug!(uuid, count, "bound to the GPU's CPUs"),
        Err(error) => tracing::warn!(%error, uuid, "cannot bind to the GPU's CPUs"),
    }
}

/// The CPUs in both sets, and their number.
fn both(near: &[usize], allowed: &CpuSet) -> nix::Result<(CpuSet, usize)> {
    let (mut set, mut count) = (CpuSet::new(), 0);
    for &cpu in near.iter().filter(|cpu| allowed.is_set(**cpu).unwrap_or(false)) {
        set.set(cpu)?;
        count += 1;
    }
    Ok((set, count))
}

/// The CPUs next to a GPU, as reported by the driver and the PCI bus below `root`.
fn cpus_near(root: &Path, uuid: &str) -> Option<Vec<usize>> {
    let is_it = |text: &str| {
        let of = text.lines().find_map(|line| line.strip_prefix("GPU UUID:"));
        of.is_some_and(|of| of.trim() == uuid)
    };
    let gpu = fs::read_dir(root.join("proc/driver/nvidia/gpus"))
        .ok()?
        .flatten()
        .find(|gpu| fs::read_to_string(gpu.path().join("information")).is_ok_and(|text| is_it(&text)))?;
    let list = root.join("sys/bus/pci/devices").join(gpu.file_name()).join("local_cpulist");
    parse(fs::read_to_string(list).ok()?.trim()).filter(|cpus| !cpus.is_empty())
}

/// Parses a list of CPUs in the kernel's format: `0-3,8`.
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        cpus.extend(first..=last.min(CpuSet::count()));
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_of_a_gpu_are_those_that_its_bus_tells() {
        let root = tempfile::tempdir().unwrap();
        for (bus, uuid, cpus) in [("0000:3b:00.0", "GPU-aa", "0-3,8-9"), ("0000:af:00.0", "GPU-bb", "4-7\n")]
        {
            let gpu = root.path().join("proc/driver/nvidia/gpus").join(bus);
            fs::create_dir_all(&gpu).unwrap();
            fs::write(gpu.join("information"), format!("Model: \t NVIDIA H100\nGPU UUID: \t {uuid}\n"))
                .unwrap();
            let device = root.path().join("sys/bus/pci/devices").join(bus);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("local_cpulist"), cpus).unwrap();
        }
        assert_eq!(cpus_near(root.path(), "GPU-aa"), Some(vec![0, 1, 2, 3, 8, 9]));
        assert_eq!(cpus_near(root.path(), "GPU-bb"), Some(vec![4, 5, 6, 7]));
        assert_eq!(cpus_near(root.path(), "GPU-cc"), None);
        assert_eq!(cpus_near(Path::new("/nowhere"), "GPU-aa"), None);
        for wrong in ["", "x", "1-", "3,", "-"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        assert!(parse("0-18446744073709551615").unwrap().len() <= CpuSet::count() + 1);
    }

    #[test]
    fn only_cpus_that_may_be_used_count() {
        let mut allowed = CpuSet::new();
        [0, 2, 5].iter().for_each(|cpu| allowed.set(*cpu).unwrap());
        let (set, count) = both(&[1, 2, 3, 5], &allowed).unwrap();
        assert_eq!(count, 2);
        assert!([2, 5].iter().all(|cpu| set.is_set(*cpu).unwrap()) && !set.is_set(0).unwrap());
    }
}

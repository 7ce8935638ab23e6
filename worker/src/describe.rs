//! Description of this program's build and platform, for `foil doctor`.

use std::fs;
use std::path::{Path, PathBuf};

use foil_common::version::{BUILD, VERSION};
use serde::Serialize;
use tch::Cuda;

/// The program's version, its libraries, and the GPUs that libtorch sees.
#[derive(Debug, Serialize)]
pub struct Description {
    version: &'static str,
    build: &'static str,
    libtorch: Option<Library>,
    nccl: Option<Library>,
    gpus: i64,
}

/// A library that this process has loaded.
#[derive(Debug, Serialize)]
pub struct Library {
    path: PathBuf,
    /// Version according to the library's package metadata.
    version: Option<String>,
}

/// Describes this process.
pub fn describe() -> Description {
    // Loads the CUDA libraries that libtorch needs.
    let gpus = Cuda::device_count();
    let loaded = loaded_libraries();
    let named = |name: &str| {
        let is_named =
            |path: &&PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
        loaded.iter().find(is_named).cloned()
    };
    let torch = |path: PathBuf| Library { version: torch_version(&path), path };
    let nccl = |path: PathBuf| Library { version: nccl_version(&path), path };
    Description {
        version: VERSION,
        build: BUILD,
        libtorch: named("libtorch_cpu.so").map(torch),
        nccl: named("libnccl.so").map(nccl),
        gpus,
    }
}

/// The files of shared libraries that are mapped into this process.
fn loaded_libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> =
        maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..]))).collect();
    paths.dedup();
    paths
}

/// The version of the libtorch at `lib/libtorch_cpu.so`, from `build-version` (in the zip) or `version.py`
/// (in the wheel).
fn torch_version(library: &Path) -> Option<String> {
    let root = library.parent()?.parent()?;
    if let Ok(version) = fs::read_to_string(root.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let python = fs::read_to_string(root.join("version.py")).ok()?;
    let line = python.lines().find(|line| line.starts_with("__version__"))?;
    line.split(['\'', '"']).nth(1).map(str::to_owned)
}

/// The version of the NCCL at `nvidia/nccl/lib/libnccl.so.2`, from the name of its wheel's metadata
/// directory.
fn nccl_version(library: &Path) -> Option<String> {
    let packages = library.ancestors().nth(4)?;
    let entries = fs::read_dir(packages).ok()?.flatten();
    let version = |name: String| {
        let rest = name.strip_prefix("nvidia_nccl_cu")?.strip_suffix(".dist-info")?;
        rest.split_once('-').map(|(_, version)| version.to_owned())
    };
    entries.filter_map(|entry| version(entry.file_name().into_string().ok()?)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_of_this_process_is_found_with_its_version() {
        let description = describe();
        let libtorch = description.libtorch.expect("libtorch is loaded");
        assert!(libtorch.path.exists(), "{libtorch:?}");
        assert!(libtorch.version.as_ref().is_some_and(|version| version.starts_with("2.")), "{libtorch:?}");
    }

    #[test]
    fn versions_are_read_beside_the_libraries() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("torch/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(dir.path().join("torch/version.py"), "__version__ = '2.11.0+cu128'\ndebug = False\n")
            .unwrap();
        assert_eq!(torch_version(&lib.join("libtorch_cpu.so")).unwrap(), "2.11.0+cu128");
        fs::write(dir.path().join("torch/build-version"), "2.11.0\n").unwrap();
        assert_eq!(torch_version(&lib.join("libtorch_cpu.so")).unwrap(), "2.11.0");
        fs::create_dir_all(dir.path().join("nvidia_nccl_cu12-2.27.5.dist-info")).unwrap();
        assert_eq!(nccl_version(&dir.path().join("nvidia/nccl/lib/libnccl.so.2")).unwrap(), "2.27.5");
        assert_eq!(nccl_version(Path::new("/usr/lib/libnccl.so.2")), None);
    }
}

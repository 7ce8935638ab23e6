//! Paths of the programs under test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

/// The directory of the programs. They are built once per test process with its profile, so that no stale
/// program is tested.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = std::env::current_exe().expect("a program knows its own path");
    let beside = program.parent().expect("programs lie in a directory");
    // target/<profile>/deps/<test>, or target/<profile>/<program> for a binary of this package.
    if !beside.ends_with("deps") {
        return beside.to_owned();
    }
    let directory = beside.parent().expect("tests lie in target/<profile>/deps");
    let mut build = Command::new(env!("CARGO"));
    // Variables that `cargo test` sets would make build scripts rebuild everything.
    let of_package = |name: &str| {
        name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars().filter(|(name, _)| of_package(name)) {
        build.env_remove(name);
    }
    // The whole workspace: a narrower selection would unify features differently and rebuild dependencies.
    build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
    ]);
    if directory.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo starts").success(), "the binaries do not build");
    directory.to_owned()
});

/// The coordinator and client.
pub fn foil() -> PathBuf {
    DIRECTORY.join("foil")
}

/// The agent.
pub fn foil_worker() -> PathBuf {
    DIRECTORY.join("foil-worker")
}

/// The folder of the programs.
pub(crate) fn directory() -> &'static std::path::Path {
    &DIRECTORY
}

//! Packages unpacked in another folder can run a job, with libtorch in that folder or named by the
//! environment.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use foil_tests::{SMALL, letters_job};

/// A command with an empty environment except PATH, HOME and the one variable without which cargo would
/// consider this build different from that of the tests and build the workspace again.
fn bare(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env_clear();
    for name in ["PATH", "HOME", "CARGO_INCREMENTAL"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The libtorch that the loader finds for a program.
fn libtorch_of(worker: &Path, library_path: Option<&Path>) -> String {
    let mut ldd = bare("ldd");
    ldd.arg(worker).envs(library_path.map(|path| ("LD_LIBRARY_PATH", path)));
    let listed = told(&ldd.output().expect("ldd starts"));
    let line = listed.lines().find(|line| line.contains("libtorch_cpu.so")).expect("it needs libtorch");
    line.split("=> ").nth(1).expect("an answer").to_owned()
}

#[test]
fn packages_run_in_another_folder() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout");
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let packages = scratch.path().join("packages");
    let made =
        bare(checkout.join("scripts/package")).args(["--profile", "dev", "--output"]).arg(&packages).output();
    let made = made.expect("bash starts");
    assert!(made.status.success(), "{}", told(&made));

    let mut archives = 0;
    for file in fs::read_dir(&packages).expect("packages").flatten() {
        if file.path().to_string_lossy().ends_with(".tar.gz") {
            archives += 1;
            let unpacked = bare("tar").arg("xf").arg(file.path()).current_dir(scratch.path()).status();
            assert!(unpacked.expect("tar starts").success());
        }
    }
    assert_eq!(archives, 2);
    let folder = scratch.path().join(concat!("foil-", env!("CARGO_PKG_VERSION")));
    let (foil, worker) = (folder.join("bin/foil"), folder.join("bin/foil-worker"));

    // The build folder must not be used: on another machine it may belong to anyone.
    assert!(libtorch_of(&worker, None).starts_with("not found"));
    let libtorch = checkout.join(".venv/site-packages/torch/lib").canonicalize().expect("libtorch");
    let library_path = libtorch_of(&worker, Some(&libtorch));
    assert!(library_path.starts_with(&*libtorch.to_string_lossy()), "{library_path}");
    symlink(&libtorch, folder.join("lib")).expect("a link");
    let beside = libtorch_of(&worker, None);
    assert!(beside.starts_with(&*folder.to_string_lossy()), "{beside}");

    let mut run = bare(&foil);
    run.arg("run").arg(letters_job()).args(SMALL.iter().flat_map(|assignment| ["--set", assignment]));
    run.args(["--json", "--out", "out"]).current_dir(scratch.path());
    let ended = run.output().expect("foil starts");
    assert!(ended.status.success(), "{}", told(&ended));
    assert!(scratch.path().join("out/policy/model.safetensors").is_file());
}

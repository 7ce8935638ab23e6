//! Checks of the agent's program, its libtorch, and GPUs.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use foil_common::version;
use serde::Deserialize;
use tokio::process::Command;

use super::finding::Finding;
use crate::client_args::Device;

/// Timeout of a program. Loading libtorch with CUDA from a slow disk takes a while.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout of `foil-check-gpus`, which has separate limits for each group of ranks.
const GPUS_TIMEOUT: Duration = Duration::from_secs(1800);
const PROGRAM: &str = "foil-worker";

/// Output of `foil-worker describe`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Described {
    version: String,
    build: String,
    libtorch: Option<Library>,
    nccl: Option<Library>,
    /// GPUs that libtorch sees.
    gpus: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Library {
    path: String,
    version: Option<String>,
}

pub(super) async fn check(named: Option<&Path>, device: Option<Device>, checks_gpus: bool) -> Vec<Finding> {
    let wants_gpus = device == Some(Device::Cuda) || checks_gpus;
    let Some(program) = find(named) else {
        return vec![absent(named, device.is_some() || checks_gpus)];
    };
    let described = run(Command::new(&program).arg("describe"), TIMEOUT).await;
    let (mut findings, described) = match described.and_then(|output| read(&output)) {
        Ok(described) => (own_findings(&program, &described), Some(described)),
        Err(problem) => (vec![broken(&program, &problem)], None),
    };
    let listed = list_gpus().await;
    findings.extend(judge_gpus(listed.as_deref(), described.as_ref(), wants_gpus));
    if checks_gpus {
        let checker = program.with_file_name("foil-check-gpus");
        let checked =
            run(Command::new(&checker).args(["--device", "cuda", "--mebibytes", "64"]), GPUS_TIMEOUT).await;
        findings.push(judge_collectives(checked));
    }
    findings
}

/// The named program, or the one in this program's folder or in PATH.
fn find(named: Option<&Path>) -> Option<PathBuf> {
    if let Some(named) = named {
        return named.exists().then(|| named.to_owned());
    }
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join(PROGRAM));
    beside.into_iter().chain(in_path).find(|program| program.is_file())
}

fn absent(named: Option<&Path>, is_needed: bool) -> Finding {
    let place =
        named.map_or_else(|| "beside foil or in PATH".to_owned(), |path| format!("at {}", path.display()));
    let message = format!("there is no {PROGRAM} {place}");
    match named.is_some() || is_needed {
        true => Finding::fail("worker", message, "install it, or name it with --worker"),
        false => Finding::skip("worker", format!("{message}; hosts that run ranks need it")),
    }
}

/// Runs a program to its end; the error says why that failed.
async fn run(command: &mut Command, timeout: Duration) -> Result<Output, String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(timeout, output).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not end within {} s", timeout.as_secs())),
    }
}

fn read(output: &Output) -> Result<Described, String> {
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let last = told.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
        return Err(format!("it ended with {}: {last}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("it printed something else: {error}"))
}

fn broken(program: &Path, problem: &str) -> Finding {
    let message = format!("{} does not run: {problem}", program.display());
    let advice = match problem.contains("shared libraries") || problem.contains("libtorch") {
        true => "install libtorch (scripts/setup), or set LD_LIBRARY_PATH to its lib folder",
        false => "install it again, in the version of this program",
    };
    Finding::fail("worker", message, advice)
}

fn own_findings(program: &Path, described: &Described) -> Vec<Finding> {
    let mut findings = vec![match version::skew(&described.version, &described.build) {
        None => Finding::ok("worker", format!("{} runs, version {}", program.display(), described.version)),
        Some(skew) => Finding::warn(
            "worker",
            format!("{}: {skew}", program.display()),
            "install one version: a coordinator refuses agents of another",
        ),
    }];
    findings.push(match &described.libtorch {
        Some(library) => {
            let version = library.version.as_deref().unwrap_or("of an unknown version");
            Finding::ok("libtorch", format!("{version}, {}", library.path))
        }
        None => Finding::fail("libtorch", "it is not loaded", "install it again (scripts/setup)"),
    });
    findings
}

/// The names of the GPUs that the driver lists; `None` without a driver.
async fn list_gpus() -> Option<Vec<String>> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let output = run(&mut command, TIMEOUT).await.ok()?;
    let listed = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| listed.lines().map(str::to_owned).collect())
}

fn judge_gpus(listed: Option<&[String]>, described: Option<&Described>, are_wanted: bool) -> Vec<Finding> {
    let driver = "install the NVIDIA driver and look at `nvidia-smi`; in a container, give it the GPUs";
    let listed = match listed {
        None if are_wanted => {
            return vec![Finding::fail("gpu", "there is no NVIDIA driver: nvidia-smi fails", driver)];
        }
        None => return vec![Finding::ok("gpu", "no NVIDIA driver: ranks compute on the CPU")],
        Some([]) if are_wanted => return vec![Finding::fail("gpu", "the driver lists no GPU", driver)],
        Some(listed) => listed,
    };
    let mut findings =
        vec![Finding::ok("gpu", format!("the driver lists {}: {}", listed.len(), listed.join("; ")))];
    let Some(described) = described else { return findings };
    if usize::try_from(described.gpus).unwrap_or(0) < listed.len() {
        let message = format!("libtorch sees {} of {} GPUs", described.gpus, listed.len());
        let advice = "check CUDA_VISIBLE_DEVICES, and that libtorch is one for CUDA which the driver is new enough for";
        let finding = if are_wanted { Finding::fail } else { Finding::warn };
        findings.push(finding("gpu", message, advice));
    }
    findings.push(match &described.nccl {
        Some(library) => {
            let version = library.version.as_deref().unwrap_or("of an unknown version");
            Finding::ok("nccl", format!("{version}, {}; `foil doctor --gpus` tries it", library.path))
        }
        None if are_wanted => {
            Finding::fail("nccl", "it is not loaded", "install a libtorch for CUDA, which brings NCCL")
        }
        None => Finding::skip("nccl", "libtorch loads none"),
    });
    findings
}

fn judge_collectives(checked: Result<Output, String>) -> Finding {
    let advice = "see its message; NCCL_DEBUG=INFO tells more";
    match checked {
        Ok(output) if output.status.success() => {
            let table = String::from_utf8_lossy(&output.stdout).into_owned();
            Finding::ok(
                "nccl",
                format!("all sums are exact: {}", table.lines().last().unwrap_or_default().trim()),
            )
        }
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Finding::fail("nccl", told, advice)
        }
        Err(problem) => Finding::fail("nccl", format!("foil-check-gpus does not run: {problem}"), advice),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::finding::Level;
    use super::*;

    fn described(gpus: i64) -> Described {
        let library =
            |name: &str| Some(Library { path: format!("/lib/{name}.so"), version: Some("2.11.0".into()) });
        Described {
            version: version::VERSION.into(),
            build: version::BUILD.into(),
            libtorch: library("libtorch"),
            nccl: library("libnccl"),
            gpus,
        }
    }

    /// The findings about a worker that is this shell script.
    async fn of_script(script: &str) -> Vec<Finding> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("foil-worker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        check(Some(&program), None, false).await
    }

    #[tokio::test]
    async fn a_worker_that_does_not_run_fails_with_advice() {
        let library = "echo 'error while loading shared libraries: libtorch_cpu.so' >&2; exit 127";
        let found = of_script(library).await;
        assert!(
            found[0].level == Level::Fail && found[0].advice.as_ref().unwrap().contains("libtorch"),
            "{found:?}"
        );
        let found = of_script("echo words").await;
        assert!(found[0].level == Level::Fail && found[0].message.contains("something else"), "{found:?}");
        let absent = check(Some(Path::new("/nowhere/foil-worker")), None, false).await;
        assert!(absent[0].level == Level::Fail && absent[0].message.contains("/nowhere"), "{absent:?}");
    }

    #[tokio::test]
    async fn versions_and_libraries_are_told() {
        let json = format!(
            r#"{{"version":"{}","build":"{}","libtorch":{{"path":"/t/libtorch.so","version":"2.11.0"}},"nccl":null,"gpus":0}}"#,
            version::VERSION,
            version::BUILD
        );
        let found = of_script(&format!("echo '{json}'")).await;
        assert!(
            found[0].level == Level::Ok && found[1].message.contains("2.11.0, /t/libtorch.so"),
            "{found:?}"
        );
        let other = Described { version: "0.0.1".into(), libtorch: None, ..described(0) };
        let levels: Vec<Level> =
            own_findings(Path::new("w"), &other).iter().map(|found| found.level).collect();
        assert_eq!(levels, [Level::Warn, Level::Fail]);
    }

    #[test]
    fn gpus_fail_only_where_they_are_wanted() {
        let two = ["H200, 570".to_owned(), "H200, 570".to_owned()];
        let worst = |listed: Option<&[String]>, described: Option<&Described>, wanted| {
            judge_gpus(listed, described, wanted).into_iter().map(|found| found.level).max()
        };
        assert_eq!(worst(None, None, false), Some(Level::Ok));
        assert_eq!(worst(None, None, true), Some(Level::Fail));
        assert_eq!(worst(Some(&[]), None, true), Some(Level::Fail));
        assert_eq!(worst(Some(&two), Some(&described(2)), true), Some(Level::Ok));
        assert_eq!(worst(Some(&two), Some(&described(0)), true), Some(Level::Fail));
        assert_eq!(worst(Some(&two), Some(&described(1)), false), Some(Level::Warn));
        let without_nccl = Described { nccl: None, ..described(2) };
        assert_eq!(worst(Some(&two), Some(&without_nccl), true), Some(Level::Fail));
    }

    #[test]
    fn a_wrong_sum_fails() {
        assert_eq!(judge_collectives(Err("no such file".into())).level, Level::Fail);
    }
}

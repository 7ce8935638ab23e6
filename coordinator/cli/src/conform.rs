//! `foil conform`: checks a result directory's files, and what Foil and transformers compute from them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use foil_common::conform::{Finding, Kind, Measured, Outcome, Probe, check, compare, files, peer};
use serde_json::json;

use super::args::ConformArgs;
use super::stdout;

/// Nothing failed, but something could not be checked.
const INCOMPLETE: u8 = 3;
/// The Python that `scripts/fixtures/setup-peers` installs.
const FIXTURES_PYTHON: &str = ".venv-peers/bin/python";

/// Checks a directory and prints the findings. The status is 0 if all checks passed, 1 if any failed, and 3
/// if none failed but some could not run.
pub(crate) async fn conform(args: &ConformArgs) -> Result<ExitCode> {
    let (dir, python) = (args.dir.clone(), args.python.clone());
    let work = move || examine(&dir, python);
    let (kind, findings) = tokio::task::spawn_blocking(work).await.context("the checks were aborted")?;
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    let (passed, failed) = (count(Outcome::Passed), count(Outcome::Failed));
    let unchecked = count(Outcome::Unchecked);
    if args.json {
        let report = json!({
            "directory": args.dir, "kind": kind, "passed": passed, "failed": failed, "unchecked": unchecked,
            "findings": findings,
        });
        stdout::json(&report)?;
    } else {
        for line in table(&findings) {
            stdout::line(&line)?;
        }
        stdout::line(&format!("{passed} passed, {failed} failed, {unchecked} not checked"))?;
    }
    Ok(match (failed, unchecked) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(INCOMPLETE),
        _ => ExitCode::FAILURE,
    })
}

fn table(findings: &[Finding]) -> Vec<String> {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let outcome = match finding.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Unchecked => "not checked",
        };
        format!("{:<width$}  {outcome:<11}  {}", finding.check, finding.detail)
    };
    findings.iter().map(line).collect()
}

fn examine(dir: &Path, python: Option<PathBuf>) -> (Kind, Vec<Finding>) {
    let files::Inspected { kind, mut findings, probe } = files::inspect(dir);
    let Some(probe) = probe else {
        let why = "the files above must be repaired first";
        findings.push(Finding::unchecked(check::FORWARD, why));
        findings.extend(compare::unchecked(kind, why));
        return (kind, findings);
    };
    let own = measure(&probe).unwrap_or_else(|error| Measured {
        findings: vec![Finding::unchecked(check::FORWARD, format!("{error:#}"))],
        ..Measured::default()
    });
    findings.extend(own.findings.iter().cloned());
    findings.extend(against_transformers(&probe, &own, python));
    (kind, findings)
}

/// Foil's results, computed by `foil-worker`, which has libtorch.
fn measure(probe: &Probe) -> Result<Measured> {
    let foil = std::env::current_exe().context("this program cannot find itself")?;
    let worker = foil.with_file_name("foil-worker");
    anyhow::ensure!(worker.is_file(), "there is no foil-worker in the directory of {}", foil.display());
    let mut child = Command::new(worker)
        .arg("conform")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("foil-worker does not start")?;
    let mut input = child.stdin.take().context("foil-worker takes no input")?;
    // The program reads all its input before it writes.
    input.write_all(&serde_json::to_vec(probe)?).context("foil-worker ended early")?;
    drop(input);
    let output = child.wait_with_output().context("foil-worker cannot be waited for")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!(
            "foil-worker ended with {}: {}",
            output.status,
            said.lines().last().unwrap_or_default()
        );
    }
    serde_json::from_slice(&output.stdout).context("foil-worker's output cannot be read")
}

fn against_transformers(probe: &Probe, own: &Measured, python: Option<PathBuf>) -> Vec<Finding> {
    let fixtures = || Some(PathBuf::from(FIXTURES_PYTHON)).filter(|python| python.is_file());
    let Some(python) = python.or_else(fixtures) else {
        return compare::unchecked(probe.kind, "no Python with transformers; name one with --python");
    };
    match peer::ask(&python, &[(probe, own)]) {
        Err(error) => compare::unchecked(probe.kind, &error.to_string()),
        Ok(answers) => match answers.first() {
            Some(answer) => compare::findings(probe, own, answer),
            None => compare::unchecked(probe.kind, "transformers gave no answer"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_model_fails_by_name_and_nothing_passes() {
        let dir = tempfile::tempdir().unwrap();
        let (_, findings) = examine(dir.path(), None);
        assert!(findings.iter().all(|finding| finding.outcome != Outcome::Passed), "{findings:?}");
        assert_eq!((findings[0].check.as_str(), findings[0].outcome), (check::FILES, Outcome::Failed));
        let lines = table(&findings);
        assert!(lines[0].starts_with("files ") && lines[0].contains("FAILED"), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with(check::LOGITS) && line.contains("not checked")));
    }
}

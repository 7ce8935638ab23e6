//! Runs of `foil run` on a shrunken letters job.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::outcome::Outcome;
use crate::{binaries, outcome};

/// Settings that shrink the letters job to seconds.
pub const SMALL: [&str; 11] = [
    "rounds=1",
    "data.generator.sft=600",
    "data.generator.golden=96",
    "data.generator.prompts=96",
    "data.generator.evaluation=64",
    "data.gold_preferences.pairs=128",
    "data.gold_preferences.evaluation_pairs=64",
    "sft_step.epochs=2",
    "reward_step.epochs=1",
    "policy_step.epochs=1",
    "evaluation.kl_prompts=16",
];

/// The letters job file.
pub fn letters_job() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/letters.yaml")
}

/// A run in a temporary directory.
pub struct Run {
    directory: tempfile::TempDir,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
}

impl Run {
    /// Creates a run of the shrunken letters job.
    pub fn letters() -> Self {
        Self::job(letters_job()).set_all(&SMALL)
    }

    pub fn job(file: impl Into<OsString>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, arguments: vec![file.into()], environment: Vec::new() }
    }

    pub fn set(mut self, assignment: &str) -> Self {
        self.arguments.extend(["--set".into(), assignment.into()]);
        self
    }

    pub fn set_all(self, assignments: &[&str]) -> Self {
        assignments.iter().fold(self, |run, assignment| run.set(assignment))
    }

    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn ranks(self, ranks: u32) -> Self {
        self.arg("--ranks").arg(ranks.to_string())
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The output directory, with the logs and the store.
    pub fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }

    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(binaries::foil());
        command.arg("run").args(&self.arguments).arg("--json").arg("--out").arg(self.out());
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command.env("OMP_NUM_THREADS", "1").envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    pub fn output(&self) -> Output {
        self.command().output().expect("foil starts")
    }

    /// Runs to the end and asserts success. A failure prints the logs.
    pub fn finish(&self) -> Outcome {
        let output = self.output();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}\n{stdout}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
        Outcome::parse(&stdout)
    }

    /// All logs in full.
    pub fn full_logs(&self) -> String {
        let files = outcome::files(&self.out().join("logs"));
        files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default()).collect()
    }

    /// Runs to the end and asserts failure. Returns the `--json` output and standard error.
    pub fn fail(&self) -> (Outcome, String) {
        let output = self.output();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}\n{}", self.logs());
        let outcome = Outcome::parse(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(outcome.json["state"], "failed", "{}", outcome.json);
        (outcome, told)
    }

    /// The last lines of all logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for file in outcome::files(&self.out().join("logs")) {
            let log = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            text.push_str(&format!("--- {}\n{}\n", file.display(), tail.join("\n")));
        }
        text
    }
}

//! The outcome of a run: its `--json` output and its weights.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A metric and its standard error.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    pub value: f64,
    pub se: f64,
}

impl Estimate {
    /// Whether it is significantly above `bound`: by more than three standard errors.
    pub fn exceeds(self, bound: f64) -> bool {
        self.value - bound > 3.0 * self.se
    }

    /// Whether it is significantly below `bound`.
    pub fn is_under(self, bound: f64) -> bool {
        bound - self.value > 3.0 * self.se
    }
}

/// The metrics of one round, as `foil run --json` prints them.
#[derive(Clone, Debug)]
pub struct Round(Value);

impl Round {
    /// A metric, if the round has it.
    pub fn get(&self, side: &str, name: &str) -> Option<f64> {
        self.0[side][name].as_f64()
    }

    /// A metric that the round must have.
    pub fn value(&self, side: &str, name: &str) -> f64 {
        self.get(side, name).unwrap_or_else(|| panic!("{side}.{name} is missing in {}", self.0[side]))
    }

    /// A metric with its standard error, for example `estimate("policy", "gold_mean")`.
    pub fn estimate(&self, side: &str, name: &str) -> Estimate {
        let figures = &self.0[side];
        let number = |key: &str| figures[key].as_f64();
        Estimate {
            value: number(name).unwrap_or_else(|| panic!("{side}.{name} is missing in {figures}")),
            se: number(&format!("{name}_se")).unwrap_or(0.0),
        }
    }
}

/// The final JSON object of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub json: Value,
    pub rounds: Vec<Round>,
}

impl Outcome {
    pub(crate) fn parse(stdout: &str) -> Self {
        let json: Value = serde_json::from_str(stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON object ({e}): {stdout}"));
        let rounds = json["rounds"].as_array().map(|rounds| rounds.iter().cloned().map(Round).collect());
        Self { rounds: rounds.unwrap_or_default(), json }
    }

    pub fn start_gold(&self) -> Estimate {
        let start = &self.json["start"];
        Estimate {
            value: start["gold_mean"].as_f64().expect("start.gold_mean"),
            se: start["gold_mean_se"].as_f64().unwrap_or(0.0),
        }
    }

    pub fn last(&self) -> &Round {
        self.rounds.last().expect("a finished run has rounds")
    }

    /// The directory of a final model, policy or reward.
    pub fn artifact(&self, name: &str) -> PathBuf {
        PathBuf::from(
            self.json["artifacts"][name]
                .as_str()
                .unwrap_or_else(|| panic!("no artifact {name} in {}", self.json)),
        )
    }

    /// The bytes of both final models' weights.
    pub fn weights(&self) -> (Vec<u8>, Vec<u8>) {
        let read = |name| {
            std::fs::read(self.artifact(name).join("model.safetensors")).expect("weights are readable")
        };
        (read("policy"), read("reward"))
    }
}

/// All files below a directory, sorted.
pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

//! Conformance checks of a result directory: its files, tokens and template agree with each other, Foil reads
//! it, and transformers computes from it what Foil computes.
//!
//! [`files::inspect`] reads the directory and returns the first findings and a [`Probe`], the inputs for both
//! sides. The worker, which has libtorch, returns [`Measured`], [`peer::ask`] returns [`peer::PeerResult`],
//! and [`compare::findings`] compares the two. A check that could not run is a separate finding, never a
//! pass.

pub mod compare;
pub mod files;
pub mod peer;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::HeadKind;

/// The kind of model, by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Policy,
    Reward,
}

impl From<HeadKind> for Kind {
    fn from(head: HeadKind) -> Self {
        match head {
            HeadKind::LanguageModel => Self::Policy,
            HeadKind::Reward => Self::Reward,
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    Failed,
    Unchecked,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: String,
    pub outcome: Outcome,
    /// The measured numbers, the fault and what to do about it, or why the check could not run.
    pub detail: String,
}

impl Finding {
    pub fn passed(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), outcome: Outcome::Passed, detail: detail.into() }
    }

    pub fn failed(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), outcome: Outcome::Failed, detail: detail.into() }
    }

    pub fn unchecked(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), outcome: Outcome::Unchecked, detail: detail.into() }
    }

    /// A pass with `detail` if there are no `faults`, else a failure that lists them.
    pub fn of(check: &str, faults: &[String], detail: impl Into<String>) -> Self {
        if faults.is_empty() { Self::passed(check, detail) } else { Self::failed(check, faults.join("; ")) }
    }
}

/// Inputs from which Foil and transformers compute logits or scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub kind: Kind,
    pub directory: String,
    /// Number of token ids.
    pub vocabulary: usize,
    pub eos: Vec<u32>,
    /// Sequences of several lengths. None holds the pad token of a sound result.
    pub rows: Vec<Vec<u32>>,
    /// Number of rows whose logits after the last token are compared, for a policy.
    pub logit_rows: usize,
    /// Sequences that are continued greedily, for a policy.
    pub greedy_prompts: Vec<Vec<u32>>,
    pub new_tokens: usize,
    /// Messages of prompts, as chat templates take them, and their tokens by Foil.
    pub dialogues: Vec<Value>,
    pub prompts: Vec<Vec<u32>>,
}

/// Foil's results for a [`Probe`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub findings: Vec<Finding>,
    /// A score for each row of a reward model.
    pub scores: Vec<f64>,
    /// Logits of a policy after each of the first rows.
    pub logits: Vec<Vec<f32>>,
    pub greedy: Vec<Vec<u32>>,
}

/// Names of the checks, in the order of the report.
pub mod check {
    pub const FILES: &str = "files";
    pub const EOS: &str = "end-of-sequence token";
    pub const BOS: &str = "begin-of-sequence token";
    pub const PAD: &str = "pad token";
    pub const TEMPLATE: &str = "chat template";
    pub const WEIGHTS: &str = "config and weights";
    pub const DTYPE: &str = "dtype";
    pub const FORWARD: &str = "forward in Foil";
    pub const PEER_LOADS: &str = "loading in transformers";
    pub const PEER_TOKENS: &str = "tokens in transformers";
    pub const PEER_TEMPLATE: &str = "template in transformers";
    pub const LOGITS: &str = "logits against transformers";
    pub const GREEDY: &str = "greedy text against transformers";
    pub const SCORES: &str = "scores against transformers";
    pub const BATCHES: &str = "scores by batch size and padding side";
}

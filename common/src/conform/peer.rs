//! transformers, run in the user's Python.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Measured, Probe};

const SCRIPT: &str = include_str!("transformers.py");
/// Lines shown of a failed script.
const LAST_LINES: usize = 4;

/// A probe, and the continuations that the peer's own are compared with.
#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    probe: &'a Probe,
    foil_greedy: &'a [Vec<u32>],
}

/// transformers' results for a directory: either `error` or the rest is set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeerResult {
    pub error: Option<String>,
    pub version: String,
    /// Tensors that were missing, unexpected or misshapen, by kind of fault.
    pub loading_faults: std::collections::BTreeMap<String, Vec<String>>,
    pub tokenizer: SpecialIds,
    pub generation_eos: Vec<u32>,
    pub has_template: bool,
    /// Tokens of the probe's prompts.
    pub prompts: Vec<Vec<u32>>,
    pub logits: Vec<Vec<f64>>,
    pub greedy: Vec<Continuation>,
    /// Scores of all rows, by batch size and padding side, in the order tried.
    pub scores: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct SpecialIds {
    pub bos: Vec<u32>,
    pub eos: Vec<u32>,
    pub pad: Vec<u32>,
}

/// A greedy continuation, and the margin of each of its logits over that of Foil's token at the same
/// position.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Continuation {
    pub ids: Vec<u32>,
    pub leads: Vec<f64>,
}

/// Why transformers gave no result.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{} does not start: {source}", python.display())]
    Start { python: PathBuf, source: std::io::Error },
    #[error("{} cannot use transformers: {said}", python.display())]
    Failed { python: PathBuf, said: String },
    #[error("{} printed no readable result: {source}", python.display())]
    Unreadable { python: PathBuf, source: serde_json::Error },
}

/// Loads the directories in transformers under `python`; one result for each, in order.
///
/// # Errors
/// Python does not start or has no transformers.
pub fn ask(python: &Path, all: &[(&Probe, &Measured)]) -> Result<Vec<PeerResult>, PeerError> {
    let requests = all.iter().map(|(probe, own)| Request { probe, foil_greedy: &own.greedy });
    let unreadable = |source| PeerError::Unreadable { python: python.to_owned(), source };
    let requests = serde_json::to_vec(&requests.collect::<Vec<_>>()).map_err(unreadable)?;
    let start = |source| PeerError::Start { python: python.to_owned(), source };
    let mut child = Command::new(python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let input = child.stdin.take();
    // On a separate thread: the script may write before it has read everything.
    let output = std::thread::scope(|scope| {
        // A script that ends early reports why itself.
        scope.spawn(move || input.map(|mut input| input.write_all(&requests)));
        child.wait_with_output()
    });
    let output = output.map_err(start)?;
    let (said, heard) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let said = lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ");
        return Err(PeerError::Failed { python: python.to_owned(), said });
    }
    serde_json::from_str(heard.lines().last().unwrap_or_default()).map_err(unreadable)
}

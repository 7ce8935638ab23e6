//! Completions of a round as a table among a run's artifacts, in the format of `mlflow.log_table`, which
//! MLflow's pages display.
//!
//! Each round has its own file, whose bytes follow from the job's results, so resending it after a failure
//! yields the same file. A tag stores the last round that has arrived, analogous to the last step of a metric
//! in MLflow.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::samples::{self, Completions};
use super::TAG_BYTES;

/// The tag in which MLflow's pages look up tables.
pub(super) const LISTED_TAG: &str = "mlflow.loggedArtifacts";
/// The last round whose table has arrived.
pub(super) const ROUND_TAG: &str = "foil.completions_round";
/// Scheme of artifacts that are uploaded to and stored by the tracking server itself.
const PROXIED: &str = "mlflow-artifacts:";
/// Folder of the tables among the run's artifacts.
const FOLDER: &str = "completions";
const MAX_PATH_BYTES: usize = 1024;

/// The tables of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tables {
    /// Path of the run's artifacts on the server, without a '/' at either end.
    root: String,
    /// The entries of the tag that lists tables, in order.
    listed: Vec<Value>,
    last_round: Option<u32>,
}

impl Tables {
    /// None if the run's artifacts are in a store that only MLflow's clients can write to.
    pub(super) fn of_run(artifact_uri: &str, tags: &BTreeMap<String, String>) -> Option<Self> {
        let listed = tags.get(LISTED_TAG).and_then(|tag| serde_json::from_str(tag).ok());
        let last_round = tags.get(ROUND_TAG).and_then(|round| round.parse().ok());
        Some(Self { root: root(artifact_uri)?, listed: listed.unwrap_or_default(), last_round })
    }

    pub(super) fn lacks(&self, round: u32) -> bool {
        self.last_round.is_none_or(|last| round > last)
    }

    /// Path of a round's table on the server.
    pub(super) fn path(&self, round: u32) -> String {
        format!("{}/{}", self.root, file(round))
    }

    /// Records that a round's table has arrived; returns the tags to set.
    pub(super) fn arrived(&mut self, round: u32) -> [(&'static str, String); 2] {
        self.last_round = Some(round);
        let entry = json!({ "path": file(round), "type": "table" });
        if !self.listed.contains(&entry) {
            self.listed.push(entry);
        }
        // A tag has a size limit, so only the last rounds are listed; the files of the other rounds remain.
        let is_own = |entry: &Value| entry["path"].as_str().is_some_and(|path| path.starts_with(FOLDER));
        while tag_of(&self.listed).len() > TAG_BYTES {
            let Some(first) = self.listed.iter().position(is_own) else { break };
            self.listed.remove(first);
        }
        [(LISTED_TAG, tag_of(&self.listed)), (ROUND_TAG, round.to_string())]
    }
}

fn tag_of(listed: &[Value]) -> String {
    Value::from(listed).to_string()
}

fn file(round: u32) -> String {
    format!("{FOLDER}/round-{round:04}.json")
}

/// The path of artifacts served by the tracking server, such as `mlflow-artifacts:/0/ID/artifacts`.
fn root(artifact_uri: &str) -> Option<String> {
    let path = artifact_uri.strip_prefix(PROXIED)?;
    // Two slashes without a third precede another server's name.
    let path = match path.strip_prefix("//") {
        Some(rest) => rest.strip_prefix('/')?,
        None => path,
    };
    let path = path.trim_matches('/');
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let is_name = |part: &str| !part.trim_matches('.').is_empty() && part.chars().all(is_plain);
    (path.len() <= MAX_PATH_BYTES && path.split('/').all(is_name)).then(|| path.to_owned())
}

/// The table of a round, with one row per completion, as pandas serializes a frame with the orientation
/// `split`.
pub(super) fn table(completions: &Completions) -> Value {
    let rows = completions.rows.iter().flat_map(|row| {
        let prompt = samples::prompt(row);
        row.completions.iter().map(move |completion| {
            json!([
                completions.round,
                row.prompt_id,
                prompt,
                samples::shown(completion.text.as_ref()),
                completion.reward,
                completion.gold,
                completion.kl,
                completion.tokens,
            ])
        })
    });
    json!({
        "columns": ["round", "prompt_id", "prompt", "completion", "reward", "gold", "kl", "tokens"],
        "data": rows.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_that_the_server_does_not_take_have_no_path() {
        for (uri, path) in [
            ("mlflow-artifacts:/0/ab12/artifacts", Some("0/ab12/artifacts")),
            ("mlflow-artifacts:///0/ab12/artifacts/", Some("0/ab12/artifacts")),
            ("mlflow-artifacts://elsewhere/0/ab12", None),
            ("mlflow-artifacts:/0/../1/artifacts", None),
            ("mlflow-artifacts:/0/a?b", None),
            ("mlflow-artifacts:", None),
            ("s3://bucket/0/ab12/artifacts", None),
            ("/mlruns/0/ab12/artifacts", None),
            ("", None),
        ] {
            assert_eq!(root(uri).as_deref(), path, "{uri}");
        }
    }

    #[test]
    fn a_tag_keeps_the_tables_of_others_and_the_last_ones_of_many_rounds() {
        let foreign = json!({ "path": "eval.json", "type": "table" });
        let tags = BTreeMap::from([(LISTED_TAG.to_owned(), json!([foreign]).to_string())]);
        let mut tables = Tables::of_run("mlflow-artifacts:/0/a/artifacts", &tags).unwrap();
        assert!(tables.lacks(0));
        let [(_, listed), (_, round)] = tables.arrived(0);
        let own = json!({ "path": "completions/round-0000.json", "type": "table" });
        assert_eq!(serde_json::from_str::<Value>(&listed).unwrap(), json!([foreign, own]));
        assert_eq!((round.as_str(), tables.lacks(0), tables.lacks(1)), ("0", false, true));
        for round in 1..1000 {
            let [(_, listed), _] = tables.arrived(round);
            assert!(listed.len() <= TAG_BYTES && listed.contains(&format!("round-{round:04}.json")));
            assert!(listed.contains("eval.json"));
        }
        // A later session reads these tags back.
        let [(_, listed), (_, round)] = tables.arrived(999);
        let tags = BTreeMap::from([(LISTED_TAG.to_owned(), listed), (ROUND_TAG.to_owned(), round)]);
        assert_eq!(Tables::of_run("mlflow-artifacts:/0/a/artifacts", &tags), Some(tables));
    }
}

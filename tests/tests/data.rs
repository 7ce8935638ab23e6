//! User data in other formats: the same rows in other formats, shapes and places give the same job, to the
//! bit.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use foil_common::data::rows::{DemonstrationRow, GoldenRow, Prompt};
use foil_common::letters::{self, Counts};
use foil_tests::{Outcome, Run, StoreServer, foil};
use serde_json::{Value, json};

const JOB: &str = "\
name: own
policy: { model: MODEL, init: random }
rounds: 1
text: { max_length: 32 }
sampling: { max_new_tokens: 16 }
sft_step: { batch_sequences: 64, learning_rate: 2e-3 }
reward_step: { samples: 2, batch_pairs: 32, learning_rate: 1e-3 }
policy_step: { samples: 2, batch_sequences: 32, learning_rate: 1e-3 }
evaluation: { kl_prompts: 8 }
data:
  sft: sft.jsonl
  preferences: pairs.jsonl
  golden: golden.jsonl
  prompts: prompts.jsonl
";

fn lines(path: &Path, rows: impl Iterator<Item = Value>) {
    fs::write(path, rows.map(|row| format!("{row}\n")).collect::<String>()).expect("a file");
}

/// Writes a job and its data as JSON lines.
fn write_job(dir: &Path) {
    let sets = letters::generate(11, Counts { sft: 300, golden: 40, prompts: 48, evaluation: 0 });
    let text = |prompt: &Prompt| prompt.last_text().to_owned();
    let demonstration = |row: &DemonstrationRow| json!({ "prompt": text(&row.prompt), "answer": row.answer });
    lines(&dir.join("sft.jsonl"), sets.sft.iter().map(demonstration));
    let pair = |row: &GoldenRow| {
        let margin = f64::from(u32::try_from(row.golden.len()).expect("a short text")) / 8.0;
        json!({ "prompt": text(&row.prompt), "chosen": row.golden, "rejected": "wxy", "margin": margin })
    };
    lines(&dir.join("pairs.jsonl"), sets.golden.iter().map(pair));
    let golden = |row: &GoldenRow| json!({ "prompt": text(&row.prompt), "golden": row.golden });
    lines(&dir.join("golden.jsonl"), sets.golden.iter().map(golden));
    lines(&dir.join("prompts.jsonl"), sets.prompts.iter().map(|row| json!({ "prompt": text(&row.prompt) })));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/jobs/letters");
    fs::write(dir.join("job.yaml"), JOB.replace("MODEL", model)).expect("a file");
}

fn convert(dir: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(foil()).arg("convert").args(arguments).current_dir(dir).output();
    output.expect("foil starts")
}

fn must_convert(dir: &Path, arguments: &[&str]) -> String {
    let output = convert(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The parts of a run's result that do not depend on time: its metrics and its weights.
fn result(outcome: &Outcome) -> (Value, Vec<u8>, Vec<u8>) {
    let weights = |name: &str| fs::read(outcome.artifact(name).join("model.safetensors")).expect("weights");
    let mut rounds = outcome.json["rounds"].clone();
    for round in rounds.as_array_mut().into_iter().flatten() {
        for side in ["policy", "reward"] {
            let figures = round[side].as_object_mut().expect("figures");
            figures.retain(|name, _| !name.contains("seconds") && !name.contains("per_second"));
        }
    }
    (rounds, weights("policy"), weights("reward"))
}

#[test]
fn other_formats_of_the_same_rows_give_the_same_job_to_the_bit() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    write_job(at);
    fs::create_dir_all(at.join("folder/data")).expect("a folder");
    let said = must_convert(at, &["pairs.jsonl", "pairs.parquet"]);
    assert_eq!(said, "pairs.parquet: Parquet, 40 rows, from 1 file (JSON lines)\n");
    must_convert(at, &["golden.jsonl", "golden.csv"]);
    must_convert(at, &["prompts.jsonl", "folder/data/train-00000-of-00001.arrow"]);
    must_convert(at, &["sft.jsonl", "sft.json.zst", "--format", "sharegpt"]);
    let lines = Run::job(at.join("job.yaml"));
    let tables = Run::job(at.join("job.yaml")).set_all(&[
        &format!("data.sft={}", at.join("sft.json.zst").display()),
        &format!("data.golden={}", at.join("golden.csv").display()),
        &format!("data.prompts={}#train", at.join("folder").display()),
    ]);
    // The pairs come from S3 if a server is available.
    let local = format!("data.preferences={}", at.join("pairs.parquet").display());
    let tables = match StoreServer::s3() {
        None => tables.set(&local),
        Some(server) => {
            put(&server, "team/pairs.parquet", &at.join("pairs.parquet"));
            let run = server.environment(server.address()).into_iter();
            let run = run.fold(tables, |run, (name, value)| run.env(&name, value));
            let run = run.set("data.preferences=s3://foil/team/*.parquet");
            let outcome = run.finish();
            assert_eq!(result(&outcome), result(&lines.finish()));
            return;
        }
    };
    assert_eq!(result(&tables.finish()), result(&lines.finish()));
}

/// Uploads a file as its owner would, with a program other than Foil.
fn put(server: &StoreServer, key: &str, file: &Path) {
    let url = format!("http://{}/foil/{key}", server.address());
    // Not as a form, urllib's default, which the server would parse.
    let program = "import sys, urllib.request as u
headers = {'Content-Type': 'application/octet-stream'}
u.urlopen(u.Request(sys.argv[1], open(sys.argv[2], 'rb').read(), headers, method='PUT'), timeout=60)";
    let output = Command::new("python3")
        .args(["-c", program])
        .args([url.as_str(), file.to_str().expect("UTF-8")])
        .output()
        .expect("python3 starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn objects_are_read_with_the_credentials_of_who_submits() {
    let Some(server) = StoreServer::s3() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    write_job(at);
    must_convert(at, &["golden.jsonl", "golden.jsonl.gz"]);
    put(&server, "team/golden.jsonl.gz", &at.join("golden.jsonl.gz"));
    let dry = |url: &str, environment: Vec<(String, String)>| {
        let mut command = Command::new(foil());
        command.args([
            "submit",
            "--dry-run",
            "-o",
            "json",
            "job.yaml",
            "--set",
            &format!("data.golden={url}"),
        ]);
        let output = command.current_dir(at).envs(environment).output().expect("foil starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), told)
    };
    let environment = || server.environment(server.address());
    let (done, plan, told) = dry("s3://foil/team/golden.jsonl.gz", environment());
    assert!(done, "{told}");
    let sets = plan["plan"]["datasets"].as_array().expect("data sets");
    let golden = sets.iter().find(|set| set["name"] == "golden").expect("golden answers");
    assert_eq!(golden["files"][0]["format"], "JSON lines, gzip");
    for (url, what) in [
        ("s3://foil/team/none.jsonl", "has no object"),
        ("s3://foil/team/*.csv", "no object fits the pattern"),
        ("s3://none/team/golden.jsonl.gz", "has no object"),
        ("http://127.0.0.1/golden.jsonl", "s3://, gs://, az:// or https://"),
    ] {
        let (done, _, told) = dry(url, environment());
        assert!(!done && told.contains("data.golden") && told.contains(what), "{url}: {told}");
    }
}

#[test]
fn an_existing_file_is_replaced_only_by_force() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    write_job(at);
    let pairs = |arguments: &[&str]| convert(at, &[&["pairs.jsonl", "out.jsonl"], arguments].concat());
    assert!(pairs(&["--format", "apo"]).status.success());
    let first: Value = serde_json::from_str(
        fs::read_to_string(at.join("out.jsonl")).expect("a file").lines().next().expect("a line"),
    )
    .expect("JSON");
    assert_eq!((first["query_id"].as_str(), first["text"].as_array().map(Vec::len)), (Some("1"), Some(2)));
    let refused = pairs(&[]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && told.contains("--force"), "{told}");
    let forced = pairs(&["--force", "-o", "json"]);
    let report: Value = serde_json::from_slice(&forced.stdout).expect("JSON");
    assert_eq!((&report["rows_written"], &report["format"]), (&json!(40), &json!("JSON lines")));
}

//! Checks `foil export` and model cards against torch, transformers, PEFT and huggingface_hub.
//!
//! The Python checks are skipped without `.venv-peers` (scripts/fixtures/setup-peers) or another Python with
//! its packages, which `FOIL_TEST_PYTHON` can name.

// Skipped tests print the reason.
#![allow(clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use foil_tests::{Process, Service, foil, foil_worker};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs scripts/fixtures/check_published.py if a suitable Python is available.
fn check(packages: &str, arguments: &[&str]) {
    let named = std::env::var_os("FOIL_TEST_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| root().join(".venv-peers/bin/python"));
    let imports = Command::new(&python).args(["-c", &format!("import {packages}")]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {} by a Python with {packages} (scripts/fixtures/setup-peers)", arguments[0]);
        return;
    }
    let script = root().join("scripts/fixtures/check_published.py");
    let mut command = Command::new(python);
    let output =
        command.arg(script).args(arguments).env("HF_HUB_OFFLINE", "1").output().expect("Python starts");
    let said = String::from_utf8_lossy(&output.stdout);
    eprintln!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs `foil` in an empty environment except for the path of the coordinator. Returns standard error on
/// failure.
fn run(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(foil()).args(arguments).output().expect("foil starts");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn exports_are_rounded_as_torch_rounds_and_load_in_transformers() {
    let out = tempfile::tempdir().expect("a directory");
    let mut arguments = vec!["weights".to_owned()];
    for model in ["llama-tied", "llama-untied-bias", "llama-reward", "mistral", "qwen2"] {
        let source = root().join("tests/fixtures/model").join(model);
        for dtype in ["fp32", "bf16", "fp16"] {
            let export = out.path().join(format!("{model}-{dtype}"));
            let shards = if dtype == "fp32" { "5GB" } else { "9KB" };
            let flags = ["--dtype", dtype, "--max-shard-size", shards];
            let told = run(&[&["export", text(&source), text(&export)][..], &flags].concat());
            assert_eq!(told.expect("the model must be exported").trim(), text(&export));
            assert_eq!(export.join("model.safetensors.index.json").exists(), dtype != "fp32");
            arguments.extend([text(&source).to_owned(), text(&export).to_owned(), dtype.to_owned()]);
        }
    }
    let there = out.path().join("qwen2-bf16");
    let source = root().join("tests/fixtures/model/qwen2");
    let refused = run(&["export", text(&source), text(&there)]).expect_err("it is there already");
    assert!(refused.contains("--force"), "{refused}");
    run(&["export", text(&source), text(&there), "--dtype", "bf16", "--force"]).expect("it is replaced");
    assert!(there.join("model.safetensors").exists() && !there.join("model.safetensors.index.json").exists());
    check("torch, transformers", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_jobs_models_travel_with_their_card_merged_and_as_adapters() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));
    let settings =
        ["policy_step.lora={ rank: 4 }", "reward_step.lora={ rank: 4 }", "policy_step.learning_rate=1e-2"];
    let id = service.submit_letters_with(Command::new(foil()), &settings);
    service.foil(&["watch", &id]);

    let at = |name: &str| service.at(name);
    let export = |what: &str, dir: &Path, flags: &[&str]| {
        service.foil(&[&["export", &format!("letters/{what}"), text(dir)][..], flags].concat())
    };
    let (start, merged, adapter) = (at("start"), at("merged"), at("adapter"));
    export("policy@0", &start, &[]);
    export("policy@best", &merged, &["--max-shard-size", "100KB"]);
    export("policy@last", &adapter, &["--adapter", "--base-model", text(&start)]);
    let (reward, reward_adapter) = (at("reward-merged"), at("reward-adapter"));
    export("reward@1", &reward, &["--dtype", "bf16"]);
    export("reward", &reward_adapter, &["--adapter", "--base-model", text(&start)]);

    // The same from a pulled directory, whose files are verified.
    let pulled = at("pulled");
    service.foil(&["pull", "letters", text(&pulled)]);
    let again = at("again");
    run(&["export", text(&pulled.join("rounds/policy@1")), text(&again), "--max-shard-size", "100KB"])
        .expect("the model must be exported");
    for entry in fs::read_dir(&merged).expect("an export").flatten() {
        let read = |dir: &Path| fs::read(dir.join(entry.file_name())).expect("a file of both");
        assert!(read(&merged) == read(&again), "{:?}", entry.file_name());
    }
    let weights = pulled.join("rounds/reward@1/model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).expect("weights");
    let refused = run(&["export", text(&pulled.join("rounds/reward@1")), text(&at("damaged"))])
        .expect_err("it is damaged");
    assert!(refused.contains("model.safetensors has BLAKE3") && !at("damaged").exists(), "{refused}");

    check("torch, transformers, peft", &["adapter", text(&start), text(&adapter), text(&merged)]);
    let cards = [pulled.join("policy"), pulled.join("reward"), merged, adapter, reward, reward_adapter];
    let mut arguments = vec!["card"];
    arguments.extend(cards.iter().map(|dir| text(dir)));
    check("huggingface_hub, torch", &arguments);
}

//! A failed job reports the class and the place of the failure, its figures and advice.

use std::fs;
use std::path::Path;
use std::process::Command;

use foil_common::data::rows::{PairRow, Prompt, Row, assign_ids};
use foil_tests::{Cgroup, Process, Run, Service, foil, foil_worker, letters_job, wait_for};
use serde_json::{Value, json};

/// The lines of the failed rank's log that `foil run` prints.
fn tail(told: &str) -> Vec<&str> {
    told.lines().filter(|line| line.starts_with("  | ")).collect()
}

#[test]
fn bad_rows_fail_as_data_before_any_rank_starts() {
    let run = Run::letters();
    let file = run.scratch().join("pairs.jsonl");
    fs::write(&file, "{\"prompt\": \"a\"}\n".repeat(20)).expect("writable");
    let run = run.set("data.gold_preferences=null").set(&format!("data.preferences={}", file.display()));
    let (outcome, told) = run.fail();
    assert_eq!(outcome.json["error"]["class"], "data", "{}", outcome.json);
    assert!(told.contains("pairs.jsonl:1"), "the first bad row must be named: {told}");
}

#[test]
fn an_unknown_field_fails_as_user() {
    let (outcome, told) = Run::letters().set("reward_step.losss=gail").fail();
    assert_eq!(outcome.json["error"]["class"], "user", "{}", outcome.json);
    assert!(told.contains("reward_step.loss"), "the nearest field must be named: {told}");
}

#[test]
fn equal_completions_fail_as_data_and_end_the_job_at_once() {
    // At this low temperature a prompt's completions tie, and ties make no pair.
    let run = Run::letters().ranks(2).set("policy_step.method=dpo").set("sampling.temperature=0.0001");
    let (outcome, told) = run.fail();
    let error = &outcome.json["error"];
    assert_eq!((&error["class"], &error["phase"]), (&json!("data"), &json!("r01.policy.train")), "{error}");
    assert_eq!((&error["round"], &error["attempt"]), (&json!(1), &json!(1)), "{error}");
    assert!(error["rank"].is_u64() && error["advice"] != "", "{error}");
    let tail = tail(&told);
    assert!(!tail.is_empty() && tail.len() <= 50, "{told}");
    // Whether all completions are equal or some only tie depends on the CPU.
    let own_words =
        ["no better than another", "all completions of a prompt are the same; raise sampling.temperature"];
    assert!(
        tail.iter().any(|line| own_words.iter().any(|words| line.contains(words))),
        "the culprit's own words are to be shown: {told}"
    );
}

#[test]
fn three_crashes_in_a_row_fail_the_job_with_the_signal_and_the_step() {
    let run = Run::letters().ranks(2).env("FOIL_FAILPOINT", "train.optimizer=crash@3");
    let (outcome, told) = run.fail();
    let error = &outcome.json["error"];
    assert_eq!((&error["class"], &error["last_class"]), (&json!("no_progress"), &json!("crash")), "{error}");
    assert_eq!((&error["signal"], &error["phase"]), (&json!("SIGSEGV"), &json!("r00.sft")), "{error}");
    assert_eq!((&error["step"], &error["attempt"]), (&json!(2), &json!(3)), "{error}");
    assert_eq!(error["failed_attempts"], 3, "{error}");
    assert!(tail(&told).iter().any(|line| line.contains("failpoint triggered")), "{told}");
    assert!(told.contains("SIGSEGV"), "{told}");
}

#[test]
fn a_rank_that_aborts_over_an_allocation_is_out_of_host_memory() {
    // A backtrace pushes the out-of-memory message out of the last lines.
    let run = Run::letters().ranks(2);
    let run = run.env("RUST_BACKTRACE", "full").env("FOIL_FAILPOINT", "train.backward=exhaust@2");
    let (outcome, _) = run.fail();
    let error = &outcome.json["error"];
    assert_eq!(error["last_class"], "out_of_memory", "{error}");
    let memory = &error["memory"];
    assert_eq!(memory["place"], "host", "{error}");
    // The process may end before its last line is read. If a size is reported, it is the requested one.
    assert!(memory["requested_bytes"].is_null() || memory["requested_bytes"] == 1u64 << 62, "{error}");
    let (peak, limit) = (memory["peak_bytes"].as_u64(), memory["limit_bytes"].as_u64());
    assert!(peak.is_some_and(|bytes| bytes > 10 << 20) && limit > peak, "{error}");
}

/// Sixty-four pairs, one of which has a margin that overflows fp32.
fn pairs_with_one_infinite_margin(file: &Path) -> u64 {
    let mut rows: Vec<PairRow> = (0..64)
        .map(|number: u32| PairRow {
            id: 0,
            prompt: Prompt::user(["a", "b", "c", "d", "e", "f", "g", "h"][number as usize % 8]),
            chosen: format!("a{}", "!".repeat(number as usize / 8)),
            rejected: "w".to_owned(),
            margin: Some(if number == 37 { 1e300 } else { 0.5 }),
            groups: Vec::new(),
        })
        .collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let prompt = &row.prompt.messages[0].content;
            json!({"prompt": prompt, "chosen": row.chosen, "rejected": row.rejected, "margin": row.margin})
                .to_string()
        })
        .collect();
    fs::write(file, lines.join("\n")).expect("writable");
    assign_ids(&mut rows);
    rows[37].id()
}

#[test]
fn a_nonfinite_loss_names_the_rows_of_its_batch() {
    let run = Run::letters().ranks(2);
    let file = run.scratch().join("pairs.jsonl");
    let culprit = format!("human pair {}", pairs_with_one_infinite_margin(&file));
    let files = format!("data.preferences={}", file.display());
    let evaluation = format!("data.evaluation.preferences={}", file.display());
    let run = run.set_all(&[
        &files,
        &evaluation,
        "data.gold_preferences=null",
        "reward_step.bradley_terry.margin=true",
        "reward_step.apo_weight=0",
        "reward_step.batch_pairs=4",
    ]);
    let (outcome, told) = run.fail();
    let error = &outcome.json["error"];
    assert_eq!((&error["class"], &error["attempt"]), (&json!("nonfinite"), &json!(1)), "{error}");
    assert!(error["step"].as_u64().is_some_and(|step| (1..=16).contains(&step)), "{error}");
    let rows = error["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 4, "only rows of the batch are listed: {error}");
    assert!(rows.contains(&json!(culprit)), "the row with the infinite margin is listed: {error}");
    assert!(told.contains(&culprit), "{told}");
}

/// Writes the letters model with huge layers.
fn huge_model(dir: &Path) -> String {
    let letters = Path::new(letters_job()).with_file_name("letters");
    let model = dir.join("vast");
    fs::create_dir(&model).expect("a directory");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(letters.join(file), model.join(file)).expect("the letters model has it");
    }
    let config = fs::read(letters.join("config.json")).expect("the letters model has one");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    for (name, size) in [
        ("hidden_size", 1 << 17),
        ("intermediate_size", 1 << 17),
        ("num_attention_heads", 1 << 10),
        ("num_key_value_heads", 1 << 10),
        ("head_dim", 128),
    ] {
        config[name] = size.into();
    }
    fs::write(model.join("config.json"), config.to_string()).expect("writable");
    format!("policy.model={}", model.display())
}

fn ended(service: &Service, id: &str) -> Value {
    wait_for("the job's end", || {
        let job = service.job(id);
        (!job["ended_at"].is_null()).then_some(job)
    })
}

#[test]
fn a_model_too_large_for_its_machine_fails_its_job_and_harms_no_other() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    // Forty gigabytes of address space; one of the model's matrices needs sixty-four.
    let mut agent = Command::new("sh");
    agent.args(["-c", "ulimit -v 40000000 && exec \"$0\" \"$@\""]).arg(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "2"]);
    let mut agent = Process::start(agent, &service.at("agent.log"));

    let vast = huge_model(&service.at(""));
    let id = service.submit_letters_with(Command::new(foil()), &[&vast]);
    let job = ended(&service, &id);
    let failure = &job["failure"];
    assert_eq!(failure["class"], "no_progress", "{failure}");
    let shown = service.foil(&["get", &id]);
    // The job's files take five terabytes, which few machines have free. With enough disk space, the job runs
    // out of memory.
    if failure["last_class"] == "store" {
        let (message, advice) = (failure["message"].to_string(), failure["advice"].to_string());
        assert!(message.contains("are free") && advice.contains("--work-dir"), "{failure}");
        assert!(shown.contains("are free"), "{shown}");
    } else {
        assert_eq!(failure["last_class"], "out_of_memory", "{failure}");
        let bytes = |name: &str| failure["memory"][name].as_str().and_then(|bytes| bytes.parse::<u64>().ok());
        // The machine's own memory, if that is less.
        assert!(bytes("limit_bytes").is_some_and(|bytes| bytes <= 40_000_000 << 10), "{failure}");
        assert!(bytes("requested_bytes").is_some_and(|bytes| bytes >= 1 << 36), "{failure}");
        assert!(shown.contains("out of host memory: 64.0 GiB requested"), "{shown}");
    }
    assert_eq!((&failure["attempt"], &failure["failed_attempts"]), (&json!(3), &json!(3)), "{failure}");

    let id = service.submit_letters(Command::new(foil()));
    let job = ended(&service, &id);
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
    assert!(agent.is_running());
}

#[test]
fn a_rank_killed_by_the_kernel_out_of_memory_is_reported_with_its_size() {
    const LIMIT: u64 = 768 << 20;
    let Some(group) = Cgroup::new(LIMIT) else { return };
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let mut agent = Command::new("sh");
    agent.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group.dir()).arg(foil_worker());
    agent.args(["--coordinator", service.url(), "--ranks", "1"]);
    let agent = Process::start(agent, &service.at("agent.log"));

    // About two gigabytes of weights, in matrices that each fit.
    let vast = huge_model(&service.at(""));
    let config = service.at("vast/config.json");
    let mut smaller: Value = serde_json::from_slice(&fs::read(&config).expect("there")).expect("JSON");
    for (name, size) in [
        ("hidden_size", 4096),
        ("intermediate_size", 8192),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 32),
    ] {
        smaller[name] = size.into();
    }
    smaller["num_hidden_layers"] = 4.into();
    fs::write(&config, smaller.to_string()).expect("writable");
    let id = service.submit_letters_with(Command::new(foil()), &[&vast, "resources.ranks=1"]);
    let job = ended(&service, &id);
    drop(agent);
    let failure = &job["failure"];
    assert_eq!(
        (&failure["last_class"], &failure["signal"]),
        (&json!("out_of_memory"), &json!("SIGKILL")),
        "{failure}"
    );
    let bytes = |name: &str| failure["memory"][name].as_str().and_then(|bytes| bytes.parse::<u64>().ok());
    assert_eq!(bytes("limit_bytes"), Some(LIMIT), "{failure}");
    assert!(bytes("peak_bytes").is_some_and(|peak| peak > LIMIT / 2 && peak < 2 * LIMIT), "{failure}");
}

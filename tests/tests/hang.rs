//! Hangs are detected by missing progress, not by time: a slow transfer is not a hang, but a stopped rank is.

use std::path::Path;
use std::process::Command;

use foil_tests::{Process, Run, Service, foil, foil_worker, letters_job, slow_link, wait_for};
use serde_json::Value;

/// The letters model, enlarged to about 10 MB for a slow upload.
fn large_model(dir: &Path) -> String {
    let letters = Path::new(letters_job()).with_file_name("letters");
    let model = dir.join("model");
    std::fs::create_dir(&model).expect("a directory");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(letters.join(file), model.join(file)).expect("the letters model has it");
    }
    let config = std::fs::read(letters.join("config.json")).expect("the letters model has one");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    let sizes = [
        ("hidden_size", 256),
        ("intermediate_size", 512),
        ("num_hidden_layers", 4),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 4),
        ("head_dim", 64),
    ];
    for (name, size) in sizes {
        config[name] = size.into();
    }
    std::fs::write(model.join("config.json"), config.to_string()).expect("writable");
    format!("policy.model={}", model.display())
}

#[test]
fn an_upload_longer_than_the_hang_timeout_is_no_hang() {
    let (service, _coordinator) = Service::start(Command::new(foil()), "127.0.0.1");
    let address = service.url().trim_start_matches("http://").parse().expect("an address");
    // Uploading the model takes about fifteen seconds.
    let slow = format!("http://{}", slow_link(address, 700_000));
    let mut agent = Command::new(foil_worker());
    agent.args(["--coordinator", &slow, "--ranks", "2"]);
    let _agent = Process::start(agent, &service.at("agent.log"));

    let model = large_model(&service.at(""));
    // Few rows, so that the step itself is quick even on a busy machine.
    let settings =
        [&model, "resources.hang_timeout_seconds=10", "data.generator.sft=16", "sft_step.epochs=1"];
    let id = service.submit_letters_with(Command::new(foil()), &settings);
    let job = wait_for("end of the first phase", || {
        let job = service.job(&id);
        (job["phases_done"].as_u64() > Some(0) || job["attempt"].as_u64() > Some(1)).then_some(job)
    });
    assert_eq!(job["attempt"], 1, "{}", service.log("serve.log"));
}

#[test]
fn a_rank_that_stops_while_it_loads_is_replaced() {
    let baseline = Run::letters().ranks(2).finish().weights();
    let run = Run::letters().ranks(2).set("resources.hang_timeout_seconds=10");
    let marker = run.scratch().join("stopped");
    let run = run
        .env("FOIL_FAILPOINT", "phase.load=stop@1")
        .env("FOIL_FAILPOINT_ONCE", marker.display().to_string());
    let weights = run.finish().weights();
    assert!(marker.exists(), "no rank was stopped\n{}", run.logs());
    assert!(weights == baseline, "the weights differ");
}

use std::fs;
use std::path::Path;

use foil_common::spec::{self, file};
use serde_json::Value;

use super::{Planned, describe, show};

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn planned(job: &str, settings: &[&str]) -> Planned {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let wire = file::load(&repository().join(job), &settings).unwrap();
    describe(spec::Job::try_from(wire).unwrap()).unwrap()
}

fn total(plan: &Value, phase: &str) -> u64 {
    let memory = plan["memory"].as_array().unwrap();
    let kind = memory.iter().find(|kind| kind["phase"] == phase);
    kind.unwrap_or_else(|| panic!("no {phase} in {memory:?}"))["total"].as_u64().unwrap()
}

#[test]
fn a_generated_job_is_planned_with_its_counts() {
    let planned = planned("deploy/jobs/letters.yaml", &["rounds=1"]);
    let text = show::text(&planned, None);
    // 4,000 demonstrations in batches of 128, twelve times over; 1,000 prompts in chunks of 64.
    for expected in [
        "r00.sft                            sft             384 steps",
        "r01.policy.generate                generate        16 chunks",
        "MiB PER RANK",
        "2 ranks on cpu, fp32, ddp;",
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&text).contains(&words(expected)), "{expected}\n\n{text}");
    }
    assert!(!text.contains("fit"), "{text}");
    let json = show::json(&planned, None);
    assert_eq!((&json["fits"], &json["memory"][0]["fits"]), (&Value::Null, &Value::Null));
    assert_eq!(json["phases"][0]["steps"], 384);
    assert!(total(&json, "sft") > total(&json, "score"));
}

#[test]
fn the_7b_job_fits_eight_devices_with_sharding_and_not_without() {
    const DEVICE: u64 = 80 << 30;
    let job = "deploy/jobs/llama-7b.yaml";
    let planned = planned(job, &[]);
    assert!(planned.notes.iter().any(|note| note.contains("so the phases' chunks and steps are unknown")));
    let json = show::json(&planned, Some(DEVICE));
    assert_eq!(json["parameters"]["policy"], 6_738_415_616_u64);
    assert_eq!(json["fits"], true, "{json:#}");
    let text = show::text(&planned, Some(DEVICE));
    assert!(text.contains("fits 80.00 GiB; the largest phase is "), "{text}");
    // Twelve bytes per parameter, an eighth on each rank.
    let pinned = "host memory of a rank for its checkpoints: reward epoch 9.23 GiB, policy epoch 9.41 GiB";
    assert!(text.contains(pinned), "{text}");
    let without = show::text(&self::planned(job, &["resources.checkpoint_seconds=0"]), None);
    assert!(!without.contains("host memory"), "{without}");

    let whole = self::planned(job, &["resources.sharding=ddp"]);
    let json = show::json(&whole, Some(DEVICE));
    assert_eq!(json["fits"], false);
    // Sixteen bytes per parameter alone are more.
    assert!(total(&json, "policy epoch") > 16 * 6_738_415_616);
    let text = show::text(&whole, Some(DEVICE));
    assert!(
        text.contains("does not fit 80.00 GiB: reward epoch, policy epoch; set resources.sharding: zero1"),
        "{text}"
    );
    // A comparison with the start policy keeps a third model.
    let third = show::json(&self::planned(job, &["evaluation.kl_prompts=64"]), Some(DEVICE));
    assert!(total(&third, "evaluate") > 12 * 6_600_000_000);
}

/// Whether a job with these settings fits a device of so many GiB, and the printed plan.
fn verdict(job: &str, device: u64, settings: &[&str]) -> (bool, String) {
    let planned = planned(job, settings);
    let fits = show::json(&planned, Some(device << 30))["fits"].as_bool().unwrap();
    (fits, show::text(&planned, Some(device << 30)))
}

#[test]
fn models_larger_than_a_device_fit_eight_of_them_in_shards() {
    const SHARDED: [&str; 3] =
        ["resources.sharding=fsdp", "generation.max_num_seqs=16", "evaluation.kl_prompts=0"];
    let (fits, text) = verdict("deploy/jobs/llama-7b.yaml", 24, &SHARDED);
    assert!(fits, "{text}");
    for job in ["deploy/jobs/llama-13b.yaml", "deploy/jobs/qwen-32b.yaml"] {
        let (fits, text) = verdict(job, 80, &[]);
        assert!(fits && text.contains("8 ranks on cuda, bf16, fsdp, activation checkpointing"), "{text}");
        for sharding in ["ddp", "zero1"] {
            let (fits, text) = verdict(job, 80, &[&format!("resources.sharding={sharding}")]);
            assert!(!fits && text.contains("set resources.sharding: ") && text.contains("fsdp"), "{text}");
        }
    }
    // Sixteen bytes per parameter, over eight ranks.
    let json = show::json(&planned("deploy/jobs/qwen-32b.yaml", &[]), None);
    let parameters = json["parameters"]["policy"].as_u64().unwrap();
    assert_eq!(parameters, 32_763_876_352); // Qwen2.5-32B
    assert!(total(&json, "policy epoch") > 2 * parameters);
    assert!(total(&json, "policy epoch") < 3 * parameters);
}

#[test]
fn a_job_that_does_not_fit_in_shards_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("llama-70b")).unwrap();
    // Llama-2-70B.
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    fs::write(dir.path().join("llama-70b/config.json"), config.to_string()).unwrap();
    let job = fs::read_to_string(repository().join("deploy/jobs/qwen-32b.yaml")).unwrap();
    fs::write(dir.path().join("job.yaml"), job.replace("model: qwen-32b", "model: llama-70b")).unwrap();
    let wire = file::load(&dir.path().join("job.yaml"), &[]).unwrap();
    let planned = describe(spec::Job::try_from(wire).unwrap()).unwrap();
    let text = show::text(&planned, Some(80 << 30));
    let needs = "phases that do not train hold a whole model in bf16 on each device: ";
    assert!(text.contains("does not fit 80.00 GiB: ") && text.contains(needs), "{text}");
    let ranks = text.split("training fits with resources.ranks: ").nth(1).unwrap();
    let ranks: u32 = ranks.split(';').next().unwrap().parse().unwrap();
    assert!((16..32).contains(&ranks), "{text}");
}

#[test]
fn settings_move_the_parts_they_should() {
    let of = |settings: &[&str]| show::json(&planned("deploy/jobs/llama-7b.yaml", settings), None);
    let base = of(&[]);
    let part = |plan: &Value, phase: &str, part: &str| {
        let kind = plan["memory"].as_array().unwrap().iter().find(|kind| kind["phase"] == phase).unwrap();
        kind["bytes"][part].as_u64().unwrap()
    };
    let lora = of(&["policy_step.lora={rank: 16}"]);
    assert_eq!(part(&lora, "policy epoch", "gradients"), 4 * 39_976_960);
    assert_eq!(part(&lora, "reward epoch", "gradients"), part(&base, "reward epoch", "gradients"));
    let kept = of(&["resources.activation_checkpointing=false"]);
    let policy =
        |plan: &Value| plan["memory"].as_array().unwrap().iter().position(|k| k["phase"] == "policy epoch");
    let index = policy(&base).unwrap();
    assert_eq!(base["memory"][index]["activations_otherwise"], kept["memory"][index]["bytes"]["activations"]);
    let slots = of(&["generation.max_num_seqs=16"]);
    assert!(part(&slots, "generate", "kv_cache") < part(&base, "generate", "kv_cache"));
    assert!(
        of(&["policy_step.method=dpo"])["memory"]
            .as_array()
            .unwrap()
            .iter()
            .any(|k| k["phase"] == "ref_log_probs")
    );
}

#[test]
fn a_model_without_a_config_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(repository().join("deploy/jobs/llama-7b.yaml")).unwrap();
    fs::write(dir.path().join("job.yaml"), text).unwrap();
    let job = spec::Job::try_from(file::load(&dir.path().join("job.yaml"), &[]).unwrap()).unwrap();
    let error = format!("{:#}", describe(job.clone()).err().unwrap());
    assert!(error.starts_with("policy.model: ") && error.contains("there is no such directory"), "{error}");
    fs::create_dir(dir.path().join("llama-7b")).unwrap();
    let error = format!("{:#}", describe(job).err().unwrap());
    assert!(error.starts_with("policy.model: ") && error.contains("config.json"), "{error}");
}

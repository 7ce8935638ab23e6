//! JSON log lines of a run name their job, phase and rank.

use std::collections::BTreeMap;

use foil_tests::Run;
use serde_json::Value;

/// Whether a line has all fields with values other than null.
fn has(line: &Value, fields: &[&str]) -> bool {
    fields.iter().all(|field| !line[field].is_null())
}

#[test]
fn json_lines_name_job_phase_round_step_attempt_rank_and_chunk() {
    let run = Run::letters().ranks(2).arg("--log-format").arg("json");
    let job = run.finish().json["job"].clone();
    let text = std::fs::read_to_string(run.out().join("logs/worker.log")).expect("the worker's log");
    let parse = |line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let lines: Vec<Value> = text.lines().map(parse).collect();

    // Lines of ranks during a phase.
    let of_phases: Vec<&Value> = lines.iter().filter(|line| has(line, &["phase"])).collect();
    for line in &of_phases {
        assert!(has(line, &["round", "attempt", "rank"]) && line["job"] == job, "{line}");
    }

    // Steps of gangs, including the last one.
    let mut steps: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for line in of_phases.iter().filter(|line| line["message"] == "step") {
        let figures = ["step", "steps", "loss", "grad_norm", "learning_rate", "tokens_per_second"];
        assert!(has(line, &figures) && line["level"] == "INFO" && line["rank"] == 0, "{line}");
        steps.entry(line["phase"].as_str().expect("a name")).or_default().push(line);
    }
    let phases: Vec<&str> = steps.keys().copied().collect();
    assert_eq!(phases, ["r00.sft", "r01.policy.train", "r01.reward.train"]);
    for (phase, steps) in steps {
        let (first, last) = (steps[0], steps[steps.len() - 1]);
        assert!(first["step"] == 1 && last["step"] == last["steps"], "{phase}: {first} to {last}");
        assert!(steps.len() <= 12, "{phase}: {} lines", steps.len());
    }

    // Chunks of map phases.
    let is_gang =
        |line: &Value| line["phase"].as_str().is_some_and(|p| p.ends_with("train") || p == "r00.sft");
    let of_chunks: Vec<&&Value> = of_phases.iter().filter(|line| !is_gang(line)).collect();
    assert!(of_chunks.iter().any(|line| line["message"] == "chunk done"));
    for line in of_chunks {
        assert!(has(line, &["chunk"]), "{line}");
    }
}

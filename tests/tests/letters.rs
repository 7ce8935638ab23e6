//! The letters job end to end: APO learns, its controls do not, and the same job gives the same bits.

use std::path::Path;
use std::process::Command;

use foil_tests::{Estimate, Outcome, Run};
use serde_json::Value;

/// A job large enough to learn in a minute.
fn learning() -> Run {
    Run::letters().ranks(2).set_all(&[
        "rounds=2",
        "data.generator.sft=2000",
        "data.generator.golden=300",
        "data.generator.prompts=300",
        "data.generator.evaluation=200",
        "data.gold_preferences.pairs=600",
        "data.gold_preferences.evaluation_pairs=100",
        "sft_step.epochs=6",
        "reward_step.epochs=3",
        "policy_step.epochs=3",
    ])
}

/// The change of the gold reward relative to the start policy, paired by prompt.
fn gold_change(outcome: &Outcome) -> Estimate {
    outcome.last().estimate("policy", "gold_difference_mean")
}

/// The 95 % interval of accuracy on fresh pairs, clustered by golden answer.
fn fresh_accuracy(outcome: &Outcome) -> (f64, f64) {
    let end = |end: &str| outcome.last().value("reward", &format!("fresh_accuracy_{end}"));
    (end("low"), end("high"))
}

/// Asserts that `foil conform` finds no fault with its own checks of the files and with Foil, and that it
/// skips the transformers checks without Python.
fn assert_conforms(dir: &Path) {
    let output = Command::new(foil_tests::foil()).args(["conform", "--json", "."]).current_dir(dir).output();
    let output = output.expect("foil starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a JSON report");
    assert_eq!((output.status.code(), &report["failed"]), (Some(3), &0.into()), "{report}");
    let findings = report["findings"].as_array().expect("findings");
    let outcome = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}: {report}"))["outcome"].clone()
    };
    assert_eq!(outcome("forward in Foil"), "passed", "{report}");
    assert_eq!(outcome("loading in transformers"), "unchecked", "{report}");
}

#[test]
fn training_raises_gold_and_separates_golden_answers_from_fresh_completions() {
    let run = learning();
    let outcome = run.finish();
    assert_eq!(outcome.json["state"], "succeeded");
    assert_eq!(outcome.rounds.len(), 2);
    assert_conforms(&outcome.artifact("policy"));
    assert_conforms(&outcome.artifact("reward"));
    assert!(gold_change(&outcome).exceeds(0.0), "{}", outcome.json);
    assert!(fresh_accuracy(&outcome).0 > 0.5, "{}", outcome.json);
    for figure in ["reward_gain", "reward_mean", "kl", "length_mean", "truncated_rate"] {
        assert!(outcome.last().estimate("policy", figure).value.is_finite(), "{figure}");
    }
    for figure in ["accuracy", "ece", "loss"] {
        assert!(outcome.last().estimate("reward", figure).value.is_finite(), "{figure}");
    }
}

#[test]
fn with_swapped_preferences_training_runs_backwards() {
    let outcome = learning().set("controls.swap_preferences=true").finish();
    assert!(gold_change(&outcome).is_under(0.0), "{}", outcome.json);
    assert!(fresh_accuracy(&outcome).1 < 0.5, "{}", outcome.json);
}

#[test]
fn on_the_worst_of_n_gold_falls() {
    let outcome = learning().set("controls.select_worst=true").finish();
    assert!(gold_change(&outcome).is_under(0.0), "{}", outcome.json);
    assert!(outcome.last().estimate("policy", "reward_gain").is_under(0.0), "{}", outcome.json);
}

#[test]
fn the_same_job_twice_gives_the_same_weights() {
    let run = || Run::letters().ranks(2).finish().weights();
    assert!(run() == run(), "the final weights differ");
}

#[test]
fn another_seed_gives_other_weights() {
    let run = |seed: u32| Run::letters().ranks(1).set(&format!("seed={seed}")).finish().weights();
    assert!(run(1) != run(2), "the seed changes nothing");
}

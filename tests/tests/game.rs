//! The game end to end: it learns, its controls do not, and the same job gives the same bits.

use std::path::Path;
use std::process::Command;

use foil_tests::{Outcome, Run};
use serde_json::Value;

/// Large enough to learn in a minute.
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

/// Gold rises by more than three standard errors of the difference.
fn gold_rises(outcome: &Outcome) -> bool {
    let (start, end) = (outcome.start_gold(), outcome.last().estimate("policy", "gold_mean"));
    end.value - start.value > 3.0 * start.se.hypot(end.se)
}

/// The reward model tells fresh golden answers from samples: above chance by more than three standard errors.
fn tells_fresh_pairs(outcome: &Outcome) -> bool {
    let accuracy = outcome.last().estimate("reward", "fresh_accuracy");
    accuracy.value - 0.5 > 3.0 * accuracy.se
}

/// `foil conform` finds no fault in a result by its files and by Foil. Without a Python it passes nothing of
/// transformers', and says so.
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
fn the_game_raises_gold_and_tells_golden_from_fresh_samples() {
    let run = learning();
    let outcome = run.finish();
    assert_eq!(outcome.json["state"], "succeeded");
    assert_eq!(outcome.rounds.len(), 2);
    assert_conforms(&outcome.artifact("policy"));
    assert_conforms(&outcome.artifact("reward"));
    assert!(gold_rises(&outcome), "{}", outcome.json);
    assert!(tells_fresh_pairs(&outcome), "{}", outcome.json);
    for figure in ["reward_mean", "kl", "length_mean", "truncated_rate"] {
        assert!(outcome.last().estimate("policy", figure).value.is_finite(), "{figure}");
    }
    for figure in ["accuracy", "ece", "loss"] {
        assert!(outcome.last().estimate("reward", figure).value.is_finite(), "{figure}");
    }
}

#[test]
fn with_swapped_preferences_the_game_fails_both_assertions() {
    let outcome = learning().set("controls.swap_preferences=true").finish();
    assert!(!gold_rises(&outcome), "{}", outcome.json);
    assert!(!tells_fresh_pairs(&outcome), "{}", outcome.json);
}

#[test]
fn on_the_worst_of_n_gold_does_not_rise() {
    let outcome = learning().set("controls.select_worst=true").finish();
    assert!(!gold_rises(&outcome), "{}", outcome.json);
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

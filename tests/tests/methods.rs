//! Every policy method and every reward loss end to end on the small game, and what they promise.

use foil_tests::{Outcome, Run};

fn run(settings: &[&str]) -> Outcome {
    let outcome = Run::letters().ranks(2).set_all(settings).finish();
    assert_eq!(outcome.json["state"], "succeeded");
    outcome
}

/// A figure of the last round.
fn figure(outcome: &Outcome, side: &str, name: &str) -> f64 {
    outcome.last().estimate(side, name).value
}

#[test]
fn every_policy_method_moves_the_policy() {
    for (method, figures) in [
        ("rrhf", &["train_ranking", "train_best_nll"][..]),
        ("ipo", &["train_preferred_share", "train_log_ratio_margin"]),
        ("grpo", &["train_clipped_share"]),
        ("rloo", &["train_clipped_share"]),
    ] {
        let outcome = run(&[&format!("policy_step.method={method}")]);
        assert!(figure(&outcome, "policy", "kl") > 0.0, "{method}: {}", outcome.json);
        assert!(figure(&outcome, "policy", "drift_mean") < 1e-5, "{method}: {}", outcome.json);
        for name in figures.iter().chain(&["train_loss", "gold_mean", "reward_mean"]) {
            assert!(figure(&outcome, "policy", name).is_finite(), "{method}: {}", outcome.json);
        }
    }
}

#[test]
fn dpo_starts_every_round_at_ln_2() {
    let outcome = run(&["rounds=2", "policy_step.method=dpo", "policy_step.learning_rate=2e-4"]);
    for round in &outcome.rounds {
        let first_loss = round.estimate("policy", "train_first_loss").value;
        assert!((first_loss - std::f64::consts::LN_2).abs() < 1e-5, "{}", outcome.json);
    }
    assert!(figure(&outcome, "policy", "train_loss") < std::f64::consts::LN_2);
}

#[test]
fn a_kl_term_is_measured_from_the_start_policy() {
    let priced = ["rounds=2", "policy_step.method=grpo", "policy_step.kl_weight=0.1"];
    let from_start = run(&[&priced[..], &["policy_step.reference=initial"]].concat());
    assert!(figure(&from_start, "policy", "train_kl_reference") > 0.0, "{}", from_start.json);
}

#[test]
fn golden_answers_are_told_from_samples_by_any_loss() {
    for settings in [
        &["reward_step.loss=wgan", "reward_step.weight_clip=0.1"][..],
        &["reward_step.loss=gail", "reward_step.human_weight=0"],
        &["reward_step.label_smoothing=0.1", "reward_step.centring=0.01", "reward_step.margin=true"],
    ] {
        let outcome = run(&[settings, &["reward_step.epochs=4"]].concat());
        assert!(figure(&outcome, "reward", "fresh_accuracy") > 0.5, "{settings:?}: {}", outcome.json);
    }
}

#[test]
fn a_rank_killed_in_the_reference_phase_changes_no_bit() {
    let job = || Run::letters().ranks(2).set("policy_step.method=dpo");
    let quiet = job().finish().weights();
    let run = job();
    let once = run.scratch().join("killed").to_string_lossy().into_owned();
    let killed = run.env("FOIL_FAILPOINT", "phase.reference=kill@1").env("FOIL_FAILPOINT_ONCE", once);
    assert!(killed.finish().weights() == quiet, "the final weights differ");
    assert!(killed.scratch().join("killed").exists(), "no rank was killed");
}

//! Compares objectives for rewards and policies with TRL's trainers and with formulas, in fp64
//! (scripts/fixtures/objectives.py).

use foil_common::spec::{BradleyTerry, ImportanceSampling, Pairing, Reduction};
use serde_json::Value;
use tch::Tensor;

use super::advantage::{centered, group_advantages, leave_one_out, penalized_rewards};
use super::pairing::{Sides, pairs};
use super::policy::{best_of, dpo_loss, ipo_loss, log_ratio, mean_log_prob, rrhf_terms, simpo_loss};
use super::reward::{ScoredPairs, bradley_terry, gail, wgan};
use super::surrogate::{Denominator, Rollouts, kl_estimate, sequence_surrogate, token_surrogate};

const BOUND: f64 = 1e-9;

fn rewards_fixture() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/train/reward_objectives.json")).unwrap()
}

fn policies_fixture() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/train/policy_objectives.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn number(case: &Value, field: &str) -> f64 {
    case[field].as_f64().unwrap()
}

fn leaf(value: &Value) -> Tensor {
    Tensor::from_slice(&numbers(value)).set_requires_grad(true)
}

/// One tensor per completion.
fn completions(value: &Value) -> Vec<Tensor> {
    value.as_array().unwrap().iter().map(leaf).collect()
}

/// The cases of one oracle, at least one.
fn cases<'a>(cases: &'a Value, oracle: &str) -> Vec<&'a Value> {
    let found: Vec<&Value> =
        cases.as_array().unwrap().iter().filter(|case| case["oracle"] == oracle).collect();
    assert!(!found.is_empty(), "no case of {oracle}");
    found
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < BOUND, "{found} not {expected}");
}

fn assert_all_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).for_each(|(found, expected)| assert_near(*found, *expected));
}

/// The oracle's loss is a mean over `rows`, Foil's a sum; the same holds for the gradients.
fn assert_loss(loss: &Tensor, leaves: &[Tensor], case: &Value, rows: f64, expected: &[Vec<f64>]) {
    assert_near(loss.double_value(&[]) / rows, number(case, "loss"));
    let gradients = Tensor::run_backward(&[loss / rows], leaves, false, false);
    for (gradient, expected) in gradients.iter().zip(expected) {
        assert_all_near(&Vec::<f64>::try_from(gradient).unwrap(), expected);
    }
}

fn check_pairs(case: &Value, rows: f64, loss: impl Fn(&ScoredPairs<'_>) -> Tensor) {
    let leaves = [leaf(&case["chosen"]), leaf(&case["rejected"])];
    let margins = case["margins"].as_array().map(|_| Tensor::from_slice(&numbers(&case["margins"])));
    let weights = match case["weights"].as_array() {
        Some(_) => Tensor::from_slice(&numbers(&case["weights"])),
        None => leaves[0].ones_like(),
    };
    let [chosen, rejected] = &leaves;
    let loss = loss(&ScoredPairs { chosen, rejected, margins: margins.as_ref(), weights: &weights });
    let expected = [numbers(&case["chosen_grad"]), numbers(&case["rejected_grad"])];
    assert_loss(&loss, &leaves, case, rows, &expected);
}

fn check_bradley_terry(oracle: &str) {
    for case in cases(&rewards_fixture()["bradley_terry"], oracle) {
        let (label_smoothing, center_rewards_coefficient) =
            (number(case, "label_smoothing"), number(case, "center_rewards_coefficient"));
        let settings = BradleyTerry { label_smoothing, center_rewards_coefficient, margin: true };
        check_pairs(case, number(case, "rows"), |pairs| bradley_terry(&settings, pairs));
    }
}

#[test]
fn oracle_trl_reward_trainer_bradley_terry_with_margin_and_centring() {
    check_bradley_terry("trl");
}

#[test]
fn oracle_openrlhf_pair_wise_loss() {
    check_bradley_terry("open_rlhf");
}

#[test]
fn oracle_formula_label_smoothing() {
    check_bradley_terry("formula");
}

#[test]
fn oracle_formula_wgan_and_gail() {
    let fixture = rewards_fixture();
    check_pairs(&fixture["wgan"], 1.0, wgan);
    check_pairs(&fixture["gail"], 1.0, gail);
}

fn policy_gradients(case: &Value) -> Vec<Vec<f64>> {
    case["policy_grad"].as_array().unwrap().iter().map(numbers).collect()
}

fn reduction(case: &Value, field: &str) -> Reduction {
    if case[field] == "mean" { Reduction::Mean } else { Reduction::Sum }
}

/// The first half of the fixture's completions is chosen, the other half rejected.
fn check_preferences(oracle: &str) {
    for case in cases(&policies_fixture()["preferences"], oracle) {
        let (policy, reference) = (completions(&case["policy"]), completions(&case["reference"]));
        let reduction = reduction(case, "log_ratio");
        let ratio =
            |(policy, reference): (&Tensor, &Tensor)| log_ratio(policy, &reference.detach(), reduction);
        let ratios = Tensor::stack(&policy.iter().zip(&reference).map(ratio).collect::<Vec<_>>(), 0);
        let halves = ratios.view([2, -1]);
        let (chosen, rejected, beta) = (halves.get(0), halves.get(1), number(case, "beta"));
        let loss = match case["objective"].as_str() {
            Some("dpo") => dpo_loss(&chosen, &rejected, beta, number(case, "label_smoothing")),
            _ => ipo_loss(&chosen, &rejected, beta),
        };
        assert_loss(&loss, &policy, case, number(case, "rows"), &policy_gradients(case));
    }
}

#[test]
fn oracle_trl_dpo_trainer_sigmoid_sigmoid_norm_and_ipo() {
    check_preferences("trl");
}

#[test]
fn oracle_openrlhf_dpo_loss_label_smoothing_and_summed_ipo() {
    check_preferences("open_rlhf");
}

/// The first half of the fixture's completions is chosen, the other half rejected.
#[test]
fn oracle_trl_cpo_trainer_simpo() {
    for case in cases(&policies_fixture()["simpo"], "trl") {
        let policy = completions(&case["policy"]);
        let means = Tensor::stack(&policy.iter().map(mean_log_prob).collect::<Vec<_>>(), 0).view([2, -1]);
        let loss = simpo_loss(&means.get(0), &means.get(1), number(case, "beta"), number(case, "gamma"));
        assert_loss(&loss, &policy, case, number(case, "rows"), &policy_gradients(case));
    }
}

#[test]
fn oracle_formula_rrhf() {
    for case in cases(&policies_fixture()["rrhf"], "formula") {
        let (policy, rewards) = (completions(&case["policy"]), numbers(&case["rewards"]));
        let texts = vec!["a completion"; rewards.len()];
        let best = best_of(&rewards, &texts).unwrap();
        let pairs = pairs(&rewards, &texts, Pairing::All);
        assert_eq!(pairs.len(), 14, "6 completions, two of them equal");
        let (ranking, nll) =
            rrhf_terms(&policy, &Sides::new(&pairs, tch::Device::Cpu), best, reduction(case, "nll"));
        let loss = ranking * number(case, "ranking_weight") + nll;
        assert_loss(&loss, &policy, case, 1.0, &policy_gradients(case));
    }
}

/// Log-probabilities in fp64, which a single-precision artifact could not hold.
fn detached(value: &Value) -> Vec<Tensor> {
    completions(value).iter().map(Tensor::detach).collect()
}

#[test]
fn oracle_trl_grpo_trainer() {
    let fixture = policies_fixture();
    let cases_of = |name: &str| cases(&fixture[name], "trl").into_iter();
    for case in cases_of("grpo").chain(cases_of("grpo_options")) {
        let (policy, old) = (completions(&case["policy"]), detached(&case["old_log_probs"]));
        let rewards = numbers(&case["rewards"]);
        let advantages = match case["scale_rewards"].as_str() {
            Some("group") => group_advantages(&rewards),
            _ => centered(&rewards),
        };
        assert_all_near(&advantages, &numbers(&case["advantages"]));
        let rollouts = Rollouts { log_probs: &policy, old_log_probs: &old, advantages: &advantages };
        let denominator = match case["loss_type"].as_str() {
            Some("grpo") => Denominator::Length,
            _ => Denominator::Constant(number(case, "max_new_tokens")),
        };
        let level = match case["importance_sampling_level"].as_str() {
            Some("token") => ImportanceSampling::Token,
            _ => ImportanceSampling::Sequence,
        };
        let kl = kl_estimate(&policy, &detached(&case["reference"]), denominator);
        let surrogate = token_surrogate(&rollouts, number(case, "epsilon"), level, denominator);
        let loss = surrogate.loss + kl * number(case, "beta");
        assert_loss(&loss, &policy, case, number(case, "rows"), &policy_gradients(case));
    }
}

#[test]
fn oracle_trl_rloo_trainer() {
    for case in cases(&policies_fixture()["rloo"], "trl") {
        let (policy, old) = (completions(&case["policy"]), detached(&case["old_log_probs"]));
        let expected = numbers(&case["advantages"]);
        let single = |field: &str| -> Vec<Vec<f32>> {
            let rows = case[field].as_array().unwrap().iter();
            rows.map(|row| numbers(row).into_iter().map(|number| number as f32).collect()).collect()
        };
        let (rewards, weight) = (numbers(&case["rewards"]), number(case, "beta"));
        let rewards = penalized_rewards(&rewards, &single("old_log_probs"), &single("reference"), weight);
        for (found, expected) in leave_one_out(&rewards).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} not {expected}: more than fp32 explains");
        }
        let rollouts = Rollouts { log_probs: &policy, old_log_probs: &old, advantages: &expected };
        let loss = sequence_surrogate(&rollouts, number(case, "epsilon")).loss;
        assert_loss(&loss, &policy, case, number(case, "rows"), &policy_gradients(case));
    }
}

//! Compares losses, log-probabilities and divergences with PyTorch in fp64 (scripts/fixtures/train.py).

use foil_common::spec::BradleyTerry;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::likelihood::{Prediction, log_probs, nll};
use super::reward::{ScoredPairs, bradley_terry};
use crate::evaluate::token_kl;

const BOUND: f64 = 1e-9;

fn fixture() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/train/objectives.json")).unwrap()
}

fn tensor(value: &Value, shape: &[i64]) -> Tensor {
    let numbers: Vec<f64> = value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    Tensor::from_slice(&numbers).view(shape)
}

fn leaf(value: &Value, shape: &[i64]) -> Tensor {
    tensor(value, shape).set_requires_grad(true)
}

fn assert_close(found: &Tensor, expected: &Value) {
    let apart = (found.detach().view(-1) - tensor(expected, &[-1])).abs().max().double_value(&[]);
    assert!(apart < BOUND, "{apart} apart");
}

#[test]
fn bradley_terry_is_pytorchs() {
    let case = &fixture()["bradley_terry"];
    let (chosen, rejected) = (leaf(&case["chosen"], &[-1]), leaf(&case["rejected"], &[-1]));
    let weights = tensor(&case["weights"], &[-1]);
    let pairs = ScoredPairs { chosen: &chosen, rejected: &rejected, margins: None, weights: &weights };
    let loss = bradley_terry(&BradleyTerry::default(), &pairs);
    loss.backward();
    assert!((loss.double_value(&[]) - case["loss"].as_f64().unwrap()).abs() < BOUND);
    assert_close(&chosen.grad(), &case["chosen_grad"]);
    assert_close(&rejected.grad(), &case["rejected_grad"]);
}

#[test]
fn likelihood_matches_pytorch() {
    let case = &fixture()["likelihood"];
    let size = |name: &str| case[name].as_i64().unwrap();
    let hidden = leaf(&case["hidden"], &[size("tokens"), size("width")]);
    let head = leaf(&case["head"], &[size("vocabulary"), size("width")]);
    let targets = tensor(&case["targets"], &[-1]).to_kind(Kind::Int64);
    let prediction = Prediction { hidden: &hidden, targets: &targets, head: &head, compute: Kind::Double };
    nll(&prediction).unwrap().backward();
    assert_close(&hidden.grad(), &case["hidden_grad"]);
    assert_close(&head.grad(), &case["head_grad"]);
    assert_close(&log_probs(&prediction).unwrap(), &case["log_probs"]);
}

#[test]
fn divergence_is_pytorchs() {
    let case = &fixture()["kl"];
    let shape = [case["positions"].as_i64().unwrap(), case["vocabulary"].as_i64().unwrap()];
    let kl = token_kl(&tensor(&case["policy"], &shape), &tensor(&case["reference"], &shape));
    assert_close(&kl, &case["kl"]);
}

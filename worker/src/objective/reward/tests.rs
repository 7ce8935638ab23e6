use foil_common::spec::{BradleyTerry, Gail, RewardLoss, Wgan};
use tch::{Kind, Tensor};

use super::{ScoredPairs, bradley_terry, gail, objective_of, pair_loss, wgan};

/// The loss of the chosen scores against zeros.
fn against_zeros(chosen: &Tensor, weights: &Tensor, loss: impl Fn(&ScoredPairs<'_>) -> Tensor) -> Tensor {
    let rejected = chosen.zeros_like();
    loss(&ScoredPairs { chosen, rejected: &rejected, margins: None, weights })
}

const PLAIN: BradleyTerry =
    BradleyTerry { label_smoothing: 0.0, center_rewards_coefficient: 0.0, margin: false };

fn plain(pairs: &ScoredPairs<'_>) -> Tensor {
    bradley_terry(&PLAIN, pairs)
}

#[test]
fn loss_and_gradient_follow_the_formula() {
    let differences = [-3.0, -0.5, 0.0, 1e-9, 0.25, 7.0, 25.0];
    let weights = [1.0, 0.25, 1.0, 2.0, 0.25, 0.0, 1.0];
    let chosen = Tensor::from_slice(&differences).set_requires_grad(true);
    let loss = against_zeros(&chosen, &Tensor::from_slice(&weights), plain);
    loss.backward();
    let rows = differences.iter().zip(weights);
    let expected: f64 = rows.map(|(d, w): (&f64, f64)| w * (-d).exp().ln_1p()).sum();
    assert!((loss.double_value(&[]) - expected).abs() < 1e-9);
    for (row, (d, w)) in differences.iter().zip(weights).enumerate() {
        let gradient = -w / (1.0 + f64::exp(*d));
        assert!((chosen.grad().double_value(&[row as i64]) - gradient).abs() < 1e-12);
    }
}

#[test]
fn huge_differences_keep_finite_losses_and_gradients() {
    let chosen = Tensor::from_slice(&[-1e4_f32, 1e4]).set_requires_grad(true);
    let weights = chosen.ones_like();
    let loss = against_zeros(&chosen, &weights, plain);
    loss.backward();
    assert_eq!(loss.double_value(&[]), 1e4);
    assert_eq!(Vec::<f32>::try_from(chosen.grad()).unwrap(), [-1.0, 0.0]);
    let smooth = BradleyTerry { label_smoothing: 0.25, ..PLAIN };
    let smooth = against_zeros(&chosen, &weights, |pairs| bradley_terry(&smooth, pairs)).double_value(&[]);
    assert_eq!(smooth, 0.75 * 1e4 + 0.25 * 1e4);
    let discriminated = against_zeros(&chosen, &weights, gail).double_value(&[]);
    assert!((discriminated - 1e4 - 2.0 * std::f64::consts::LN_2).abs() < 1e-2);
    assert_eq!(against_zeros(&chosen, &weights, wgan).double_value(&[]), 0.0);
}

#[test]
fn smoothing_moves_the_minimum_to_the_smoothed_odds() {
    // σ(d) = 1 − ε at the minimum, so the gradient vanishes at d = log((1 − ε) / ε) + m.
    let (epsilon, margin) = (0.1_f64, 0.5);
    let chosen = Tensor::from_slice(&[((1.0 - epsilon) / epsilon).ln() + margin]).set_requires_grad(true);
    let margins = Tensor::from_slice(&[margin]);
    let settings = BradleyTerry { label_smoothing: epsilon, ..PLAIN };
    let loss = against_zeros(&chosen, &Tensor::from_slice(&[1.0]), |pairs| {
        bradley_terry(&settings, &ScoredPairs { margins: Some(&margins), ..*pairs })
    });
    loss.backward();
    assert!(chosen.grad().double_value(&[0]).abs() < 1e-12);
}

#[test]
fn human_pairs_are_ranked_by_bradley_terry_in_every_loss() {
    let (chosen, rejected) = (Tensor::from_slice(&[1.0, 2.0, -1.0]), Tensor::from_slice(&[0.5, 3.0, 0.0]));
    let (weights, golden) = (Tensor::from_slice(&[1.0, 0.5, 0.5]), Tensor::from_slice(&[0.0, 1.0, 1.0]));
    let pairs = ScoredPairs { chosen: &chosen, rejected: &rejected, margins: None, weights: &weights };
    let loss = |loss: RewardLoss| pair_loss(objective_of(&loss), &pairs, &golden).double_value(&[]);
    let centered = BradleyTerry { center_rewards_coefficient: 0.1, ..PLAIN };
    let wgan = |human| RewardLoss::Wgan(Wgan { weight_clip: None, human });
    let only_golden = &weights * &golden;
    let discriminated =
        pair_loss(&Gail, &ScoredPairs { weights: &only_golden, ..pairs }, &golden).double_value(&[]);
    let softplus = |x: f64| x.exp().ln_1p();
    let human = softplus(-0.5);
    let ranked = human + 0.5 * (softplus(1.0) + softplus(1.0));
    let golden_loss = 0.5 * (softplus(-2.0) + softplus(3.0) + softplus(1.0) + softplus(0.0));
    let off_center = 0.1 * (1.5 * 1.5 + 0.5 * 25.0 + 0.5);
    for (found, expected) in [
        (loss(RewardLoss::BradleyTerry(PLAIN)), ranked),
        (loss(RewardLoss::BradleyTerry(centered)), ranked + off_center),
        (loss(wgan(PLAIN)), human + 0.5 * (1.0 + 1.0)),
        (loss(wgan(centered)), human + 1.0 + off_center),
        (discriminated, golden_loss),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found} not {expected}");
    }
}

#[test]
fn narrow_scores_are_summed_in_fp32() {
    let zeros = Tensor::zeros([512], (Kind::BFloat16, tch::Device::Cpu));
    let ones = Tensor::ones([512], (Kind::Float, tch::Device::Cpu));
    let losses = [(against_zeros(&zeros, &ones, plain), 1.0), (against_zeros(&zeros, &ones, gail), 2.0)];
    for (loss, each) in losses {
        assert_eq!(loss.kind(), Kind::Float);
        assert!((loss.double_value(&[]) - each * 512.0 * std::f64::consts::LN_2).abs() < 1e-3);
    }
}

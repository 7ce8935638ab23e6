//! Tests with groups of made-up completions: which ones are read, and their losses.

use foil_common::selection::Part;
use foil_common::spec::{
    Dpo, Grpo, GrpoLossType, ImportanceSampling, Ipo, KlPenalty, Reduction, ReferencePolicy, Rejection, Rloo,
    Rrhf, ScaleRewards,
};

use super::super::advantage::{group_advantages, leave_one_out};
use super::*;

const DPO: Dpo = Dpo {
    beta: 0.1,
    label_smoothing: 0.0,
    pairing: Pairing::BestWorst,
    log_ratio: Reduction::Sum,
    reference: ReferencePolicy::RoundStart,
};
const IPO: Ipo = Ipo {
    beta: 0.1,
    pairing: Pairing::All,
    log_ratio: Reduction::Sum,
    reference: ReferencePolicy::RoundStart,
};
const RRHF: Rrhf = Rrhf { ranking_weight: 2.0, nll: Reduction::Mean };
const RLOO: Rloo = Rloo { epsilon: 0.2, kl: None };
const LENGTHS: [usize; 5] = [2, 3, 0, 1, 2];

fn kl(beta: f64) -> Option<KlPenalty> {
    Some(KlPenalty { beta, reference: ReferencePolicy::Initial })
}

/// The third has no tokens. The last is blank and has the highest reward.
fn completions() -> [ScoredCompletion<'static>; 5] {
    let (texts, rewards) = (["a", "b", "", "c", " "], [1.0, 3.0, 9.0, 2.0, 8.0]);
    std::array::from_fn(|i| ScoredCompletion { text: texts[i], tokens: LENGTHS[i], reward: rewards[i] })
}

/// The policy's log-probabilities of the selected completions, and the same values as constants.
fn at_rest(selected: &[usize]) -> (Vec<Tensor>, Vec<FixedLogProbs>) {
    let numbers = |&completion: &usize| -> Vec<f32> {
        (0..LENGTHS[completion]).map(|token| -0.5 * (completion + token + 1) as f32).collect()
    };
    let fixed =
        |completion| FixedLogProbs { reference: numbers(completion), old_policy: numbers(completion) };
    let policy = |completion| Tensor::from_slice(&numbers(completion)).set_requires_grad(true);
    (selected.iter().map(policy).collect(), selected.iter().map(fixed).collect())
}

fn group_loss(
    objective: &dyn PolicyObjective,
    completions: &[ScoredCompletion<'_>],
    fixed: &[FixedLogProbs],
) -> GroupLoss {
    let selected = objective.select(completions);
    objective.group_loss(&Group {
        completions,
        selected: &selected,
        fixed,
        max_new_tokens: 4,
        device: Device::Cpu,
    })
}

fn group(objective: &dyn PolicyObjective) -> (GroupLoss, Vec<Tensor>) {
    let (policy, fixed) = at_rest(&objective.select(&completions()));
    (group_loss(objective, &completions(), &fixed), policy)
}

fn loss(objective: &dyn PolicyObjective) -> (f64, f64) {
    let (group, policy) = group(objective);
    (group.loss(&policy).loss.double_value(&[]), group.weight())
}

#[test]
fn a_method_reads_the_completions_it_compares() {
    let read = |objective: &dyn PolicyObjective| objective.select(&completions());
    assert_eq!(read(&Rejection), [1]);
    assert_eq!(read(&DPO), [0, 1], "best and worst");
    assert_eq!(read(&IPO), [0, 1, 3], "the blank is better than all: no pair");
    assert_eq!(read(&RRHF), [0, 1, 3]);
    assert_eq!(read(&Grpo::default()), [0, 1, 3, 4]);
    let equal = completions().map(|completion| ScoredCompletion { reward: 1.0, ..completion });
    assert_eq!(DPO.select(&equal), [] as [usize; 0]);
    assert_eq!(RRHF.select(&equal), [0]);
}

#[test]
fn rejection_sampling_is_fine_tuning_on_the_best() {
    let (found, tokens) = loss(&Rejection);
    assert_eq!((found, tokens), (1.0 + 1.5 + 2.0, 3.0), "the second completion's tokens");
}

#[test]
fn dpo_loses_log_2_a_pair_where_policy_and_reference_agree() {
    let (found, pairs) = loss(&DPO);
    assert!((found - std::f64::consts::LN_2).abs() < 1e-6 && pairs == 1.0);
    let (found, pairs) = loss(&Dpo { pairing: Pairing::All, label_smoothing: 0.1, ..DPO });
    assert!((found - 3.0 * std::f64::consts::LN_2).abs() < 1e-6 && pairs == 3.0);
    let (found, pairs) = loss(&IPO);
    assert!((found - 75.0).abs() < 1e-4 && pairs == 3.0, "{found}: each pair is 1/2β = 5 off");
}

#[test]
fn a_preference_pushes_the_chosen_completion_up_and_the_other_down() {
    let (group, policy) = group(&DPO);
    let gradients = Tensor::run_backward(&[group.loss(&policy).loss], &policy, false, false);
    let [rejected, chosen] = &gradients[..] else { panic!() };
    // −β σ(0) for every token of completion 1, β σ(0) for those of completion 0.
    assert_eq!(Vec::<f32>::try_from(chosen).unwrap(), [-0.05; 3]);
    assert_eq!(Vec::<f32>::try_from(rejected).unwrap(), [0.05; 2]);
}

#[test]
fn rrhf_ranks_by_mean_likelihood_and_imitates_the_best() {
    // Means −.75, −1.5 and −2 of completions 0, 1 and 3; completion 1 is the best, then 3, then 0.
    let expected = 2.0 * ((1.5 - 0.75) + (2.0 - 0.75)) + 1.5;
    let (found, prompts) = loss(&RRHF);
    assert!((found - expected).abs() < 1e-6 && prompts == 1.0, "{found} not {expected}");
}

#[test]
fn policy_gradients_count_every_completion_and_read_those_with_tokens() {
    let rewards = completions().map(|completion| completion.reward);
    let cases: [(Vec<f64>, &dyn PolicyObjective); 4] = [
        (group_advantages(&rewards), &Grpo::default()),
        (group_advantages(&rewards), &Grpo { kl: kl(0.5), ..Grpo::default() }),
        (leave_one_out(&rewards), &RLOO),
        (leave_one_out(&rewards), &Rloo { kl: kl(0.5), ..RLOO }),
    ];
    for (number, (advantages, objective)) in cases.into_iter().enumerate() {
        let (found, weight) = loss(objective);
        let expected: f64 = -[0, 1, 3, 4].map(|completion| advantages[completion]).iter().sum::<f64>();
        assert!((found - expected).abs() < 1e-5, "case {number}: {found} not {expected}");
        assert_eq!(weight, 5.0);
    }
}

#[test]
fn dr_grpo_divides_by_the_longest_completion_and_by_no_deviation() {
    let rewards = completions().map(|completion| completion.reward);
    let mean = rewards.iter().sum::<f64>() / 5.0;
    let unbiased =
        Grpo { loss_type: GrpoLossType::DrGrpo, scale_rewards: ScaleRewards::None, ..Grpo::default() };
    let tokens = |completion: usize| LENGTHS[completion] as f64;
    let expected = |level| {
        let terms = [0, 1, 3, 4].map(|completion| (rewards[completion] - mean) * tokens(completion) / 4.0);
        let (found, weight) = loss(&Grpo { importance_sampling_level: level, ..unbiased });
        (found, weight, -terms.iter().sum::<f64>())
    };
    // With the policy unchanged every ratio is 1, at either level.
    for level in [ImportanceSampling::Token, ImportanceSampling::Sequence] {
        let (found, weight, expected) = expected(level);
        assert!((found - expected).abs() < 1e-5 && weight == 5.0, "{level}: {found} not {expected}");
    }
}

#[test]
fn rloo_subtracts_the_divergence_before_it_compares() {
    let completions: [ScoredCompletion<'_>; 2] =
        std::array::from_fn(|_| ScoredCompletion { text: "a", tokens: 1, reward: 1.0 });
    let fixed = [-1.0, -2.0].map(|old| FixedLogProbs { reference: vec![-2.0], old_policy: vec![old] });
    let policy = [-1.0_f32, -2.0].map(|number| Tensor::from_slice(&[number]).set_requires_grad(true));
    let group = group_loss(&Rloo { kl: kl(1.0), ..RLOO }, &completions, &fixed);
    let gradients = Tensor::run_backward(&[group.loss(&policy).loss], &policy, false, false);
    // The penalty of the first is 1: rewards 0 and 1, advantages −1 and 1.
    assert_eq!(gradients[0].double_value(&[0]), 1.0);
    assert_eq!(gradients[1].double_value(&[0]), -1.0);
}

#[test]
fn metrics_are_the_announced_ones_and_sums_that_the_weights_divide() {
    let metrics = |objective: &dyn PolicyObjective| -> Vec<(&str, f64)> {
        let (group, policy) = group(objective);
        let sums = group.loss(&policy).metrics;
        let announced: Vec<&str> = objective.metrics().iter().map(|metric| metric.name).collect();
        assert_eq!(sums.names(), announced);
        announced.into_iter().zip(Vec::<f64>::try_from(sums.tensor()).unwrap()).collect()
    };
    assert_eq!(metrics(&Rejection), []);
    assert_eq!(metrics(&DPO), [("rewards/accuracies", 0.0), ("rewards/margins", 0.0)]);
    assert_eq!(metrics(&IPO), [("rewards/accuracies", 0.0), ("rewards/margins", 0.0)]);
    assert_eq!(metrics(&Grpo { kl: kl(0.5), ..Grpo::default() }), [("clip_fraction", 0.0), ("kl", 0.0)]);
    assert_eq!(metrics(&Grpo::default()), [("clip_fraction", 0.0)]);
    assert_eq!(metrics(&Rloo { kl: kl(0.5), ..RLOO }), [("clip_fraction", 0.0)]);
    assert_eq!(metrics(&RRHF), [("ranking_loss", 2.0), ("best_nll", 1.5)]);
}

#[test]
fn margins_are_of_implicit_rewards() {
    let (_, policy) = group(&DPO);
    let fixed = [0.0_f32, -5.0].map(|shift| {
        let numbers = |count: usize| vec![shift; count];
        FixedLogProbs { reference: numbers(if shift == 0.0 { 2 } else { 3 }), old_policy: vec![] }
    });
    let output = group_loss(&Dpo { beta: 0.5, ..DPO }, &completions(), &fixed).loss(&policy);
    // Log-ratios −1.5 − 0 of the rejected first and −4.5 + 15 of the chosen second; β times their difference.
    assert_eq!(Vec::<f64>::try_from(output.metrics.tensor()).unwrap(), [1.0, 0.5 * (10.5 + 1.5)]);
}

#[test]
fn the_completions_that_have_a_part_are_those_that_the_loss_reads() {
    let methods = [
        Method::Rejection(Rejection),
        Method::Rrhf(RRHF),
        Method::Dpo(DPO),
        Method::Dpo(Dpo { pairing: Pairing::TopBottom(2), ..DPO }),
        Method::Ipo(IPO),
        Method::Grpo(Grpo::default()),
        Method::Rloo(RLOO),
    ];
    for method in methods {
        let parts = foil_common::selection::parts(&method, &completions());
        let read: Vec<usize> = (0..parts.len()).filter(|index| parts[*index] != Part::Unused).collect();
        assert_eq!(read, objective_of(&method).select(&completions()), "{}", method.name());
    }
}

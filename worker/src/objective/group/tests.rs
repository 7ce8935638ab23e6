//! Groups of made-up answers: which are read, and what they cost.

use foil_common::spec::{KlPrice, ReferencePolicy};

use super::*;

const PREFERENCES: Preferences = Preferences {
    beta: 0.1,
    pairing: Pairing::BestWorst,
    log_ratio: Reduction::Sum,
    reference: ReferencePolicy::RoundStart,
};
const PLAIN: PolicyGradient = PolicyGradient { clip_ratio: 0.2, kl: None };
const RRHF: Method = Method::Rrhf { ranking_weight: 2.0, nll: Reduction::Mean };
const DPO: Method = Method::Dpo { preferences: PREFERENCES, label_smoothing: 0.0 };
const LENGTHS: [usize; 5] = [2, 3, 0, 1, 2];

/// The third has no tokens, the last is blank and pleases its judge most.
fn answers() -> [Judged<'static>; 5] {
    let (texts, rewards) = (["a", "b", "", "c", " "], [1.0, 3.0, 9.0, 2.0, 8.0]);
    std::array::from_fn(|i| Judged { text: texts[i], tokens: LENGTHS[i], reward: rewards[i] })
}

/// The policy's log-probabilities of the answers read, and the same as constants.
fn at_rest(read: &[usize]) -> (Vec<Tensor>, Vec<Compared>) {
    let numbers = |&answer: &usize| -> Vec<f32> {
        (0..LENGTHS[answer]).map(|token| -0.5 * (answer + token + 1) as f32).collect()
    };
    let compared = |answer| Compared { reference: numbers(answer), sampler: numbers(answer) };
    let policy = |answer| Tensor::from_slice(&numbers(answer)).set_requires_grad(true);
    (read.iter().map(policy).collect(), read.iter().map(compared).collect())
}

fn group(method: &Method) -> (Group, Vec<Tensor>) {
    let (policy, compared) = at_rest(&answers_read(method, &answers()));
    (Group::new(method, &answers(), &compared, Device::Cpu).unwrap(), policy)
}

fn loss(method: &Method) -> (f64, f64) {
    let (group, policy) = group(method);
    (group.loss(&policy).loss.double_value(&[]), group.weight())
}

#[test]
fn a_method_reads_the_answers_it_compares() {
    let read = |method: &Method| answers_read(method, &answers());
    assert_eq!(read(&Method::Rejection), [1]);
    assert_eq!(read(&DPO), [0, 1], "best and worst");
    let all = Preferences { pairing: Pairing::All, ..PREFERENCES };
    assert_eq!(read(&Method::Ipo { preferences: all }), [0, 1, 3], "the blank is better than all: no pair");
    assert_eq!(read(&RRHF), [0, 1, 3]);
    assert_eq!(read(&Method::Grpo(PLAIN)), [0, 1, 3, 4]);
    let equal = answers().map(|answer| Judged { reward: 1.0, ..answer });
    assert_eq!(answers_read(&DPO, &equal), [] as [usize; 0]);
    assert_eq!(answers_read(&RRHF, &equal), [0]);
    assert!(Group::new(&DPO, &equal, &[], Device::Cpu).is_none());
}

#[test]
fn dpo_loses_log_2_a_pair_where_policy_and_reference_agree() {
    let (found, pairs) = loss(&DPO);
    assert!((found - std::f64::consts::LN_2).abs() < 1e-6 && pairs == 1.0);
    let preferences = Preferences { pairing: Pairing::All, ..PREFERENCES };
    let (found, pairs) = loss(&Method::Dpo { preferences, label_smoothing: 0.1 });
    assert!((found - 3.0 * std::f64::consts::LN_2).abs() < 1e-6 && pairs == 3.0);
    let (found, pairs) = loss(&Method::Ipo { preferences });
    assert!((found - 75.0).abs() < 1e-4 && pairs == 3.0, "{found}: each pair is 1/2β = 5 off");
}

#[test]
fn a_preference_pulls_the_chosen_answer_up_and_the_other_down() {
    let (group, policy) = group(&DPO);
    let gradients = Tensor::run_backward(&[group.loss(&policy).loss], &policy, false, false);
    let [rejected, chosen] = &gradients[..] else { panic!() };
    // −β σ(0) for every token of answer 1, β σ(0) for those of answer 0.
    assert_eq!(Vec::<f32>::try_from(chosen).unwrap(), [-0.05; 3]);
    assert_eq!(Vec::<f32>::try_from(rejected).unwrap(), [0.05; 2]);
}

#[test]
fn rrhf_ranks_by_mean_likelihood_and_imitates_the_best() {
    // Means −.75, −1.5 and −2 of answers 0, 1 and 3; answer 1 is the best, then 3, then 0.
    let expected = 2.0 * ((1.5 - 0.75) + (2.0 - 0.75)) + 1.5;
    let (found, prompts) = loss(&RRHF);
    assert!((found - expected).abs() < 1e-6 && prompts == 1.0, "{found} not {expected}");
}

#[test]
fn policy_gradients_count_every_answer_and_read_those_with_tokens() {
    let rewards = answers().map(|answer| answer.reward);
    let kl = Some(KlPrice { weight: 0.5, reference: ReferencePolicy::Initial });
    for (advantages, method) in [
        (group_advantages(&rewards), Method::Grpo(PLAIN)),
        (group_advantages(&rewards), Method::Grpo(PolicyGradient { kl, ..PLAIN })),
        (leave_one_out(&rewards), Method::Rloo(PLAIN)),
        (leave_one_out(&rewards), Method::Rloo(PolicyGradient { kl, ..PLAIN })),
    ] {
        let (found, weight) = loss(&method);
        let expected: f64 = -[0, 1, 3, 4].map(|answer| advantages[answer]).iter().sum::<f64>();
        assert!((found - expected).abs() < 1e-5, "{method:?}: {found} not {expected}");
        assert_eq!(weight, 5.0);
    }
}

#[test]
fn rloo_pays_for_divergence_before_it_compares() {
    let kl = Some(KlPrice { weight: 1.0, reference: ReferencePolicy::Initial });
    let method = Method::Rloo(PolicyGradient { kl, ..PLAIN });
    let answers: [Judged<'_>; 2] = std::array::from_fn(|_| Judged { text: "a", tokens: 1, reward: 1.0 });
    let compared = [-1.0, -2.0].map(|sampler| Compared { reference: vec![-2.0], sampler: vec![sampler] });
    let policy = [-1.0_f32, -2.0].map(|number| Tensor::from_slice(&[number]).set_requires_grad(true));
    let group = Group::new(&method, &answers, &compared, Device::Cpu).unwrap();
    let gradients = Tensor::run_backward(&[group.loss(&policy).loss], &policy, false, false);
    // The first has paid 1: rewards 0 and 1, advantages −1 and 1.
    assert_eq!(gradients[0].double_value(&[0]), 1.0);
    assert_eq!(gradients[1].double_value(&[0]), -1.0);
}

#[test]
fn figures_are_sums_that_the_weights_divide() {
    let figures = |method: &Method| -> Vec<(&str, f64)> {
        let (group, policy) = group(method);
        let found = Vec::<f64>::try_from(group.loss(&policy).figures).unwrap();
        assert_eq!(found.len(), figure_names(method).len(), "{method:?}");
        figure_names(method).iter().copied().zip(found).collect()
    };
    assert_eq!(figure_names(&Method::Rejection), [] as [&str; 0]);
    assert_eq!(figures(&DPO), [("preferred_share", 0.0), ("log_ratio_margin", 0.0)]);
    let kl = Some(KlPrice { weight: 0.5, reference: ReferencePolicy::Initial });
    let priced = Method::Grpo(PolicyGradient { kl, ..PLAIN });
    assert_eq!(figures(&priced), [("clipped_share", 0.0), ("kl_reference", 0.0)]);
    assert_eq!(figures(&Method::Rloo(PolicyGradient { kl, ..PLAIN })), [("clipped_share", 0.0)]);
    assert_eq!(figures(&RRHF), [("ranking", 2.0), ("best_nll", 1.5)]);
}

//! What a method makes of one prompt's scored answers: which of them it reads, and a loss of their log-probabilities.

use foil_common::spec::{Method, Pairing, PolicyGradient, Preferences, Reduction};
use tch::{Device, Tensor};

use super::pairing::{Preference, pairs};
use super::policy_gradient::{self, Rollouts, group_advantages, leave_one_out, penalised_rewards};
use super::rrhf::Rrhf;
use super::{dpo, rejection};

/// An answer as its judges see it.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    pub text: &'a str,
    /// Tokens that it has to predict.
    pub tokens: usize,
    pub reward: f64,
}

/// Log-probabilities of one answer's tokens under what the policy is compared with; each empty where its method needs none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    /// log π_ref.
    pub reference: Vec<f32>,
    /// Those of the policy that drew the answer.
    pub sampler: Vec<f32>,
}

/// The answers to one prompt that a method reads, and their loss.
#[derive(Debug)]
pub struct Group {
    lesson: Lesson,
    weight: f64,
}

#[derive(Debug)]
enum Lesson {
    Imitate,
    Rank {
        objective: Rrhf,
        pairs: Vec<Preference>,
        best: usize,
    },
    Prefer {
        objective: Objective,
        log_ratio: Reduction,
        pairs: Vec<Preference>,
        reference: Vec<Tensor>,
    },
    Follow {
        objective: Ratios,
        advantages: Vec<f64>,
        sampler: Vec<Tensor>,
        clip_ratio: f64,
        kl: Option<KlTerm>,
    },
}

#[derive(Debug, Clone, Copy)]
enum Objective {
    Dpo { beta: f64, label_smoothing: f64 },
    Ipo { beta: f64 },
}

/// What a probability ratio is of.
#[derive(Debug, Clone, Copy)]
enum Ratios {
    Token,
    Sequence,
}

#[derive(Debug)]
struct KlTerm {
    weight: f64,
    reference: Vec<Tensor>,
}

/// The indices of the answers that `method` reads, in order; none where they teach it nothing.
///
/// An answer without tokens is never read. The best of them is never blank; see [`rejection::select`] and
/// [`pairs`].
pub fn answers_read(method: &Method, answers: &[Judged<'_>]) -> Vec<usize> {
    let mut read: Vec<usize> = match method {
        Method::Rejection => best(answers).into_iter().collect(),
        Method::Rrhf { .. } => ends(&preferences(answers, Pairing::All)).chain(best(answers)).collect(),
        Method::Dpo { preferences: settings, .. } | Method::Ipo { preferences: settings } => {
            ends(&preferences(answers, settings.pairing)).collect()
        }
        Method::Grpo(_) | Method::Rloo(_) => {
            (0..answers.len()).filter(|&answer| answers[answer].tokens > 0).collect()
        }
    };
    read.sort_unstable();
    read.dedup();
    read
}

impl Group {
    /// The loss of the answers that [`answers_read`] names. `compared` runs over them, in their order; each holds what
    /// the method compares with, as many numbers as the answer has tokens. `None` where no answer is read.
    pub fn new(
        method: &Method,
        answers: &[Judged<'_>],
        compared: &[Compared],
        device: Device,
    ) -> Option<Self> {
        let read = answers_read(method, answers);
        if read.is_empty() {
            return None;
        }
        let place = |answer: usize| read.binary_search(&answer).ok();
        let local = |pairing| -> Vec<Preference> {
            let found = preferences(answers, pairing).into_iter();
            let local = found.filter_map(|Preference { chosen, rejected }| {
                Some(Preference { chosen: place(chosen)?, rejected: place(rejected)? })
            });
            local.collect()
        };
        let constants = Constants { compared, device };
        let (lesson, weight) = match *method {
            Method::Rejection => (Lesson::Imitate, answers[read[0]].tokens as f64),
            Method::Rrhf { rank_weight, nll } => {
                let best = best(answers).and_then(place)?;
                let objective = Rrhf { rank_weight, nll };
                (Lesson::Rank { objective, pairs: local(Pairing::All), best }, 1.0)
            }
            Method::Dpo { preferences: Preferences { beta, pairing, log_ratio, .. }, label_smoothing } => {
                let objective = Objective::Dpo { beta, label_smoothing };
                constants.prefer(objective, log_ratio, local(pairing))
            }
            Method::Ipo { preferences: Preferences { beta, pairing, log_ratio, .. } } => {
                constants.prefer(Objective::Ipo { beta }, log_ratio, local(pairing))
            }
            Method::Grpo(settings) => {
                let rewards: Vec<f64> = answers.iter().map(|answer| answer.reward).collect();
                let advantages = picked(&group_advantages(&rewards), &read);
                let kl = settings.kl.map(|kl| KlTerm { weight: kl.weight, reference: constants.reference() });
                (constants.follow(Ratios::Token, advantages, settings, kl), answers.len() as f64)
            }
            Method::Rloo(settings) => {
                let weight = settings.kl.map_or(0.0, |kl| kl.weight);
                let advantages = leave_one_out(&constants.penalised(answers, &read, weight));
                let lesson = constants.follow(Ratios::Sequence, picked(&advantages, &read), settings, None);
                (lesson, answers.len() as f64)
            }
        };
        Some(Self { lesson, weight })
    }

    /// What the group adds to the denominator of a global batch's loss: its pairs (dpo, ipo), its answers, unread ones
    /// included (grpo, rloo), its best answer's tokens (rejection), or 1, so that the loss is a mean over prompts (rrhf).
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The group's loss, a sum: a scalar in fp32 (fp64 for fp64 log-probabilities). `log_probs` runs over the answers read,
    /// the policy's log-probabilities token by token, `[tokens]` each.
    ///
    /// # Panics
    /// Other answers than those read.
    pub fn loss(&self, log_probs: &[Tensor]) -> Tensor {
        match &self.lesson {
            Lesson::Imitate => -log_probs[0].sum(super::accumulation_kind(log_probs[0].kind())),
            Lesson::Rank { objective, pairs, best } => objective.loss(log_probs, pairs, *best),
            Lesson::Prefer { objective, log_ratio, pairs, reference } => {
                let ratio =
                    |answer: usize| dpo::log_ratio(&log_probs[answer], &reference[answer], *log_ratio);
                let stack = |ratios: Vec<Tensor>| Tensor::stack(&ratios, 0); // [pairs]
                let chosen = stack(pairs.iter().map(|pair| ratio(pair.chosen)).collect());
                let rejected = stack(pairs.iter().map(|pair| ratio(pair.rejected)).collect());
                match *objective {
                    Objective::Dpo { beta, label_smoothing } => {
                        dpo::dpo(&chosen, &rejected, beta, label_smoothing)
                    }
                    Objective::Ipo { beta } => dpo::ipo(&chosen, &rejected, beta),
                }
            }
            Lesson::Follow { objective, advantages, sampler, clip_ratio, kl } => {
                let rollouts = Rollouts { policy: log_probs, sampler, advantages };
                let loss = match objective {
                    Ratios::Token => policy_gradient::grpo(&rollouts, *clip_ratio),
                    Ratios::Sequence => policy_gradient::rloo(&rollouts, *clip_ratio),
                };
                match kl {
                    Some(KlTerm { weight, reference }) => {
                        loss + policy_gradient::kl_term(log_probs, reference) * *weight
                    }
                    None => loss,
                }
            }
        }
    }
}

/// What stays as it is while the policy learns.
struct Constants<'a> {
    compared: &'a [Compared],
    device: Device,
}

impl Constants<'_> {
    fn reference(&self) -> Vec<Tensor> {
        self.compared.iter().map(|answer| self.tensor(&answer.reference)).collect()
    }

    fn tensor(&self, log_probs: &[f32]) -> Tensor {
        Tensor::from_slice(log_probs).to_device(self.device)
    }

    fn prefer(&self, objective: Objective, log_ratio: Reduction, pairs: Vec<Preference>) -> (Lesson, f64) {
        let weight = pairs.len() as f64;
        (Lesson::Prefer { objective, log_ratio, pairs, reference: self.reference() }, weight)
    }

    fn follow(
        &self,
        objective: Ratios,
        advantages: Vec<f64>,
        settings: PolicyGradient,
        kl: Option<KlTerm>,
    ) -> Lesson {
        let sampler = self.compared.iter().map(|answer| self.tensor(&answer.sampler)).collect();
        Lesson::Follow { objective, advantages, sampler, clip_ratio: settings.clip_ratio, kl }
    }

    /// All answers' rewards, those of `read` less the price of their divergence; the others have no tokens to diverge by.
    fn penalised(&self, answers: &[Judged<'_>], read: &[usize], weight: f64) -> Vec<f64> {
        let mut rewards: Vec<f64> = answers.iter().map(|answer| answer.reward).collect();
        if weight == 0.0 {
            return rewards;
        }
        let sampler: Vec<&[f32]> = self.compared.iter().map(|answer| answer.sampler.as_slice()).collect();
        let reference: Vec<&[f32]> = self.compared.iter().map(|answer| answer.reference.as_slice()).collect();
        let paid = penalised_rewards(&picked(&rewards, read), &sampler, &reference, weight);
        read.iter().zip(paid).for_each(|(&answer, reward)| rewards[answer] = reward);
        rewards
    }
}

fn picked(values: &[f64], read: &[usize]) -> Vec<f64> {
    read.iter().map(|&answer| values[answer]).collect()
}

fn ends(pairs: &[Preference]) -> impl Iterator<Item = usize> {
    pairs.iter().flat_map(|pair| [pair.chosen, pair.rejected])
}

fn best(answers: &[Judged<'_>]) -> Option<usize> {
    let (rewards, texts) = comparable(answers);
    rejection::select(&rewards, &texts)
}

fn preferences(answers: &[Judged<'_>], pairing: Pairing) -> Vec<Preference> {
    let (rewards, texts) = comparable(answers);
    pairs(&rewards, &texts, pairing)
}

/// Rewards and texts. An answer without tokens has no likelihood: its reward is NaN, which nothing chooses.
fn comparable<'a>(answers: &[Judged<'a>]) -> (Vec<f64>, Vec<&'a str>) {
    let reward = |answer: &Judged<'_>| if answer.tokens == 0 { f64::NAN } else { answer.reward };
    answers.iter().map(|answer| (reward(answer), answer.text)).unzip()
}

#[cfg(test)]
mod tests {
    use foil_common::spec::{KlPrice, ReferencePolicy};

    use super::*;

    const PREFERENCES: Preferences = Preferences {
        beta: 0.1,
        pairing: Pairing::BestWorst,
        log_ratio: Reduction::Sum,
        reference: ReferencePolicy::RoundStart,
    };
    const PLAIN: PolicyGradient = PolicyGradient { clip_ratio: 0.2, kl: None };
    const RRHF: Method = Method::Rrhf { rank_weight: 2.0, nll: Reduction::Mean };
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
        (group.loss(&policy).double_value(&[]), group.weight())
    }

    #[test]
    fn a_method_reads_the_answers_it_compares() {
        let read = |method: &Method| answers_read(method, &answers());
        assert_eq!(read(&Method::Rejection), [1]);
        assert_eq!(read(&DPO), [0, 1], "best and worst");
        let all = Preferences { pairing: Pairing::All, ..PREFERENCES };
        assert_eq!(
            read(&Method::Ipo { preferences: all }),
            [0, 1, 3],
            "the blank is better than all: no pair"
        );
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
        let gradients = Tensor::run_backward(&[group.loss(&policy)], &policy, false, false);
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
        let (found, tokens) = loss(&Method::Rejection);
        assert!((found - 4.5).abs() < 1e-6 && tokens == 3.0);
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
        let gradients = Tensor::run_backward(&[group.loss(&policy)], &policy, false, false);
        // The first has paid 1: rewards 0 and 1, advantages −1 and 1.
        assert_eq!(gradients[0].double_value(&[0]), 1.0);
        assert_eq!(gradients[1].double_value(&[0]), -1.0);
    }
}

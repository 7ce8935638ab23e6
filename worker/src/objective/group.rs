//! What a method makes of one prompt's scored answers: which of them it reads, and a loss of their log-probabilities.

use foil_common::spec::{Method, Pairing, PolicyGradient, Preferences, Reduction};
use tch::{Device, Kind, Tensor, no_grad};

use super::pairing::{Preference, pairs, sides};
use super::policy_gradient::{self, Rollouts, group_advantages, leave_one_out, penalised_rewards};
use super::rrhf::Rrhf;
use super::{dpo, rejection};

#[cfg(test)]
mod tests;

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
    /// the method compares with, as many numbers as the answer has tokens.
    ///
    /// `None` where no answer is read, and for rejection: its one answer is fine-tuned on like any demonstration.
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
            Method::Rejection => return None,
            Method::Rrhf { ranking_weight, nll } => {
                let best = best(answers).and_then(place)?;
                let objective = Rrhf { ranking_weight, nll };
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
    /// included (grpo, rloo), or 1, so that the loss is a mean over prompts (rrhf).
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The group's loss, a sum: a scalar in fp32 (fp64 for fp64 log-probabilities). `log_probs` runs over the answers read,
    /// the policy's log-probabilities token by token, `[tokens]` each.
    ///
    /// # Panics
    /// Other answers than those read.
    pub fn loss(&self, log_probs: &[Tensor]) -> Taught {
        match &self.lesson {
            Lesson::Rank { objective, pairs, best } => {
                let terms = objective.terms(log_probs, pairs, *best);
                Taught {
                    loss: objective.weigh(&terms),
                    figures: figures(&[&terms.ranking, &terms.nll], terms.nll.device()),
                }
            }
            Lesson::Prefer { objective, log_ratio, pairs, reference } => {
                let answers = log_probs.iter().zip(reference);
                let ratios = answers.map(|(policy, reference)| dpo::log_ratio(policy, reference, *log_ratio));
                objective.loss(pairs, &Tensor::stack(&ratios.collect::<Vec<_>>(), 0))
            }
            Lesson::Follow { objective, advantages, sampler, clip_ratio, kl } => {
                let rollouts = Rollouts { policy: log_probs, sampler, advantages };
                let followed = match objective {
                    Ratios::Token => policy_gradient::grpo(&rollouts, *clip_ratio),
                    Ratios::Sequence => policy_gradient::rloo(&rollouts, *clip_ratio),
                };
                let device = followed.loss.device();
                match kl {
                    None => Taught { loss: followed.loss, figures: figures(&[&followed.clipped], device) },
                    Some(KlTerm { weight, reference }) => {
                        let kl = policy_gradient::kl_term(log_probs, reference);
                        let figures = figures(&[&followed.clipped, &kl], device);
                        Taught { loss: followed.loss + kl * *weight, figures }
                    }
                }
            }
        }
    }
}

/// What a group costs, and what it shows.
#[derive(Debug)]
pub struct Taught {
    /// A scalar that can be differentiated.
    pub loss: Tensor,
    /// As [`figure_names`] has them, `[figures]` in fp64 without a gradient: sums whose denominator is the groups' weight.
    pub figures: Tensor,
}

/// What a method shows of a step, each as a mean over what its loss is a mean of:
///
/// - rrhf, of prompts: the ranking term before its weight, and the best answer's negative log-likelihood.
/// - dpo, ipo, of pairs: the share whose chosen answer has the larger log-ratio, and the difference of the two.
/// - grpo, rloo, of answers: the share of probability ratios that are clipped, and the KL term before its weight.
pub fn figure_names(method: &Method) -> &'static [&'static str] {
    match method {
        Method::Rejection => &[],
        Method::Rrhf { .. } => &["ranking", "best_nll"],
        Method::Dpo { .. } | Method::Ipo { .. } => &["preferred_share", "log_ratio_margin"],
        Method::Grpo(PolicyGradient { kl: Some(_), .. }) => &["clipped_share", "kl_reference"],
        Method::Grpo(_) | Method::Rloo(_) => &["clipped_share"],
    }
}

/// Scalars side by side, `[n]`, fp64, without a gradient.
fn figures(scalars: &[&Tensor], device: Device) -> Tensor {
    let mut all = vec![Tensor::zeros([0], (Kind::Double, device))];
    all.extend(scalars.iter().map(|scalar| scalar.detach().to_kind(Kind::Double).view(1)));
    Tensor::cat(&all, 0)
}

impl Objective {
    /// Of pairs of answers with these log-ratios, `[answers]`.
    fn loss(self, pairs: &[Preference], ratios: &Tensor) -> Taught {
        let (chosen, rejected) = sides(ratios, pairs);
        let margins = no_grad(|| (&chosen - &rejected).to_kind(Kind::Double));
        let preferred = margins.gt(0.0).sum(Kind::Double);
        let loss = match self {
            Self::Dpo { beta, label_smoothing } => dpo::dpo(&chosen, &rejected, beta, label_smoothing),
            Self::Ipo { beta } => dpo::ipo(&chosen, &rejected, beta),
        };
        Taught { loss, figures: figures(&[&preferred, &margins.sum(Kind::Double)], chosen.device()) }
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

//! What a policy learns from its scored answers, each method with the settings of its own.

use foil_proto::v1;

use super::SpecError;
use super::check::{Range, one_of, path, real, size, wire_size};
use super::choice::choices;

const AT: &str = "policy_step";

/// A policy step's method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Supervised fine-tuning on the best of n.
    Rejection,
    /// Likelihoods in the order of rewards, and fine-tuning on the best.
    Rrhf {
        /// Of the ranking term.
        ranking_weight: f64,
        /// Of the best answer's negative log-likelihood over its tokens.
        nll: Reduction,
    },
    Dpo {
        preferences: Preferences,
        /// The probability that a preference is the wrong way round: 0 ≤ ε < ½.
        label_smoothing: f64,
    },
    Ipo {
        preferences: Preferences,
    },
    /// Advantages from the group's mean and deviation; ratios token by token.
    Grpo(PolicyGradient),
    /// Advantages from the mean of the others; one ratio per answer.
    Rloo(PolicyGradient),
}

/// Learning from preferences between a prompt's answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preferences {
    /// β of dpo, τ of ipo; above 0.
    pub beta: f64,
    pub pairing: Pairing,
    /// Of an answer's log-ratio to the reference over its tokens.
    pub log_ratio: Reduction,
    pub reference: ReferencePolicy,
}

/// Which answers make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    BestWorst,
    /// The best against the worst, the second best against the second worst, …: at most so many pairs, at least 1.
    TopBottom(usize),
    All,
}

/// Following rewards by clipped probability ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyGradient {
    /// Ratios are followed within 1 ± `clip_ratio`; above 0, at most 1.
    pub clip_ratio: f64,
    /// `None` where the divergence costs nothing.
    pub kl: Option<KlPrice>,
}

/// What a divergence from a reference costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlPrice {
    /// Above 0.
    pub weight: f64,
    pub reference: ReferencePolicy,
}

choices! {
    /// π_ref of a policy step.
    ReferencePolicy:
    /// The policy that the round began with.
    #[default]
    RoundStart = "round_start",
    /// The start policy, after its SFT.
    Initial = "initial",
}

choices! {
    /// From an answer's tokens to one number.
    Reduction:
    #[default]
    Sum = "sum",
    Mean = "mean",
}

choices! {
    /// A method by its name alone.
    MethodName:
    #[default]
    Rejection = "rejection",
    Rrhf = "rrhf",
    Dpo = "dpo",
    Ipo = "ipo",
    Grpo = "grpo",
    Rloo = "rloo",
}

choices! {
    /// A pairing by its name alone.
    PairingName:
    #[default]
    BestWorst = "best_worst",
    TopBottomK = "top_bottom_k",
    All = "all",
}

impl Method {
    pub fn name(&self) -> MethodName {
        match self {
            Self::Rejection => MethodName::Rejection,
            Self::Rrhf { .. } => MethodName::Rrhf,
            Self::Dpo { .. } => MethodName::Dpo,
            Self::Ipo { .. } => MethodName::Ipo,
            Self::Grpo(_) => MethodName::Grpo,
            Self::Rloo(_) => MethodName::Rloo,
        }
    }

    /// π_ref, where the method has one.
    pub fn reference(&self) -> Option<ReferencePolicy> {
        match self {
            Self::Rejection | Self::Rrhf { .. } => None,
            Self::Dpo { preferences, .. } | Self::Ipo { preferences } => Some(preferences.reference),
            Self::Grpo(gradient) | Self::Rloo(gradient) => gradient.kl.map(|kl| kl.reference),
        }
    }

    /// Whether the method follows probability ratios to the policy that drew the answers.
    pub fn needs_sampler(&self) -> bool {
        matches!(self, Self::Grpo(_) | Self::Rloo(_))
    }

    /// Whether the method learns from how a prompt's answers differ.
    pub fn compares_answers(&self) -> bool {
        !matches!(self, Self::Rejection)
    }

    /// How many of a prompt's n answers the method reads; ties, and blanks that would win, leave fewer.
    pub fn answers_of(&self, samples: u32) -> u32 {
        let paired = match self {
            Self::Rejection => return 1,
            Self::Rrhf { .. } | Self::Grpo(_) | Self::Rloo(_) => return samples,
            Self::Dpo { preferences, .. } | Self::Ipo { preferences } => match preferences.pairing {
                Pairing::BestWorst => 2,
                Pairing::TopBottom(k) => wire_size(k).saturating_mul(2),
                Pairing::All => samples,
            },
        };
        paired.min(samples)
    }

    pub(crate) fn parse(wire: &v1::PolicyStepSpec) -> Result<Self, SpecError> {
        let name = MethodName::parse(AT, "method", &wire.method)?;
        refuse_strangers(name, wire)?;
        Ok(match name {
            MethodName::Rejection => Self::Rejection,
            MethodName::Rrhf => Self::Rrhf {
                ranking_weight: real(AT, "ranking_weight", wire.ranking_weight, 1.0, Range::NonNegative)?,
                nll: Reduction::parse(AT, "nll", &wire.nll)?,
            },
            MethodName::Dpo => Self::Dpo {
                preferences: Preferences::parse(wire, Reduction::Sum)?,
                label_smoothing: real(AT, "label_smoothing", wire.label_smoothing, 0.0, Range::BelowHalf)?,
            },
            MethodName::Ipo => Self::Ipo { preferences: Preferences::parse(wire, Reduction::Mean)? },
            MethodName::Grpo => Self::Grpo(PolicyGradient::parse(wire)?),
            MethodName::Rloo => {
                let gradient = PolicyGradient::parse(wire)?;
                if gradient.kl.is_some_and(|kl| kl.reference == ReferencePolicy::RoundStart) {
                    return Err(SpecError::field(&path(AT, "reference"), "round_start", "initial").advice(
                        "rloo takes the divergence of the answers' own sampler, which is the policy at the round's start, \
                         off their rewards: from itself that is nothing",
                    ));
                }
                Self::Rloo(gradient)
            }
        })
    }

    /// Writes the method's name and its settings.
    pub(super) fn write(&self, wire: &mut v1::PolicyStepSpec) {
        wire.method = self.name().to_string();
        match *self {
            Self::Rejection => {}
            Self::Rrhf { ranking_weight, nll } => {
                wire.ranking_weight = Some(ranking_weight);
                wire.nll = nll.to_string();
            }
            Self::Dpo { preferences, label_smoothing } => {
                preferences.write(wire);
                wire.label_smoothing = Some(label_smoothing);
            }
            Self::Ipo { preferences } => preferences.write(wire),
            Self::Grpo(gradient) | Self::Rloo(gradient) => {
                wire.clip_ratio = Some(gradient.clip_ratio);
                wire.kl_weight = Some(gradient.kl.map_or(0.0, |kl| kl.weight));
                wire.reference = gradient.kl.map(|kl| kl.reference.to_string()).unwrap_or_default();
            }
        }
    }
}

impl Preferences {
    fn parse(wire: &v1::PolicyStepSpec, log_ratio: Reduction) -> Result<Self, SpecError> {
        let pairing = match PairingName::parse(AT, "pairing", &wire.pairing)? {
            PairingName::TopBottomK => Pairing::TopBottom(size(AT, "pairs_k", wire.pairs_k, 2, 1)?),
            other => {
                if let Some(k) = wire.pairs_k {
                    let expected = format!("nothing where pairing is {other}");
                    return Err(SpecError::field(&path(AT, "pairs_k"), k, &expected)
                        .advice("leave it out, or set pairing: top_bottom_k"));
                }
                if other == PairingName::All { Pairing::All } else { Pairing::BestWorst }
            }
        };
        let log_ratio = match wire.log_ratio.as_str() {
            "" => log_ratio,
            named => Reduction::parse(AT, "log_ratio", named)?,
        };
        Ok(Self {
            beta: real(AT, "beta", wire.beta, 0.1, Range::Positive)?,
            pairing,
            log_ratio,
            reference: ReferencePolicy::parse(AT, "reference", &wire.reference)?,
        })
    }

    fn write(&self, wire: &mut v1::PolicyStepSpec) {
        let (pairing, pairs_k) = match self.pairing {
            Pairing::BestWorst => (PairingName::BestWorst, None),
            Pairing::TopBottom(k) => (PairingName::TopBottomK, Some(wire_size(k))),
            Pairing::All => (PairingName::All, None),
        };
        wire.beta = Some(self.beta);
        wire.pairing = pairing.to_string();
        wire.pairs_k = pairs_k;
        wire.log_ratio = self.log_ratio.to_string();
        wire.reference = self.reference.to_string();
    }
}

impl PolicyGradient {
    fn parse(wire: &v1::PolicyStepSpec) -> Result<Self, SpecError> {
        let reference = ReferencePolicy::parse(AT, "reference", &wire.reference)?;
        let weight = real(AT, "kl_weight", wire.kl_weight, 0.0, Range::NonNegative)?;
        Ok(Self {
            clip_ratio: real(AT, "clip_ratio", wire.clip_ratio, 0.2, Range::Share)?,
            kl: (weight > 0.0).then_some(KlPrice { weight, reference }),
        })
    }
}

/// Refuses a setting that the method would not read: its author expects something of it.
fn refuse_strangers(method: MethodName, wire: &v1::PolicyStepSpec) -> Result<(), SpecError> {
    use MethodName::{Dpo, Grpo, Ipo, Rloo, Rrhf};
    let real = |value: Option<f64>| value.map(|value| value.to_string());
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    let settings: [(&str, Option<String>, &[MethodName]); 10] = [
        ("beta", real(wire.beta), &[Dpo, Ipo]),
        ("label_smoothing", real(wire.label_smoothing), &[Dpo]),
        ("pairing", text(&wire.pairing), &[Dpo, Ipo]),
        ("pairs_k", wire.pairs_k.map(|k| k.to_string()), &[Dpo, Ipo]),
        ("log_ratio", text(&wire.log_ratio), &[Dpo, Ipo]),
        ("reference", text(&wire.reference), &[Dpo, Ipo, Grpo, Rloo]),
        ("ranking_weight", real(wire.ranking_weight), &[Rrhf]),
        ("nll", text(&wire.nll), &[Rrhf]),
        ("clip_ratio", real(wire.clip_ratio), &[Grpo, Rloo]),
        ("kl_weight", real(wire.kl_weight), &[Grpo, Rloo]),
    ];
    for (field, found, readers) in settings {
        if let Some(found) = found
            && !readers.contains(&method)
        {
            let names: Vec<&str> = readers.iter().map(|reader| reader.name()).collect();
            let expected = format!("nothing where method is {method}");
            return Err(SpecError::field(&path(AT, field), found, &expected)
                .advice(&format!("it is a setting of {}; leave it out", one_of(&names))));
        }
    }
    Ok(())
}

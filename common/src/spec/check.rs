//! Range checks of single fields. `at` is the path of the block, `field` the name within it.

use super::SpecError;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Range {
    Positive,
    NonNegative,
    /// 0 ≤ x ≤ 1.
    Unit,
    /// 0 < x ≤ 1.
    Share,
    /// 0 ≤ x < 1.
    BelowOne,
    /// 0 ≤ x < ½.
    BelowHalf,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Positive => value > 0.0,
                Self::NonNegative => value >= 0.0,
                Self::Unit => (0.0..=1.0).contains(&value),
                Self::Share => value > 0.0 && value <= 1.0,
                Self::BelowOne => (0.0..1.0).contains(&value),
                Self::BelowHalf => (0.0..0.5).contains(&value),
            }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Positive => "a number above 0",
            Self::NonNegative => "a number of at least 0",
            Self::Unit => "a number from 0 to 1",
            Self::Share => "a number above 0 and at most 1",
            Self::BelowOne => "a number of at least 0 and below 1",
            Self::BelowHalf => "a number of at least 0 and below 0.5",
        }
    }
}

pub(crate) fn path(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

pub(crate) fn real(
    at: &str,
    field: &str,
    value: Option<f64>,
    default: f64,
    range: Range,
) -> Result<f64, SpecError> {
    let value = value.unwrap_or(default);
    if range.holds(value) {
        return Ok(value);
    }
    Err(SpecError::field(&path(at, field), value, range.text()))
}

pub(crate) fn count(
    at: &str,
    field: &str,
    value: Option<u32>,
    default: u32,
    min: u32,
) -> Result<u32, SpecError> {
    let value = value.unwrap_or(default);
    if value >= min {
        return Ok(value);
    }
    Err(SpecError::field(&path(at, field), value, &format!("at least {min}")))
}

/// Like [`count`], for sizes in memory.
pub(crate) fn size(
    at: &str,
    field: &str,
    value: Option<u32>,
    default: u32,
    min: u32,
) -> Result<usize, SpecError> {
    count(at, field, value, default, min).map(|value| value as usize)
}

/// A size in its wire type; sizes were parsed from the wire, so they fit.
pub(crate) fn wire_size(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Advice on choices that other tools have: the name, a choice of the field that is meant, and the advice.
const OTHER_CHOICES: [(&str, &str, &str); 6] = [
    // PyTorch names a GPU by its backend.
    ("gpu", "cuda", "did you mean cuda?"),
    (
        "ppo",
        "grpo",
        "PPO's value model is not there; grpo and rloo estimate advantages from the samples of a prompt",
    ),
    ("reinforce", "rloo", "did you mean rloo?"),
    ("zero2", "zero1", "zero1 shards the optimizer, fsdp also gradients and weights"),
    ("zero3", "fsdp", "did you mean fsdp?"),
    ("fp16", "bf16", "fp16 needs loss scaling, which is not there; bf16 does not"),
];

pub(crate) fn unknown_choice(at: &str, field: &str, text: &str, names: &[&str]) -> SpecError {
    let error = SpecError::field(&path(at, field), text, &one_of(names));
    let other = OTHER_CHOICES.iter().find(|(name, known, _)| *name == text && names.contains(known));
    if let Some((.., advice)) = other {
        return error.advice(advice);
    }
    match nearest(text, names.iter().copied()) {
        Some(name) => error.advice(&format!("did you mean {name}?")),
        None => error,
    }
}

pub(crate) fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The known name most similar to `text`, if any is similar.
pub(crate) fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::jaro_winkler(text, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

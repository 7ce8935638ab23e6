use foil_proto::v1;

use super::SpecError;
use super::check::{Range, path, real, size, wire_size};

/// Minimum temperature above 0: with a lower one, logits would overflow single precision.
const COLDEST: f64 = 1e-4;

/// Sampling of completions. Filters apply in the order temperature, top-k, top-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 keeps all tokens.
    pub top_k: usize,
    /// 1 keeps all tokens.
    pub top_p: f64,
    /// 1 is none; applies to tokens of the prompt too.
    pub repetition_penalty: f64,
    pub max_new_tokens: usize,
    pub min_new_tokens: usize,
    /// Texts that end a completion; they are removed from it.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            max_new_tokens: 128,
            min_new_tokens: 0,
            stop: Vec::new(),
        }
    }
}

impl Sampling {
    /// Whether completions follow the policy's own distribution: temperature 1, no filter, penalty or minimum
    /// length.
    pub fn is_plain(&self) -> bool {
        let Self {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            min_new_tokens,
            max_new_tokens: _,
            stop: _,
        } = self;
        (*temperature, *top_k, *top_p, *repetition_penalty, *min_new_tokens) == (1.0, 0, 1.0, 1.0, 0)
    }

    /// Whether decoding is greedy, so that a prompt has only one completion.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Parses the block `at`; missing fields are taken from `base`.
    pub(crate) fn parse(at: &str, wire: &v1::SamplingSpec, base: &Self) -> Result<Self, SpecError> {
        let max = wire_size(base.max_new_tokens);
        let sampling = Self {
            temperature: real(at, "temperature", wire.temperature, base.temperature, Range::NonNegative)?,
            top_k: size(at, "top_k", wire.top_k, wire_size(base.top_k), 0)?,
            top_p: real(at, "top_p", wire.top_p, base.top_p, Range::Share)?,
            repetition_penalty: real(
                at,
                "repetition_penalty",
                wire.repetition_penalty,
                base.repetition_penalty,
                Range::Positive,
            )?,
            max_new_tokens: size(at, "max_new_tokens", wire.max_new_tokens, max, 1)?,
            min_new_tokens: size(
                at,
                "min_new_tokens",
                wire.min_new_tokens,
                wire_size(base.min_new_tokens),
                0,
            )?,
            stop: if wire.stop.is_empty() { base.stop.clone() } else { wire.stop.clone() },
        };
        if sampling.temperature > 0.0 && sampling.temperature < COLDEST {
            let expected = format!("0, which is greedy, or at least {COLDEST}");
            return Err(SpecError::field(&path(at, "temperature"), sampling.temperature, &expected));
        }
        if sampling.min_new_tokens > sampling.max_new_tokens {
            let limit = format!("at most max_new_tokens ({})", sampling.max_new_tokens);
            return Err(SpecError::field(&path(at, "min_new_tokens"), sampling.min_new_tokens, &limit));
        }
        if sampling.stop.iter().any(String::is_empty) {
            return Err(SpecError::field(
                &path(at, "stop"),
                "an empty text",
                "texts of at least one character",
            ));
        }
        Ok(sampling)
    }
}

impl TryFrom<&v1::SamplingSpec> for Sampling {
    type Error = SpecError;

    fn try_from(wire: &v1::SamplingSpec) -> Result<Self, SpecError> {
        Self::parse("sampling", wire, &Self::default())
    }
}

impl From<&Sampling> for v1::SamplingSpec {
    fn from(sampling: &Sampling) -> Self {
        Self {
            temperature: Some(sampling.temperature),
            top_k: Some(wire_size(sampling.top_k)),
            top_p: Some(sampling.top_p),
            repetition_penalty: Some(sampling.repetition_penalty),
            max_new_tokens: Some(wire_size(sampling.max_new_tokens)),
            min_new_tokens: Some(wire_size(sampling.min_new_tokens)),
            stop: sampling.stop.clone(),
        }
    }
}

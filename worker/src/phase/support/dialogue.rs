//! Encoding of prompts and responses for a model.

use foil_common::data::rows::Prompt;
use foil_common::spec;
use foil_common::text::{Encoded, Encoder, Limits, Response};

use super::rows::Sampled;
use crate::phase::PhaseError;

/// A response to encode: a text of the data, or a stored completion.
#[derive(Clone, Copy, Debug)]
pub(in crate::phase) enum Candidate<'a> {
    Text(&'a str),
    Sample(&'a Sampled),
}

impl<'a> Candidate<'a> {
    /// The completion's own tokens if the model has the same tokenizer; otherwise its text is tokenized.
    fn response(self, tokenizer: &str) -> Response<'a> {
        match self {
            Self::Text(text) => Response::finished(text),
            Self::Sample(sampled) if !tokenizer.is_empty() && sampled.tokenizer == tokenizer => {
                Response::Tokens { ids: &sampled.sample.tokens, finished: sampled.sample.finished }
            }
            Self::Sample(sampled) => {
                Response::Text { text: &sampled.sample.text, finished: sampled.sample.finished }
            }
        }
    }
}

/// Encodes dialogues for one model.
pub(in crate::phase) struct Reader<'a> {
    pub(in crate::phase) encoder: &'a Encoder,
    /// Fingerprint of the encoder's tokenizer.
    pub(in crate::phase) tokenizer: &'a str,
    pub(in crate::phase) job: &'a spec::Job,
}

impl Reader<'_> {
    /// The limits of completions and of responses compared with them: at most `sampling.max_new_tokens`.
    fn sample_limits(&self) -> Limits {
        Limits::new(self.job.text.max_length, self.job.sampling.max_new_tokens)
    }

    /// Encodes a golden answer or a completion, both truncated to the same budget, so that length does not distinguish them.
    pub(in crate::phase) fn competing(
        &self,
        row: u64,
        prompt: &Prompt,
        candidate: Candidate<'_>,
    ) -> Result<Encoded, PhaseError> {
        self.encode(row, prompt, candidate, self.sample_limits())
    }

    /// Encodes a response of the data that is not compared with completions: it shares `text.max_length` with its prompt.
    pub(in crate::phase) fn whole(
        &self,
        row: u64,
        prompt: &Prompt,
        text: &str,
    ) -> Result<Encoded, PhaseError> {
        self.encode(row, prompt, Candidate::Text(text), Limits::shared(self.job.text.max_length))
    }

    fn encode(
        &self,
        row: u64,
        prompt: &Prompt,
        candidate: Candidate<'_>,
        limits: Limits,
    ) -> Result<Encoded, PhaseError> {
        let answer = candidate.response(self.tokenizer);
        self.encoder.dialogue(prompt, answer, limits).map_err(|source| PhaseError::Encode { row, source })
    }

    /// Encodes a prompt for generation, with room for `max_new_tokens`.
    pub(in crate::phase) fn prompt(
        &self,
        row: u64,
        prompt: &Prompt,
        max_new_tokens: usize,
    ) -> Result<Vec<u32>, PhaseError> {
        let limits = Limits::new(self.job.text.max_length, max_new_tokens);
        let encoded = self
            .encoder
            .prompt(prompt, limits.prompt)
            .map_err(|source| PhaseError::Encode { row, source })?;
        Ok(encoded.ids)
    }
}

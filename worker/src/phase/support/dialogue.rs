//! Encoding of prompts and responses for a model.

use foil_common::data::rows::Prompt;
use foil_common::spec;
use foil_common::text::{Encoded, Encoder, Limits, Response};

use super::models::Loaded;
use super::rows::StoredCompletion;
use crate::phase::PhaseError;

/// A response to encode: a text from the data or a stored completion.
#[derive(Clone, Copy, Debug)]
pub(in crate::phase) enum ResponseSource<'a> {
    Text(&'a str),
    Completion(&'a StoredCompletion),
}

impl<'a> ResponseSource<'a> {
    /// The completion's own tokens if the model has the same tokenizer; otherwise its text is tokenized.
    fn response(self, tokenizer: &str) -> Response<'a> {
        match self {
            Self::Text(text) => Response::finished(text),
            Self::Completion(stored) if !tokenizer.is_empty() && stored.tokenizer == tokenizer => {
                Response::Tokens { ids: &stored.sample.tokens, finished: stored.sample.finished }
            }
            Self::Completion(stored) => {
                Response::Text { text: &stored.sample.text, finished: stored.sample.finished }
            }
        }
    }
}

/// Encodes dialogues for one model.
pub(in crate::phase) struct DialogueEncoder<'a> {
    encoder: &'a Encoder,
    /// Fingerprint of the encoder's tokenizer.
    tokenizer: &'a str,
    pub(in crate::phase) job: &'a spec::Job,
}

impl<'a> DialogueEncoder<'a> {
    pub(in crate::phase) fn new<M>(model: &'a Loaded<M>, job: &'a spec::Job) -> Self {
        Self { encoder: &model.encoder, tokenizer: &model.tokenizer, job }
    }

    /// The limits of completions and of the responses they are compared with: at most
    /// `sampling.max_new_tokens`.
    fn completion_limits(&self) -> Limits {
        Limits::new(self.job.text.max_length, self.job.sampling.max_new_tokens)
    }

    /// Encodes a golden answer or a completion, both truncated to the same budget, so that length does not
    /// distinguish them.
    pub(in crate::phase) fn encode_truncated(
        &self,
        row: u64,
        prompt: &Prompt,
        source: ResponseSource<'_>,
    ) -> Result<Encoded, PhaseError> {
        self.encode(row, prompt, source, self.completion_limits())
    }

    /// Encodes a response from the data that is not compared with completions. It shares `text.max_length`
    /// with its prompt.
    pub(in crate::phase) fn encode_full(
        &self,
        row: u64,
        prompt: &Prompt,
        text: &str,
    ) -> Result<Encoded, PhaseError> {
        self.encode(row, prompt, ResponseSource::Text(text), Limits::shared(self.job.text.max_length))
    }

    fn encode(
        &self,
        row: u64,
        prompt: &Prompt,
        source: ResponseSource<'_>,
        limits: Limits,
    ) -> Result<Encoded, PhaseError> {
        let response = source.response(self.tokenizer);
        self.encoder.dialogue(prompt, response, limits).map_err(|source| PhaseError::Encode { row, source })
    }

    /// Encodes a prompt for generation, with room for `max_new_tokens`.
    pub(in crate::phase) fn encode_prompt(
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

//! Encoding of conversations to tokens and back, shared by training, scoring and sampling.
//!
//! A prompt is rendered by a template and encoded; a response is encoded together with the prompt's text, so
//! that it gets the tokens it has in context, and must not change the prompt's own tokens. BOS and EOS are
//! added here, never by the tokenizer's post-processor.

mod encoder;
mod error;
mod export;
mod files;
pub mod inspect;
mod jinja;

mod special;
mod stream;
mod template;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use encoder::Encoder;
pub use error::TextError;
pub use export::TrainedText;
pub use files::{ModelText, TEXT_FILES};
pub use special::TokenIds;
pub use stream::TextStream;

/// A response to a prompt: a text to encode, or the tokens that a model wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response<'a> {
    /// If `finished`, EOS follows the text. Golden answers, demonstrations and human pairs are finished.
    Text { text: &'a str, finished: bool },
    /// A completion as sampled, with EOS if the model wrote it. `finished` without EOS means that a stop text
    /// ended it.
    Tokens { ids: &'a [u32], finished: bool },
}

impl<'a> Response<'a> {
    /// A finished text.
    pub fn finished(text: &'a str) -> Self {
        Response::Text { text, finished: true }
    }
}

/// Maximum tokens of each part and of the whole sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Includes BOS.
    pub prompt: usize,
    /// Includes EOS.
    pub response: usize,
    /// Maximum sequence length.
    pub total: usize,
}

impl Limits {
    /// Limits of completions, golden answers and all prompts to sample from: responses get `max_new_tokens`
    /// of `max_length`, prompts the rest. Golden answers and completions have the same budget, or length
    /// alone would tell them apart.
    pub fn new(max_length: usize, max_new_tokens: usize) -> Self {
        let response = max_new_tokens.min(max_length.saturating_sub(1));
        Self::of(max_length - response, response)
    }

    /// Separate limits of each part.
    pub const fn of(prompt: usize, response: usize) -> Self {
        Limits { prompt, response, total: prompt.saturating_add(response) }
    }

    /// Limits of human pairs and demonstrations, which are not compared with completions: prompt and response
    /// share `max_length`. If they exceed it, the response gets what the prompt leaves, and at least half
    /// of the whole.
    pub fn shared(max_length: usize) -> Self {
        Limits { prompt: max_length, response: max_length, total: max_length }
    }

    /// Whether prompt and response share the total, as in [`Self::shared`].
    pub fn are_shared(self) -> bool {
        self.prompt == self.total && self.response == self.total
    }

    /// The number of tokens of each part that remain after truncation.
    pub fn fit(self, prompt: usize, response: usize) -> (usize, usize) {
        let (prompt, mut response) = (prompt.min(self.prompt), response.min(self.response));
        if prompt.saturating_add(response) > self.total {
            let half = self.total - self.total / 2;
            response = response.min(half.max(self.total.saturating_sub(prompt)));
        }
        (prompt.min(self.total - response), response)
    }
}

/// The tokens of a prompt to sample from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    pub ids: Vec<u32>,
    /// Number of tokens truncated.
    pub cut: usize,
}

/// A prompt and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Index of the first response token; the loss is taken on `ids[response_start..]`.
    pub response_start: usize,
    /// Number of prompt tokens truncated.
    pub prompt_cut: usize,
    /// Number of response tokens truncated, including EOS.
    pub response_cut: usize,
    /// Whether the response ends with EOS, written by the model or added here: it is finished and not
    /// truncated.
    pub eos: bool,
}

impl Encoded {
    pub fn response(&self) -> &[u32] {
        &self.ids[self.response_start..]
    }
}
